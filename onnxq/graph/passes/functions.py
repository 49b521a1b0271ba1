"""Model-local functions."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxq.errors import ModelError, one_line

# Calls may make so many nodes, or so many times those that the file spells out; they multiply where functions call each
# other.
MOST_NODES, MOST_TIMES = 50_000, 20


def inline_functions(model: ir.Model, notes: list[str]) -> int:
    """Replaces calls of model-local functions by their bodies; returns how many functions went.

    ``notes``: gets a word on it where that is not possible and they stay.
    """
    count = len(model.functions)
    if not count:
        return 0
    _check_growth(model)
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


def _check_growth(model: ir.Model) -> None:
    """Raises ``ModelError`` where the bodies of functions would make far more nodes than there are in the file."""
    found: dict[ir.OperatorIdentifier, int] = {}

    def expanded(nodes: Iterable[ir.Node], above: tuple[ir.OperatorIdentifier, ...]) -> int:
        total = 0
        for node in nodes:
            name = node.op_identifier()
            function = model.functions.get(name)
            if function is None or name in above:  # recursion is refused where functions are inlined
                total += 1
                continue
            if name not in found:
                found[name] = expanded(function.all_nodes(), (*above, name))
            total += found[name]
        return total

    spelled = sum(1 for _ in model.graph.all_nodes()) + sum(1 for f in model.functions.values() for _ in f.all_nodes())
    try:
        total = expanded(model.graph.all_nodes(), ())
    except RecursionError as error:
        raise ModelError("the model's functions call each other too deeply", hint="export it without them") from error
    if total > max(MOST_NODES, MOST_TIMES * spelled):
        raise ModelError(
            f"the model's functions expand to {total:.3g} nodes, and the file spells out {spelled}",
            hint="check where the model comes from, or export it without functions",
        )
