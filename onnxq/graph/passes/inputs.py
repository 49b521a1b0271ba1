"""Initializers that are listed as graph inputs."""

from __future__ import annotations

import onnx_ir as ir


def remove_initializers_from_inputs(model: ir.Model, notes: list[str]) -> int:
    """Makes initializers that are also inputs plain constants; returns how many, and names some in ``notes``.

    Before IR version 4 every initializer had to be an input; since then such a one is a default that a caller may
    override, which a weight of a quantized model cannot be. Bodies are left: their inputs go by position.
    """
    held = {id(value) for value in model.graph.initializers.values()}
    removed = [value.name or "" for value in model.graph.inputs if id(value) in held]
    kept = [value for value in model.graph.inputs if id(value) not in held]
    if removed:
        model.graph.inputs.clear()
        model.graph.inputs.extend(kept)
        some = ", ".join(removed[:3]) + (", ..." if len(removed) > 3 else "")
        notes.append(f"{len(removed)} initializers listed as inputs are constants now ({some})")
    return len(removed)
