"""The order of nodes."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.errors import ModelError


def sort_nodes(model: ir.Model) -> int:
    """Sorts nodes, bodies too, so that each comes after what it reads; returns 0. Raises ModelError on a cycle."""
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError("the model's graph has a cycle; the file is damaged, export it again") from error
    return 0
