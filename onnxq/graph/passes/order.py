"""The order of nodes."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.errors import ModelError


def sort_nodes(model: ir.Model) -> int:
    """Sorts nodes, bodies too, so that each comes after what it reads; returns how many stand elsewhere now.

    Raises:
        ModelError: the graph has a cycle.
    """
    before = list(model.graph.all_nodes())
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError("the model's graph has a cycle; the file is damaged, export it again") from error
    return sum(old is not new for old, new in zip(before, model.graph.all_nodes(), strict=True))
