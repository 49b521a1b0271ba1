"""What a model takes and gives: names, element types and shapes of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. A dimension is a number, a name (symbolic) or None (unknown); ``shape`` None: unknown rank.

    ``dtype`` is None where numpy has no such type (strings are ``object``). ``bfloat16``: whether the model's is that,
    which numpy has not: it is fed and read as float32 (``runtime.session.run``).
    """

    name: str
    dtype: npt.DTypeLike | None
    shape: tuple[int | str | None, ...] | None
    bfloat16: bool = False

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.type_name}[{dims}]"

    @property
    def type_name(self) -> str:
        """The element type in words."""
        if self.bfloat16:
            return "bfloat16"
        return "string" if self.dtype == object else str(self.dtype or "unknown")


@dataclass(frozen=True)
class Signature:
    """The inputs that a caller must feed (initialisers listed as inputs are not among them) and the outputs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def signature(model: ir.Model) -> Signature:
    """The ``Signature`` of ``model``."""
    initializers = model.graph.initializers
    return Signature(
        tuple(_spec(v) for v in model.graph.inputs if v.name not in initializers),
        tuple(_spec(v) for v in model.graph.outputs),
    )


def _spec(value: ir.Value) -> TensorSpec:
    dtype: npt.DTypeLike | None = None
    if value.dtype is not None:
        dtype = np.dtype(object) if value.dtype == ir.DataType.STRING else value.dtype.numpy()
    bfloat16 = value.dtype == ir.DataType.BFLOAT16
    shape: tuple[int | str | None, ...] | None = None
    if value.shape is not None:
        shape = tuple(_dim(d if isinstance(d, int) else d.value) for d in value.shape)
    return TensorSpec(value.name or "", np.dtype(np.float32) if bfloat16 else dtype, shape, bfloat16)


def _dim(dim: int | str | None) -> int | str | None:
    """Some exporters write -1 or ``?`` for a dimension that may have any size."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return None if dim in ("?", "", "-1") else dim
