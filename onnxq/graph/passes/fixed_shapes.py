"""Reshape and Resize by constants where only the batch is open, instead of a shape that is computed at every run.

Exporters spell ``x.view(b, n, h, -1)`` as Shape, Gather, Unsqueeze and Concat: some ten small nodes for every Reshape
of a transformer, though all they ever compute is the batch. ONNX's ``0`` (copy that dimension) and ``-1`` (whatever is
left) say the same in a constant. What ``-1`` stands for is also worked out, since onnx's own inference gives up on it
wherever the batch is a symbol.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import constant, integer, is_op, label, new_constant, owner, set_input

Dim: TypeAlias = "int | str | None"


def fix_shapes(model: ir.Model) -> int:
    """Makes the shapes of Reshape nodes constant, and known, where all but one dimension can be told; how many changed.

    Needs inferred shapes; works only in the main graph and bodies whose values have some.
    """
    count = 0
    for graph in all_graphs(model):
        for node in graph:
            if is_op(node, "Reshape") and len(node.inputs) == 2 and not integer(node, "allowzero", 0):
                count += _solve(node)
                count += _fix(node)
            elif is_op(node, "Resize"):
                count += _fix_resize(node)
    return count


def _solve(node: ir.Node) -> bool:
    """Works out the one unknown dimension of the output of ``node`` from the number of its elements."""
    given, wanted = _dims(node.inputs[0]), _dims(node.outputs[0])
    if given is None or wanted is None:
        return False
    unknown = [i for i, d in enumerate(wanted) if not isinstance(d, int) and d not in given]
    if len(unknown) != 1:
        return False
    rest = [d for i, d in enumerate(wanted) if i != unknown[0]]
    above, below = _split(given), _split(rest)
    if above is None or below is None or above[1] != below[1] or below[0] == 0 or above[0] % below[0]:
        return False
    dims: list[int | str | None] = list(wanted)
    dims[unknown[0]] = above[0] // below[0]
    node.outputs[0].shape = ir.Shape(dims)
    return True


def _split(dims: Sequence[Dim]) -> tuple[int, Counter[str]] | None:
    """The product of the numbers among ``dims``, and how often each symbol occurs; None where one has no name."""
    if any(d is None for d in dims):
        return None
    return math.prod(d for d in dims if isinstance(d, int)), Counter(d for d in dims if isinstance(d, str))


def _fix(node: ir.Node) -> bool:
    """Makes the shape of ``node`` a constant: numbers, 0 for a dimension that is copied, -1 for one other."""
    given, wanted = _dims(node.inputs[0]), _dims(node.outputs[0])
    if given is None or wanted is None or constant(node.inputs[1]) is not None or 0 in wanted:
        return False
    shape = [
        d if isinstance(d, int) else 0 if d is not None and i < len(given) and given[i] == d else -1
        for i, d in enumerate(wanted)
    ]
    if shape.count(-1) > 1:
        return False
    fixed = new_constant(owner(node), np.asarray(shape, np.int64), name=f"{label(node)}_shape")
    set_input(node, 1, fixed)
    return True


def _fix_resize(node: ir.Node) -> bool:
    """Enlarges by constant factors instead of to computed sizes: only the batch was computed, and it stays."""
    given, wanted = _dims(node.inputs[0]), _dims(node.outputs[0])
    if len(node.inputs) < 4 or node.inputs[3] is None or given is None or wanted is None or len(given) != len(wanted):
        return False
    if (
        constant(node.inputs[3]) is not None
        or _copied(node.inputs[3]) != given[:2]
        or not _numbers(given[2:], wanted[2:])
    ):
        return False
    factors = [b / a for a, b in zip(given[2:], wanted[2:], strict=True)]  # type: ignore[operator]
    if any(factor != int(factor) for factor in factors):
        return False  # the size is rounded from a factor
    scales = new_constant(owner(node), np.asarray([1, 1, *factors], np.float32), name=f"{label(node)}_scales")
    set_input(node, 2, scales)
    node.resize_inputs(3)
    node.outputs[0].shape = ir.Shape([*given[:2], *wanted[2:]])
    return True


def _copied(sizes: ir.Value) -> list[Dim] | None:
    """The dimensions of the tensor whose first two are the first two of ``sizes``: ``Concat(Slice(Shape(x)), ..)``."""
    concat = sizes.producer()
    head = (
        None
        if concat is None or not is_op(concat, "Concat") or concat.inputs[0] is None
        else concat.inputs[0].producer()
    )
    if head is None or not is_op(head, "Slice") or len(head.inputs) < 3 or head.inputs[0] is None:
        return None
    starts, ends = constant(head.inputs[1]), constant(head.inputs[2])
    steps = constant(head.inputs[4]) if len(head.inputs) > 4 and head.inputs[4] is not None else np.ones(1)
    shape = head.inputs[0].producer()
    if (
        starts is None
        or ends is None
        or steps is None
        or shape is None
        or not is_op(shape, "Shape")
        or shape.attributes
    ):
        return None
    dims = _dims(shape.inputs[0])
    plain = starts.tolist() == [0] and ends.tolist() == [2] and steps.tolist() == [1]
    return dims[:2] if plain and dims is not None and None not in dims[:2] else None


def _numbers(*groups: Sequence[Dim]) -> bool:
    return all(isinstance(d, int) and d > 0 for dims in groups for d in dims)


def _dims(value: ir.Value | None) -> list[Dim] | None:
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]
