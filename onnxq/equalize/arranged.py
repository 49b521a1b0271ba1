"""Where channels are in a tensor, and where they go when it is turned, reshaped or joined with others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.edit import integer, integers, rank
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Arrangement

Indices = npt.NDArray[np.intp]
# Of what is none of the channels.
OTHER = -1


@dataclass(frozen=True, eq=False)
class Marks:
    """Channels along an ``axis`` of a tensor, counted from either end: ``of`` tells the channel of each index on it.

    Indices that belong to other channels have ``OTHER``.
    """

    axis: int
    of: Indices

    @property
    def channels(self) -> int:
        """Indices along the axis."""
        return len(self.of)

    @property
    def whole(self) -> bool:
        """Whether each channel is there once, in order, and nothing else."""
        return np.array_equal(self.of, np.arange(len(self.of)))

    def on(self, axis: int, width: int | None) -> bool:
        """Whether that is ``axis`` of a tensor of the rank ``width`` (None: not known)."""
        return self.axis == axis or (width is not None and self.axis % width == axis % width)

    def merged(self, other: Marks, width: int | None) -> Marks | None:
        """Both marks of one tensor of rank ``width``; None where they contradict each other."""
        if not other.on(self.axis, width) or len(self.of) != len(other.of):
            return None
        both = (self.of != OTHER) & (other.of != OTHER)
        if not np.array_equal(self.of[both], other.of[both]):
            return None
        return Marks(self.axis, np.maximum(self.of, other.of))


def passed(node: ir.Node, marks: Marks) -> Marks | None:
    """The marks of what ``node`` makes of a tensor with ``marks``; None where it takes channels apart."""
    which, width = operator(node).arrangement, rank(node.inputs[0])
    if which is None or width is None:
        return None
    axis = marks.axis % width
    if which is Arrangement.TURNED:
        order = integers(node, "perm") or tuple(reversed(range(width)))
        return Marks(order.index(axis), marks.of)
    source, out = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or out.shape is None:
        return None
    return reshaped(list(source.shape), list(out.shape), Marks(axis, marks.of))


def reshaped(old: Sequence[object], new: Sequence[object], marks: Marks) -> Marks | None:
    """The marks of a tensor of shape ``old`` once it has the shape ``new``; None where an index holds several channels.

    Dimensions are numbers or names. Those that end both shapes change nothing, whatever they are.
    """
    behind, tail = list(old[marks.axis + 1 :]), list(new)
    while behind and tail and _known(behind[-1]) and behind[-1] == tail[-1]:
        behind.pop()
        tail.pop()
    inner = _product(behind)
    if inner is None:
        return None
    # Element f of the part from the channels on belongs to channel f // inner.
    period, step = len(marks.of) * inner, 1
    for axis in reversed(range(len(tail))):
        size = tail[axis]
        if not isinstance(size, int) or step > inner or inner % step:
            return None
        if size * step % period == 0:
            return Marks(
                -1 if axis == len(new) - 1 else axis, marks.of[np.arange(size) * step // inner % len(marks.of)]
            )
        step *= size
    return None


def joined(node: ir.Node, marks: Mapping[ir.Value, Marks]) -> Marks | None:
    """The marks of the concatenation ``node``, as far as those of its operands are known.

    None where it joins along another axis than that of the channels, or the place of some is not known.
    """
    width = rank(node.outputs[0])
    parts: list[Indices] = []
    if width is None:
        return None
    axis = integer(node, "axis", 0) % width
    for value in node.inputs:
        if value is None:
            return None
        known = marks.get(value)
        size = None if value.shape is None else value.shape[axis]
        if known is not None and known.on(axis, width):
            parts.append(known.of)
        elif known is None and isinstance(size, int):
            parts.append(np.full(size, OTHER))
        else:
            return None
    return Marks(axis, np.concatenate(parts))


def _known(dimension: object) -> bool:
    """Whether a dimension is a number or has a name."""
    return isinstance(dimension, int) or getattr(dimension, "value", None) is not None


def _product(sizes: Sequence[object]) -> int | None:
    numbers = [size for size in sizes if isinstance(size, int)]
    return math.prod(numbers) if len(numbers) == len(sizes) else None
