"""The tensors that carry the same channels, from the layers that write them to the layers that read them.

From what one layer writes, ``region`` follows the channels forward, through whatever lets a factor for each of them
pass, and backward where a sum or a concatenation brings in what other layers write: the residual stream of a network
whose blocks end in a linear layer is one region with many writers. Channels may end up in another order, several
times beside one another (maps made into rows), or beside channels of others: ``Marks.of`` tells which is which.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxq.equalize.arranged import Marks, joined, passed
from onnxq.graph.edit import float_constant, rank
from onnxq.graph.linear import Linear
from onnxq.kernels.operators import operator
from onnxq.kernels.ops import absorbed_ceiling
from onnxq.kernels.record import Arithmetic, Homogeneous
from onnxq.query import trailing_ones

# Tensors of a region: with more it would take long to find that some are read by others too.
_MOST = 2000
# What a layer reads the channels with, by (value, node that reads it, their marks); None: it is no such layer.
Reads = Callable[[ir.Value, ir.Node, Marks], bool]
# The layer that ends at a node and may multiply what it writes; None where there is none.
Writes = Callable[[ir.Node], Linear | None]


@dataclass
class Region:
    """What carries the same channels.

    | field     | meaning                                                                                          |
    |-----------|--------------------------------------------------------------------------------------------------|
    | `marks`   | by tensor, where the channels are in it                                                          |
    | `writers` | the layers that write them                                                                       |
    | `readers` | what reads them, and the tensor that each reads                                                  |
    | `bounds`  | by Clip from 0, its upper end                                                                    |
    | `shifts`  | constants for each channel that are added, as (node, input)                                      |
    """

    marks: dict[ir.Value, Marks] = field(default_factory=dict)
    writers: list[Linear] = field(default_factory=list)
    readers: list[tuple[ir.Node, ir.Value]] = field(default_factory=list)
    bounds: dict[ir.Node, float] = field(default_factory=dict)
    shifts: list[tuple[ir.Node, int]] = field(default_factory=list)


def region(
    value: ir.Value, axis: int, channels: int, reads: Reads, writes: Writes, *, refused: set[ir.Value] | None = None
) -> Region | None:
    """The region of ``value``, which carries ``channels`` on ``axis``; None where others write or read some of it.

    What writes ``value`` itself is left to the caller: it is among the ``writers`` only where it is such a layer.
    ``refused``: tensors in whose region something was in the way, to which those of this one are added if it is so
    here: whichever of its layers a stream is walked from, the same is met, so that one walk is enough.
    """
    walk = _Walk(reads, writes, value)
    if walk.from_(value, Marks(axis, np.arange(channels))):
        return walk.found
    if refused is not None:
        refused.update(walk.found.marks)
    return None


class _Walk:
    """A walk over the tensors of a region; methods return False where there is none."""

    def __init__(self, reads: Reads, writes: Writes, start: ir.Value) -> None:
        self.found = Region()
        self._reads, self._writes, self._start = reads, writes, start
        self._ahead: deque[ir.Value] = deque()
        self._through: set[ir.Node] = set()

    def from_(self, value: ir.Value, marks: Marks) -> bool:
        if not self._mark(value, marks):
            return False
        while self._ahead:
            value = self._ahead.popleft()
            if len(self.found.marks) > _MOST or not (self._behind(value) and self._before(value)):
                return False
        nodes = {node for node, _ in self.found.readers}
        return bool(nodes) and not nodes & {writer.node for writer in self.found.writers}

    def _mark(self, value: ir.Value, marks: Marks | None) -> bool:
        """``value`` is part of the region, with ``marks``: those it may have already must be the same."""
        if marks is None or value.is_graph_output():
            return False
        old = self.found.marks.get(value)
        if old is not None:
            marks = old.merged(marks, rank(value))
            if marks is None or np.array_equal(marks.of, old.of):
                return marks is not None
        self.found.marks[value] = marks
        self._ahead.append(value)
        return True

    def _behind(self, value: ir.Value) -> bool:
        """Everything that reads ``value``."""
        uses = tuple(value.uses())
        return bool(uses) and all(self._use(value, use.node, use.idx) for use in uses)

    def _use(self, value: ir.Value, node: ir.Node, index: int) -> bool:
        record, marks = operator(node), self.found.marks[value]
        if index == 0 and self._reads(value, node, marks):
            if (node, value) not in self.found.readers:
                self.found.readers.append((node, value))
            return True
        if not node.outputs or node.domain:
            return False
        out = node.outputs[0]
        self._through.add(node)
        if record.joins:
            return self._mark(out, joined(node, self.found.marks))
        if record.arithmetic is not None:
            other = node.inputs[1 - index]
            if record.arithmetic is Arithmetic.PRODUCT:
                return is_gate_of(other, value, marks.axis) and self._mark(out, marks)
            if other is None:
                return False
            if is_shift(other, value, marks.axis):
                if (node, 1 - index) not in self.found.shifts:
                    self.found.shifts.append((node, 1 - index))
                return marks.whole and self._mark(out, marks)
            alike = other.producer() is not None and _same_shape(value, other)
            return alike and self._mark(other, marks) and self._mark(out, marks)
        if index != 0:
            return False
        if self._scales(node, marks.axis):
            self._bound(node)
            return self._mark(out, marks)
        return self._mark(out, passed(node, marks))

    def _before(self, value: ir.Value) -> bool:
        """What makes ``value``, unless the region begins there."""
        node = value.producer()
        if value is self._start:
            if node is not None and (layer := self._writes(node)) is not None:
                self.found.writers.append(layer)
            return True
        if node is None:
            return False
        if node in self._through:
            return True  # an operand that brings in more is marked by ``_use``
        layer, marks = self._writes(node), self.found.marks[value]
        if layer is not None:
            self.found.writers.append(layer)
            return marks.whole and marks.channels == layer.channels and marks.on(layer.axis, rank(value))
        source = node.inputs[0] if node.inputs else None
        if node.domain or source is None:
            return False
        if operator(node).arithmetic is Arithmetic.SUM:
            return all(v is not None and v.producer() is not None and self._mark(v, marks) for v in node.inputs)
        if self._scales(node, marks.axis):
            self._bound(node)
            return self._mark(source, marks)
        return False

    def _scales(self, node: ir.Node, axis: int) -> bool:
        """Whether factors of channels on ``axis`` pass through ``node``, which has one input to scale."""
        which = operator(node).homogeneous
        of_channels = which is Homogeneous.CHANNELS and axis == 1 and len(node.outputs) == 1
        return which is Homogeneous.NUMBERS or of_channels or absorbed_ceiling(node) is not None

    def _bound(self, node: ir.Node) -> None:
        ceiling = absorbed_ceiling(node)
        if ceiling is not None and np.isfinite(ceiling):
            self.found.bounds[node] = ceiling


def places_of(value: ir.Value) -> int:
    """Axes of a map [N, C, ...] behind its channels."""
    return (rank(value) or 0) - 2


def is_gate_of(value: ir.Value | None, other: ir.Value, axis: int = 1) -> bool:
    """Whether ``value`` is a factor for each channel of the map ``other``: squeeze and excite.

    Its own path back to ``other`` begins with a pooling, which is among the readers of ``other`` by itself.
    """
    ones = value is not None and value is not other and axis == 1
    return ones and places_of(other) > 0 and trailing_ones(value, places_of(other))  # type: ignore[arg-type]


# A constant below this can be scaled by any factor and stay finite.
LIMIT = float(np.finfo(np.float32).max) / 2**12


def is_shift(value: ir.Value | None, other: ir.Value, axis: int = 1) -> bool:
    """Whether ``value`` is a constant for each channel, or one for all, of the map ``other``."""
    array, places = float_constant(value), places_of(other)
    if array is None or places < 1 or axis != 1 or array.ndim > places + 2:
        return False
    channels = array.shape[-places - 1] if array.ndim > places else 1
    return array.dtype == np.float32 and array.size == channels and np.abs(array).max(initial=0.0) < LIMIT


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether neither is widened where they are added."""
    return a.shape is not None and b.shape is not None and list(a.shape) == list(b.shape)
