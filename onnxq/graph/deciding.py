"""Inputs whose values decide how a model computes, rather than being what it computes with."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.kernels.values import FIRST_SIZE, PASS_ON, PICKED

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def deciding_inputs(model: ir.Model) -> frozenset[str]:
    """The names of integer and boolean inputs that are more than indices and masks: sizes, steps, axes, conditions.

    Where it cannot be told, an input is among them.
    """
    found = set[str]()
    for given in model.graph.inputs:
        if given.dtype in _FLOATS or not given.name or given.name in model.graph.initializers:
            continue
        if _decides(given, model.graph):
            found.add(given.name)
    return frozenset(found)


def _decides(given: ir.Value, graph: ir.Graph) -> bool:
    seen, waiting = {id(given)}, [given]
    while waiting:
        value = waiting.pop()
        for node, index in value.uses():
            picked = PICKED.get(node.op_type, ()) if node.domain in ("", "com.microsoft") else ()
            if picked is None or index in picked or _becomes_float(node):
                continue
            # What a body reads may be a state of it, which decides how often it runs.
            elsewhere = node.graph is not graph or node.domain != ""
            if elsewhere or node.op_type not in PASS_ON or index >= FIRST_SIZE.get(node.op_type, 1 << 30):
                return True
            for output in node.outputs:
                if id(output) not in seen:
                    seen.add(id(output))
                    waiting.append(output)
    return False


def _becomes_float(node: ir.Node) -> bool:
    to = node.attributes.get("to")  # of a Cast
    return to is not None and ir.DataType(to.as_int()) in _FLOATS
