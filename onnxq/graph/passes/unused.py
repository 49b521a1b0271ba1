"""Nodes and initializers that no output needs."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.copying import all_graphs


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
            continue
        for attribute in node.attributes.values():
            for body in _bodies(attribute):  # release what the bodies read from outside
                _clear(body)
        graph.remove(node, safe=True)
        count += 1
    return count


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
