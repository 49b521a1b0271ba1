"""What stands behind each output of a model: the operator that says what its numbers are."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.edit import is_constant
from onnxq.kernels.meaning import Head, meaning, passes
from onnxq.kernels.operators import operator


def heads(model: ir.Model) -> dict[str, Head]:
    """By name of each output, what stands behind it."""
    tokens = _tokens(model.graph)
    found: dict[str, Head] = {}
    for value in model.graph.outputs:
        node = _behind(value)
        op = "" if node is None else node.op_type
        found[value.name or ""] = Head(op, meaning(op), tokens)
    return found


def _behind(value: ir.Value) -> ir.Node | None:
    """The first node behind ``value`` that does more than moving numbers; None where an input or a body does."""
    seen = set[ir.Value]()
    while value not in seen:
        seen.add(value)
        node = value.producer()
        if node is None:
            return None
        computed = [v for v in node.inputs if v is not None and not is_constant(v)]
        if not computed or not passes(node.op_type, constant=len(computed) == 1):
            return node
        value = computed[0]
    return None


def _tokens(graph: ir.Graph) -> frozenset[int]:
    """How many rows those tables have in which integer inputs of ``graph`` are looked up."""
    found = set[int]()
    for value in graph.inputs:
        if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            continue
        for use in value.uses():
            table = use.node.inputs[0]
            looked_up = use.idx == 1 and operator(use.node).gathered
            if looked_up and table is not None and table.shape is not None and isinstance(table.shape[0], int):
                found.add(table.shape[0])
    return frozenset(found)
