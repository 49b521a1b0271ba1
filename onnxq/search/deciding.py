"""The layers that can go back to float so that outputs get the length that they have in the float model."""

from __future__ import annotations

from onnxq.build.candidate import Built
from onnxq.graph.lengths import ValueLengths
from onnxq.graph.linear import multiply_accumulates
from onnxq.plan.place import tensor_shapes
from onnxq.query import nodes
from onnxq.search.acceptance import DECIDING_WORK
from onnxq.search.attempt import Search


def cheap_deciding(built: Built, *, lengths: ValueLengths, search: Search) -> list[str]:
    """Layers of ``built`` that decide lengths and do little of its work, together: the nearest to the decision first.

    Before all others those that do nothing else.
    """
    feed = None if search.timed is None else next(iter(search.timed), None)
    if feed is None:
        return []
    graph = search.job.prepared
    shapes = tensor_shapes(graph, feed, search.job.folder)
    work = {node.name or "": multiply_accumulates(node, shapes) for node in nodes(graph)}
    layers = set(built.plan.layers)
    ordered = sorted((n for n in lengths.deciding if n in layers), key=lambda n: n not in lengths.only)
    budget = DECIDING_WORK * sum(work.values())
    found: list[str] = []
    for name in ordered:
        budget -= work[name]
        if budget < 0:
            break
        found.append(name)
    return found
