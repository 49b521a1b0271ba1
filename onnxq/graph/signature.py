"""What a model takes and gives: names, element types and shapes of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.foreign import TYPES


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. A dimension is a number, a name (symbolic) or None (unknown); ``shape`` None: unknown rank.

    ``dtype`` is None where numpy has no such type (strings are ``object``). ``bfloat16``: whether the model's is that,
    which numpy has not: it is fed and read as float32 (``runtime.session.run``). ``kind``: "tensor", "sequence"
    or "map"; the other fields are those of what it holds.
    """

    name: str
    dtype: npt.DTypeLike | None
    shape: tuple[int | str | None, ...] | None
    bfloat16: bool = False
    kind: str = "tensor"

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
    inputs, outputs = _ends(model)
    maps = model.meta.get(TYPES, {})
    return Signature(*(tuple(_spec(v, holds_map=v.name in maps) for v in values) for values in (inputs, outputs)))


def keep_signature(model: ir.Model, source: ir.Model) -> None:
    """Nothing; gives the inputs and outputs of ``model``, which was made of ``source``, the types and shapes of that.

    What was inferred on the way is no part of what callers know: dimensions keep their names, those without one have
    none. Raises ``RuntimeError``, since somebody in between is at fault, where number, names, order or element types
    are others.
    """
    wanted, found = _ends(source), _ends(model)
    for what, before, after in (("inputs", wanted[0], found[0]), ("outputs", wanted[1], found[1])):
        names = [[v.name for v in values] for values in (before, after)]
        if names[0] != names[1]:
            raise RuntimeError(f"the {what} of the model became {names[1]}: they are {names[0]}")
        for old, new in zip(before, after, strict=True):
            if None not in (old.dtype, new.dtype) and old.dtype != new.dtype:
                raise RuntimeError(f"{new.name!r}, one of the {what}, became {new.dtype}: it is {old.dtype}")
            new.type = old.type or new.type
            new.shape = None if old.shape is None else old.shape.copy()


def _ends(model: ir.Model) -> tuple[list[ir.Value], list[ir.Value]]:
    """The inputs that a caller must feed, and the outputs."""
    initializers = model.graph.initializers
    return [v for v in model.graph.inputs if v.name not in initializers], list(model.graph.outputs)


def _kind(found: ir.TypeProtocol | None) -> str:
    """What a value is; an optional tensor may be fed a tensor."""
    if isinstance(found, ir.OptionalType):
        return _kind(found.elem_type)
    return "sequence" if isinstance(found, ir.SequenceType) else "tensor"


def _spec(value: ir.Value, *, holds_map: bool) -> TensorSpec:
    dtype: npt.DTypeLike | None = None
    if value.dtype is not None:
        dtype = np.dtype(object) if value.dtype == ir.DataType.STRING else value.dtype.numpy()
    bfloat16 = value.dtype == ir.DataType.BFLOAT16
    kind = "map" if holds_map else _kind(value.type)
    shape: tuple[int | str | None, ...] | None = None
    if value.shape is not None:
        shape = tuple(_dim(d if isinstance(d, int) else d.value) for d in value.shape)
    return TensorSpec(value.name or "", np.dtype(np.float32) if bfloat16 else dtype, shape, bfloat16, kind)


def _dim(dim: int | str | None) -> int | str | None:
    """Some exporters write -1 or ``?`` for a dimension that may have any size."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return None if dim in ("?", "", "-1") else dim
