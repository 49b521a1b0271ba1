"""What depends on what, through the bodies of If, Loop and Scan too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxq.query import attribute, nodes

Edge = tuple["ir.Value | None", "ir.Value | None"]


def downstream(model: ir.Model, values: Iterable[ir.Value | None]) -> set[ir.Value]:
    """``values`` and all that is computed from them."""
    return _reached(values, _neighbours(_edges(model)))


def upstream(model: ir.Model, values: Iterable[ir.Value | None]) -> set[ir.Value]:
    """``values`` and all that they are computed from."""
    return _reached(values, _neighbours((target, source) for source, target in _edges(model)))


def _edges(model: ir.Model) -> Iterator[Edge]:
    """(a value, what is computed from it): within nodes, into bodies, out of them, and on to the next iteration."""
    for node in nodes(model):
        yield from ((source, target) for source in node.inputs for target in node.outputs)
        for attr in node.attributes.values():
            if attr.type != ir.AttributeType.GRAPH:
                continue
            body = attr.as_graph()
            given, results = list(body.inputs), list(body.outputs)
            yield from zip(node.inputs, given, strict=False)  # an If has none of a body's own
            if node.op_type == "Loop":  # the iteration's number and the condition come first, and a condition goes out
                given, results = given[2:], results[1:]
            yield from zip(results, node.outputs, strict=False)
            states = len(given) - attribute(node, "num_scan_inputs", 0)
            yield from zip(results[:states], given, strict=False)


def _neighbours(edges: Iterable[Edge]) -> dict[ir.Value, list[ir.Value]]:
    found: dict[ir.Value, list[ir.Value]] = {}
    for one, other in edges:
        if one is not None and other is not None:
            found.setdefault(one, []).append(other)
    return found


def _reached(start: Iterable[ir.Value | None], neighbours: Mapping[ir.Value, Sequence[ir.Value]]) -> set[ir.Value]:
    waiting = [value for value in start if value is not None]
    reached = set(waiting)
    while waiting:
        for value in neighbours.get(waiting.pop(), ()):
            if value not in reached:
                reached.add(value)
                waiting.append(value)
    return reached
