"""A tensor whose channels can be multiplied, what has to change with it, and the change itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.equalize.gates import Gate, rescale
from onnxq.equalize.outliers import take_out
from onnxq.equalize.reads import Indices, spread
from onnxq.equalize.region import places_of
from onnxq.graph.edit import float_constant, new_constant, owner, set_input
from onnxq.graph.linear import Linear
from onnxq.graph.nodes import NodeBuilder, behind
from onnxq.graph.rescale import Change, Columns, rescaled_columns, rescaled_input, rescaled_output

Array = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


# The input of a Clip that is its upper end.
_END = 2
# Where the weight lies that a layer, recurrent or not, multiplies what it reads by.
WEIGHT = 1


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the channels of a site, in a tensor that may lie behind a Relu, a pooling or a Transpose.

    ``node``: linear, or recurrent and then without ``linear``; ``tensor``: what it reads; ``axis``: of the channels in
    that; ``of``: by input channel of the layer, the channel of the site or ``arranged.OTHER``; None: they are the same.
    """

    node: ir.Node
    tensor: str
    axis: int
    linear: Linear | None
    of: Indices | None = None

    @property
    def channels(self) -> int:
        """Input channels."""
        if self.linear is not None:
            return self.linear.inner_channels
        return int(recurrent_weight(self.node).shape[2])

    def weight(self) -> Array:
        """Its weight as ``[g, n, k, C]``: groups, input channels of a group, places of the kernel, output channels."""
        if self.linear is not None:
            return self.linear.by_input()
        weight = recurrent_weight(self.node)
        rows: Array = weight.reshape(-1, weight.shape[2]).T
        return rows[None, :, None, :]

    def divided(self, inverse: F64) -> Change | Columns | None:
        """What makes it read each channel of the site times ``inverse``; None where that overflows."""
        own = spread(inverse, self.of)
        if self.linear is None:
            return rescaled_columns(self.node, WEIGHT, own)
        return rescaled_input(self.linear, own, np.zeros(own.size))


def recurrent_weight(node: ir.Node) -> Array:
    """``[directions, rows of gates, inputs]``: what the recurrent ``node`` multiplies its input by."""
    weight = float_constant(node.inputs[WEIGHT])
    assert weight is not None
    return weight


@dataclass(frozen=True)
class Bound:
    """The upper end, ``ceiling``, of the Clip ``node`` of channels from 0.

    ``tensor``, ``axis``, ``of``: of what it writes, as in ``Reader``.
    """

    node: ir.Node
    ceiling: float
    tensor: str
    axis: int
    of: Indices


@dataclass(frozen=True)
class Site:
    """A tensor that may be scaled, and all that carries the same channels.

    ``tensor``: where the factors come in; ``axis``: of its channels, 1 or -1. ``layers``: the linear
    layers that write it, none where ``constants``, as (node, input), multiply its channels. With neither
    a Mul between it and its ``readers``, which are not all that read it, is to do so. ``gate``: what lies between the
    layer and all ``readers`` and has to be changed too; ``shifts``, as (node, input): what is added behind it.
    ``bounds``: Clips on the way, whose ends must not be reached; ``summed``: as readers of what is summed on the way to
    them, where that is rounded by itself.
    """

    tensor: str
    axis: int
    layers: tuple[Linear, ...]
    constants: tuple[tuple[ir.Node, int], ...]
    readers: tuple[Reader, ...]
    gate: Gate | None = None
    shifts: tuple[tuple[ir.Node, int], ...] = ()
    bounds: tuple[Bound, ...] = ()
    summed: tuple[Reader, ...] = ()
    channels: int = 0

    @property
    def writers(self) -> tuple[ir.Node, ...]:
        """The nodes whose constants change with it: those of ``constants``, or those whose weights do."""
        return (*(layer.node for layer in self.layers), *(node for node, _ in self.constants))

    @property
    def between(self) -> bool:
        """Whether a node has to be added between the tensor and its readers."""
        return not self.layers and not self.constants

    @property
    def costs(self) -> bool:
        """Whether factors make the model compute more."""
        return self.between or self.gate is not None

    @property
    def seen(self) -> dict[str, int]:
        """By tensor that must be seen to find factors, the axis of its channels."""
        layers = {reader.tensor: reader.axis for reader in (*self.readers, *self.summed)}
        return layers | {bound.tensor: bound.axis for bound in self.bounds}

    def scale(self, factors: F64) -> dict[str, str] | None:
        """Multiplies channels by ``factors: [channels]``; readers divide.

        Factors are positive; where a node is added they may be 0, and the channel goes past the readers in float.
        Returns the names of nodes that were added and must stay float, and what they are there for; None, and nothing
        changed, where a weight or bias would leave the range of float32.
        """
        kept = factors > 0
        inverse = np.divide(1.0, factors, out=np.zeros_like(factors), where=kept)
        changes: list[Change | Columns | None] = [reader.divided(inverse) for reader in self.readers]
        changes += [rescaled_output(layer, factors, np.zeros(factors.size)) for layer in self.layers]
        if any(change is None for change in changes):
            return None
        linear = [reader.linear for reader in self.readers if reader.linear is not None]
        added = {} if kept.all() else take_out(linear, np.flatnonzero(~kept))
        for change in changes:
            if change is not None:
                change.store(label="equalized")
        for node, index in self.constants:
            value, array = node.inputs[index], float_constant(node.inputs[index])
            if value is not None and array is not None:
                scaled = (array * factors).astype(np.float32)
                set_input(node, index, new_constant(owner(node), scaled, name=f"{value.name}_equalized"))
        for bound in self.bounds:  # nothing reaches it: it must only not cut off more than it did
            largest = float(spread(factors, bound.of)[bound.of >= 0].max())
            end = np.asarray(min(bound.ceiling * largest, np.finfo(np.float32).max), np.float32)
            name = f"{bound.node.name}_equalized_end"
            set_input(bound.node, _END, new_constant(owner(bound.node), end, name=name))
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
