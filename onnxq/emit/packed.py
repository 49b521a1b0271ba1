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

    def node(self, op: str, inputs: Sequence[ir.Value], what: str, **attributes: int) -> ir.Value:
        return self.pieces.node(op, inputs, f"{self.name}_{what}", place=self.place, **attributes)

    def cast(self, value: ir.Value, to: npt.DTypeLike, what: str) -> ir.Value:
        return self.node("Cast", [value], what, to=ir.DataType.from_numpy(np.dtype(to)))

    def once(self, key: tuple[Hashable, ...], make: Callable[[], ir.Value]) -> ir.Value:
        here = (id(self.graph), *key)
        if here not in self.pieces.made:
            self.pieces.made[here] = make()
        return self.pieces.made[here]


def expanded(writing: Writing, codes: Ints, stored: Representation, *, axis: int = 0, shift: int = 0) -> ir.Value:
    """A value that holds ``codes + shift``, ``[..] int8``, once the runtime has folded constants.

    ``axis`` is that of the output channels. Raises ``ModelError`` where the codes are not such as are ``stored`` so.
    """
    if not isinstance(stored, Foldable):
        raise ModelError(f"weight '{writing.name}' is stored for a kernel that unpacks it itself")
    try:
        return stored.spelled(writing, codes, axis=axis, shift=shift)
    except NumericsError as error:
        raise ModelError(f"weight '{writing.name}' has {error}") from error
