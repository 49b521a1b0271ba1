"""If with a known condition becomes the branch that it takes."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import constant, is_op, owner, redirect


def fold_if(model: ir.Model) -> int:
    """Moves the branch that an If with a constant condition takes into the graph around it; returns how many.

    Needs unique names. Left: an If whose result is a graph output.
    """
    count = 0
    for graph in tuple(all_graphs(model)):
        for node in tuple(graph):
            if not is_op(node, "If") or any(value.is_graph_output() for value in node.outputs):
                continue
            condition = constant(node.inputs[0])
            branch = node.attributes.get("then_branch" if condition is not None and condition.all() else "else_branch")
            if condition is not None and condition.size == 1 and branch is not None:
                _inline(node, branch.as_graph())
                count += 1
    return count


def _inline(node: ir.Node, branch: ir.Graph) -> None:
    graph, results = owner(node), tuple(branch.outputs)
    for name, value in tuple(branch.initializers.items()):
        branch.initializers.pop(name)
        graph.register_initializer(value)
    branch.outputs.clear()
    for inner in tuple(branch):
        branch.remove(inner)
        graph.insert_before(node, inner)
    for output, result in zip(node.outputs, results, strict=True):
        redirect(output, result)
    graph.remove(node, safe=True)
