"""One name for each node and each value, across all graphs of a model."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.copying import all_graphs


def unique_names(model: ir.Model) -> int:
    """Names what has no name and renames what shares one with something in an outer or earlier graph; returns how many.

    Inputs and outputs of the main graph keep their names always, other things where they can. Then a name alone
    identifies a tensor, also one inside an If/Loop body.
    """
    graphs = tuple(all_graphs(model))
    count = 0
    fixed = [v for v in (*model.graph.inputs, *model.graph.outputs) if v.name]
    taken = {value.name for value in fixed if value.name}
    done = {id(value) for value in fixed}
    existing = {value.name for graph in graphs for value in _values(graph) if value.name}
    suffix: dict[str, int] = {}
    for graph in graphs:
        for value in _values(graph):
            if id(value) in done:
                continue
            done.add(id(value))
            name = _free(value.name or "", _guess(value), taken, existing, suffix)
            if name != value.name:
                rename(value, name)
                count += 1
    nodes: set[str] = set()
    existing = {node.name for graph in graphs for node in graph if node.name}
    suffix = {}
    for graph in graphs:
        for node in graph:
            name = _free(node.name or "", f"{node.op_type}_{_first_output(node)}", nodes, existing, suffix)
            if name != node.name:
                node.name = name
                count += 1
    return count


def tell_apart(model: ir.Model) -> int:
    """Renames nodes that have the name of another one, which onnxruntime refuses though it means nothing.

    Returns how many. Raises ``ModelError`` where two inputs have one name.
    """
    inputs = Counter(value.name for value in model.graph.inputs)
    if twice := [name for name, count in inputs.items() if count > 1]:
        raise ModelError(
            f"the model has two inputs called {twice[0]!r}, so that one could not be fed",
            hint="rename one of them, and what reads it, or export the model again",
        )
    graphs = tuple(all_graphs(model))
    existing = {node.name for graph in graphs for node in graph if node.name}
    taken: set[str] = set()
    suffix: dict[str, int] = {}
    count = 0
    for graph in graphs:
        for node in graph:
            if node.name:
                name = _free(node.name, "", taken, existing, suffix)
                count += name != node.name
                node.name = name
    return count


def rename(value: ir.Value, name: str) -> None:
    """Renames ``value`` whatever it is; a graph never holds two values of one name in between."""
    graph = value.graph if value.is_initializer() else None
    if graph is not None and value.name is not None:
        graph.initializers.pop(value.name)
        value.name = name
        graph.initializers.add(value)
    else:
        value.name = name


def _values(graph: ir.Graph) -> list[ir.Value]:
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        # An empty name marks an optional output that is not computed.
        values += [v for v in node.outputs if v.name or v.uses() or v.is_graph_output() or len(node.outputs) == 1]
    return values


def _guess(value: ir.Value) -> str:
    producer = value.producer()
    return "value" if producer is None else f"{producer.name or producer.op_type}_output"


def _first_output(node: ir.Node) -> str:
    return (node.outputs[0].name if node.outputs else None) or "0"


def _free(name: str, otherwise: str, taken: set[str], existing: set[str], suffix: dict[str, int]) -> str:
    """``name`` if it is free, else a new one that nothing has, nor ever had: not even what is still to be visited."""
    base = free = name or otherwise
    while free in taken or (free != name and free in existing):
        suffix[base] = suffix.get(base, 0) + 1
        free = f"{base}_{suffix[base]}"
    taken.add(free)
    return free
