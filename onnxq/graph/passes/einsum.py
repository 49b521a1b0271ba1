"""Einsum with a constant matrix as MatMul, which has an integer kernel: dense layers as Keras spells them.

    x [batch.., k..], W: batch.. k.. , k.. n.. -> batch.. n..

with the axes of W in any order. Several axes of k or n become one for the product. The numbers stay the same within
rounding.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import float_constant, is_op, label, owner, supersede, text
from onnxq.graph.nodes import Before, NodeBuilder


def spell_einsum(model: ir.Model) -> int:
    """Rewrites the Einsum nodes that are products with a constant matrix; returns how many."""
    return sum(_as_matmul(node) for graph in all_graphs(model) for node in tuple(graph) if is_op(node, "Einsum"))


def _as_matmul(node: ir.Node) -> bool:
    terms = _terms(text(node, "equation", ""))
    if terms is None or len(node.inputs) != 2:
        return False
    (left, right), result = terms
    x, w = node.inputs
    if float_constant(x) is not None:
        x, w, left, right = w, x, right, left
    weight = float_constant(w)
    if x is None or weight is None or weight.ndim != len(right):
        return False
    summed = [axis for axis in left if axis in right]
    batch = left[: len(left) - len(summed)]
    made = result[len(batch) :]
    if left != [*batch, *summed] or result != [*batch, *made] or sorted(right) != sorted([*summed, *made]):
        return False
    if not summed or not made or len(set(left)) != len(left) or len(set(result)) != len(result) or not batch:
        return False
    size = dict(zip(right, weight.shape, strict=True))
    order = [right.index(axis) for axis in (*summed, *made)]
    inner, outer = (math.prod(size[axis] for axis in axes) for axes in (summed, made))
    build, name = NodeBuilder(Before(node)), label(node)
    matrix = build.constant(weight.transpose(order).reshape(inner, outer), f"{name}_weight")
    if len(summed) > 1:
        shape = build.constant(np.array([0] * len(batch) + [inner], np.int64), f"{name}_rows")
        x = build("Reshape", [x, shape], name=f"{name}_joined")
    y = build("MatMul", [x, matrix], name=f"{name}_product")
    if len(made) > 1:
        dims = [0] * len(batch) + [size[axis] for axis in made]
        shape = build.constant(np.array(dims, np.int64), f"{name}_shape")
        y = build("Reshape", [y, shape], name=f"{name}_parted")
    y.type, y.shape = node.outputs[0].type, node.outputs[0].shape
    supersede(node.outputs[0], y)
    owner(node).remove(node, safe=True)
    return True


def _terms(equation: str) -> tuple[tuple[list[str], list[str]], list[str]] | None:
    """The axes of two operands and of the result; None for other numbers of operands, and for ellipses."""
    sides = equation.replace(" ", "").split("->")
    operands = sides[0].split(",")
    if len(sides) != 2 or len(operands) != 2 or "." in equation:
        return None
    return (list(operands[0]), list(operands[1])), list(sides[1])
