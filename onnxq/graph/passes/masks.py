"""Masks added to attention scores hide what they mask for good, so that no attention weight is subnormal.

A mask of -100 leaves the masked an attention weight of ``exp(-100)``, about 4e-44. That is less than float32's rounding
of the sum it enters, and yet not zero but a *subnormal* number, with which a CPU multiplies some hundred times slower:
two thirds of the time of Swin's products of attention and values. With -10000 in its place the weight is zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import float_constant, integer, is_op, new_constant, owner, rank

# exp(-80) is 2e-35, a few times the least normal number: weights of scores up to that far below their row's largest may
# be subnormal. Scores that differ by less than 80 - 17 among themselves still cannot bring the masked back to notice.
_HIDES = -80.0
_LIFTS = 40.0  # added to a mask, a constant as large could bring the masked back
HIDDEN = -1e4
_MOVES = ("Reshape", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Tile", "Slice", "Identity", "Flatten")
_DEPTH = 24


def deepen_masks(model: ir.Model) -> int:
    """Puts ``HIDDEN`` in the place of constants at or below -80 that are added to what Softmax reads; returns how many.

    A constant is reached through Add, Where and operators that only move numbers; a copy is changed, so that other
    readers keep theirs. Arrays are changed only if each of their rows keeps a number above -80.
    """
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if is_op(node, "Softmax") and _over_rows(node) and node.inputs[0] is not None:
                sources = list(_sources(node.inputs[0].producer(), _DEPTH))
                if all(_largest(reader, index) < _LIFTS for reader, index in sources):
                    count += sum(_deepen(reader, index) for reader, index in sources)
    return count


def _over_rows(node: ir.Node) -> bool:
    axis, dims = integer(node, "axis", -1), rank(node.inputs[0])
    return axis == -1 or (dims is not None and axis == dims - 1)


def _sources(node: ir.Node | None, depth: int) -> Iterator[tuple[ir.Node, int]]:
    """(reader, index of the input) of all constants whose numbers are part of the sum that ``node`` ends."""
    if node is None or depth == 0:
        return
    if is_op(node, "Add"):
        carried: tuple[int, ...] = (0, 1)
    elif is_op(node, "Where"):
        carried = (1, 2)
    elif is_op(node, *_MOVES):
        carried = (0,)
    else:
        return
    for index in carried:
        value = node.inputs[index]
        if float_constant(value) is not None:
            yield node, index
        elif value is not None:
            yield from _sources(value.producer(), depth - 1)


def _largest(reader: ir.Node, index: int) -> float:
    array = float_constant(reader.inputs[index])
    return 0.0 if array is None or array.size == 0 else float(array.max())


def _deepen(reader: ir.Node, index: int) -> bool:
    value = reader.inputs[index]
    array = float_constant(value)
    if value is None or array is None:
        return False
    hides = (array <= _HIDES) & (array > HIDDEN)
    if not hides.any() or (array.size > 1 and (array.max(axis=-1) <= _HIDES).any()):
        return False
    changed = np.where(hides, array.dtype.type(HIDDEN), array)
    reader.replace_input_with(index, new_constant(owner(reader), changed, name=f"{value.name}_deep"))
    return True
