"""Inputs whose values decide how a model computes, rather than being what it computes with."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.edit import is_op

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# What makes integers of integers; what reads it decides.
_PASS_ON = (
    *("Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Concat", "Slice", "Expand", "Gather"),
    *("Add", "Sub", "Mul", "Neg", "Abs", "Min", "Max", "Clip", "Not", "And", "Or", "Xor", "Equal", "Greater", "Less"),
    *("GreaterOrEqual", "LessOrEqual", "Where", "Cast"),
)
# Of operators, the inputs whose values pick rows or are looked at, whatever they are; None: all of them.
_PICKED: dict[str, tuple[int, ...] | None] = {
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "EmbedLayerNormalization": None,
    "Shape": None,
    "Size": None,
    "Where": (0,),
    "ArgMax": (0,),
    "ArgMin": (0,),
}
# Of the operators that pass on: the inputs that are sizes and axes.
_SIZES = {"Unsqueeze": 1, "Squeeze": 1, "Reshape": 1, "Slice": 1, "Expand": 1}


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
            picked = _PICKED.get(node.op_type, ()) if node.domain in ("", "com.microsoft") else ()
            if picked is None or index in picked or _becomes_float(node):
                continue
            # What a body reads may be a state of it, which decides how often it runs.
            if node.graph is not graph or not is_op(node, *_PASS_ON) or index >= _SIZES.get(node.op_type, 1 << 30):
                return True
            for output in node.outputs:
                if id(output) not in seen:
                    seen.add(id(output))
                    waiting.append(output)
    return False


def _becomes_float(node: ir.Node) -> bool:
    to = node.attributes.get("to") if is_op(node, "Cast") else None
    return to is not None and ir.DataType(to.as_int()) in _FLOATS
