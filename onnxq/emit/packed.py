"""Weights of few bits in a graph: the constants and nodes that a representation is spelled with (``onnxq.weights``)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.emit.pieces import Pieces, graph_of
from onnxq.errors import ModelError, NumericsError
from onnxq.graph.nodes import Place
from onnxq.numerics import Granularity, PerAxis, PerTensor
from onnxq.ranges.samples import rows_of
from onnxq.weights import Foldable, Representation

Ints = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Writing:
    """A ``weights.Writer`` for the weight ``name``, at ``place``; ``native``: int4 tensors may be used (opset 21)."""

    pieces: Pieces
    name: str
    place: Place
    native: bool = False

    @property
    def graph(self) -> ir.Graph:
        """The graph or body that is written to."""
        return graph_of(self.place.node)

    def constant(self, data: npt.NDArray[Any], what: str) -> ir.Value:
        return self.pieces.initializer(self.graph, f"{self.name}_{what}", data)

    def shared(self, data: npt.NDArray[Any], what: str) -> ir.Value:
        key = ("packed", what, data.dtype.str, data.shape, data.tobytes())
        return self.once(key, lambda: self.pieces.initializer(self.graph, f"packed_{what}", data))

    def int4(self, codes: npt.NDArray[Any], what: str) -> ir.Value:
        import ml_dtypes

        return self.constant(codes.astype(ml_dtypes.int4), what)

    def node(self, op: str, inputs: Sequence[ir.Value], what: str, **attributes: Any) -> ir.Value:
        return self.pieces.node(op, inputs, f"{self.name}_{what}", place=self.place, **attributes)

    def cast(self, value: ir.Value, to: npt.DTypeLike, what: str) -> ir.Value:
        return self.node("Cast", [value], what, to=ir.DataType.from_numpy(np.dtype(to)))

    def once(self, key: tuple[Hashable, ...], make: Callable[[], ir.Value]) -> ir.Value:
        here = (id(self.graph), *key)
        if here not in self.pieces.made:
            self.pieces.made[here] = make()
        return self.pieces.made[here]


def expanded(writing: Writing, codes: Ints, stored: Representation, by: Granularity, *, shift: int = 0) -> ir.Value:
    """A value that holds ``codes + shift``, ``[..] int8``, once the runtime has folded constants.

    ``by``: which of the codes have a scale in common, as channels or rows. Raises ``ModelError`` where the codes are
    not such as are ``stored`` so.
    """
    if not isinstance(stored, Foldable):
        raise ModelError(f"weight '{writing.name}' is stored for a kernel that unpacks it itself")
    axis = by.axis % codes.ndim if isinstance(by, PerAxis) else 0
    plain = isinstance(by, PerAxis) and (axis == 0 or codes.ndim == 2)
    try:
        if stored.in_rows and not plain:
            return _of_rows(writing, codes, stored, by, shift)
        return stored.spelled(writing, codes, axis=axis, shift=shift)
    except NumericsError as error:
        raise ModelError(f"weight '{writing.name}' has {error}") from error


def _of_rows(writing: Writing, codes: Ints, stored: Foldable, by: Granularity, shift: int) -> ir.Value:
    """``expanded`` for what is stored row by row: as a matrix of them, from which the runtime makes the tensor."""
    axis = codes.ndim - 1 if isinstance(by, PerTensor) else by.axis % codes.ndim
    others = [i for i in range(codes.ndim) if i != axis]
    order = [axis, *others] if isinstance(by, PerAxis) else [*others, axis]
    tensor = stored.spelled(writing, rows_of(codes, by), axis=0, shift=shift)
    if codes.ndim != 2:
        shape = writing.constant(np.asarray([codes.shape[i] for i in order]), "rows_shape")
        tensor = writing.node("Reshape", [tensor, shape], "in_rows")
    if order == sorted(order):
        return tensor
    return writing.node("Transpose", [tensor], "in_order", perm=[order.index(i) for i in range(codes.ndim)])
