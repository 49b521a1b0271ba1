"""A tensor whose channels can be multiplied, what has to change with it, and the change itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.equalize.gates import Gate, rescale
from onnxq.equalize.outliers import take_out
from onnxq.graph.edit import float_constant, new_constant, owner, rank, set_input
from onnxq.graph.linear import Linear
from onnxq.graph.nodes import NodeBuilder, behind
from onnxq.graph.rescale import rescaled_input, rescaled_output

Array = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads the site, and the tensor that it reads, which may lie behind a Relu or a pooling.

    ``axis``: of the channels in that tensor.
    """

    linear: Linear
    tensor: str
    axis: int

    @property
    def node(self) -> ir.Node:
        """That multiplies."""
        return self.linear.node

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.linear.inner_channels

    def weight(self) -> Array:
        """Its weight as ``[g, n, k, C]``: groups, input channels of a group, places of the kernel, output channels."""
        return self.linear.by_input()


@dataclass(frozen=True)
class Site:
    """A tensor that may be scaled.

    ``tensor``: where the factors come in; ``axis``: of its channels, 1 or -1. ``layer``: the linear
    layer that writes it, or None where ``constants``, as (node, input), multiply its channels. With neither
    a Mul between it and its ``readers``, which are not all that read it, is to do so. ``gate``: what lies between the
    ``layer`` and all ``readers`` and has to be changed too; ``shifts``, as (node, input): what is added behind it.
    """

    tensor: str
    axis: int
    layer: Linear | None
    constants: tuple[tuple[ir.Node, int], ...]
    readers: tuple[Reader, ...]
    gate: Gate | None = None
    shifts: tuple[tuple[ir.Node, int], ...] = ()

    @property
    def channels(self) -> int:
        """Channels of the tensor."""
        return self.readers[0].channels

    @property
    def writers(self) -> tuple[ir.Node, ...]:
        """The nodes whose constants change with it: those of ``constants``, or the one whose weight does."""
        return tuple(node for node, _ in self.constants) if self.layer is None else (self.layer.node,)

    @property
    def between(self) -> bool:
        """Whether a node has to be added between the tensor and its readers."""
        return self.layer is None and not self.constants

    @property
    def costs(self) -> bool:
        """Whether factors make the model compute more."""
        return self.between or self.gate is not None

    def scale(self, factors: F64) -> dict[str, str] | None:
        """Multiplies channels by ``factors: [channels]``; readers divide.

        Factors are positive; where a node is added they may be 0, and the channel goes past the readers in float.
        Returns the names of nodes that were added and must stay float, and what they are there for; None, and nothing
        changed, where a weight or bias would leave the range of float32.
        """
        zero = np.zeros(factors.size)
        kept = factors > 0
        inverse = np.divide(1.0, factors, out=np.zeros_like(factors), where=kept)
        changes = [rescaled_input(reader.linear, inverse, zero) for reader in self.readers]
        changes += [] if self.layer is None else [rescaled_output(self.layer, factors, zero)]
        if any(change is None for change in changes):
            return None
        added = {} if kept.all() else take_out([reader.linear for reader in self.readers], np.flatnonzero(~kept))
        for change in changes:
            if change is not None:
                change.store(label="equalized")
        for node, index in self.constants:
            value, array = node.inputs[index], float_constant(node.inputs[index])
            if value is not None and array is not None:
                scaled = (array * factors).astype(np.float32)
                set_input(node, index, new_constant(owner(node), scaled, name=f"{value.name}_equalized"))
        if self.gate is not None:
            rescale(self.gate, factors)
        for node, index in self.shifts:
            value, array = node.inputs[index], float_constant(node.inputs[index])
            assert value is not None
            assert array is not None
            scaled = (array.reshape(-1) * factors).astype(np.float32).reshape(-1, *[1] * places_of(node.outputs[0]))
            set_input(node, index, new_constant(owner(node), scaled, name=f"{value.name}_equalized"))
        return added | (self._multiplied(factors) if self.between else {})

    def _multiplied(self, factors: F64) -> dict[str, str]:
        value = self.readers[0].node.inputs[0]
        assert value is not None
        build = NodeBuilder(behind(value, owner(self.readers[0].node)))
        by = build.constant(factors.astype(np.float32), f"{value.name}_factors")
        node = build.node("Mul", [value, by], name=f"{value.name}_equalized", like=value)
        for reader in self.readers:
            set_input(reader.node, 0, node.outputs[0])
        return {node.name or "": "makes channels alike before they are rounded"}


def places_of(value: ir.Value) -> int:
    """Axes of a map [N, C, ...] behind its channels."""
    return (rank(value) or 0) - 2
