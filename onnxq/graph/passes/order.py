"""The order of nodes."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.errors import ModelError


def sort_nodes(model: ir.Model) -> int:
    """Sorts nodes, bodies too, so that each comes after what it reads; returns how many stand elsewhere now.

    Raises:
        ModelError: the graph has a cycle.
    """
    if _sorted(model):
        return 0
    before = list(model.graph.all_nodes())
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError("the model's graph has a cycle; the file is damaged, export it again") from error
    return sum(old is not new for old, new in zip(before, model.graph.all_nodes(), strict=True))


def _sorted(model: ir.Model) -> bool:
    """Whether nothing reads what comes later: so it is in nearly all files, and seeing that takes less than sorting."""
    made: set[ir.Value] = set()
    for node in model.graph:
        if any(v is not None and v not in made and v.producer() is not None for v in node.inputs):
            return False
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return False  # sorting knows what bodies read from outside
        made.update(node.outputs)
    return True
