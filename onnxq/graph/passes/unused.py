"""Nodes and initializers that no output needs."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import is_op

# Operators whose later outputs may be left away (for BatchNormalization their number meant training until 13).
_OPTIONAL_OUTPUTS = ("MaxPool", "Dropout", "LSTM", "GRU", "RNN", "LayerNormalization")


def remove_unused(model: ir.Model) -> int:
    """Removes nodes and initializers that no output needs, in all graphs; inputs stay. Returns how many."""
    count = 0
    graphs = tuple(all_graphs(model))
    for graph in reversed(graphs):  # bodies first: what they no longer read may become unused outside
        count += _nodes(graph)
    for graph in all_graphs(model):
        for name, value in tuple(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                graph.initializers.pop(name)
                count += 1
    return count


def _nodes(graph: ir.Graph) -> int:
    count = 0
    for node in reversed(tuple(graph)):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            count += _trim_outputs(node)
            continue
        for attribute in node.attributes.values():
            for body in _bodies(attribute):  # release what the bodies read from outside
                _clear(body)
        graph.remove(node, safe=True)
        count += 1
    return count


def _trim_outputs(node: ir.Node) -> int:
    """Drops optional outputs that nobody reads from the end of ``node``: runtimes have faster kernels without them."""
    keep = len(node.outputs)
    if not is_op(node, *_OPTIONAL_OUTPUTS):
        return 0
    while keep > 1 and not node.outputs[keep - 1].uses() and not node.outputs[keep - 1].is_graph_output():
        keep -= 1
    dropped = len(node.outputs) - keep
    if dropped:
        node.resize_outputs(keep)
    return dropped


def _bodies(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()


def _clear(graph: ir.Graph) -> None:
    graph.outputs.clear()
    for node in reversed(tuple(graph)):
        for attribute in node.attributes.values():
            for body in _bodies(attribute):
                _clear(body)
        graph.remove(node, safe=True)
