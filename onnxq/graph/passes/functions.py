"""Model-local functions."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxq.errors import one_line


def inline_functions(model: ir.Model, notes: list[str]) -> int:
    """Replaces calls of model-local functions by their bodies; returns how many functions went.

    ``notes``: gets a word on it where that is not possible and they stay.
    """
    count = len(model.functions)
    if not count:
        return 0
    names = ", ".join(sorted({function.name for function in model.functions.values()})[:5])
    for function in model.functions.values():
        if any(
            model.opset_imports.get(domain, version) != version for domain, version in function.opset_imports.items()
        ):
            notes.append(f"functions kept ({names}): {function.name} uses another opset than the model")
            return 0
    try:
        InlinePass()(model)
    except Exception as error:  # recursion, unknown opsets: the model is still whole, functions just stay closed
        notes.append(f"functions kept ({names}): {one_line(error)}")
        return 0
    if not any(node.op_identifier() in model.functions for node in model.graph.all_nodes()):
        model.functions.clear()  # what is left, nobody calls
    return count
