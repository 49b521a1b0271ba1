"""Which nodes end a pattern that onnxruntime runs as one kernel in float: folding them away would cost that kernel.

GELU ends in a factor 1/2 and a layer normalisation in its gain and offset. Both are affine, and folded into the next
MatMul they would leave four to eight passes over the tensor where there was one.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.edit import float_constant, is_op


def completes_fusion(node: ir.Node) -> bool:
    """Whether ``node`` is the last factor of a GELU (with erf or tanh), or gain or offset of a layer normalisation."""
    return _ends_gelu(node) or _ends_layer_norm(node)


def _ends_gelu(node: ir.Node) -> bool:
    """``node`` is ``0.5 * (x * (1 + f(...)))``, with f erf or tanh."""
    inner = _other_than_constant(node, 0.5)
    return is_op(node, "Mul") and is_op(inner, "Mul") and any(_one_plus(v) for v in _inputs(inner))


def _one_plus(value: ir.Value | None) -> bool:
    add = None if value is None else value.producer()
    inner = _other_than_constant(add, 1.0)
    return is_op(add, "Add") and is_op(inner, "Erf", "Tanh")


def _ends_layer_norm(node: ir.Node) -> bool:
    """``node`` is ``(x - mean) / sqrt(variance + epsilon)`` times a gain, or that plus an offset."""
    if is_op(node, "Add"):
        gain = _other_than_constant(node)
        return gain is not None and is_op(gain, "Mul") and _ends_layer_norm(gain)
    division = _other_than_constant(node)
    if not is_op(node, "Mul") or division is None or not is_op(division, "Div"):
        return False
    above, below = (None if v is None else v.producer() for v in division.inputs)
    return is_op(above, "Sub") and is_op(below, "Sqrt")


def _other_than_constant(node: ir.Node | None, wanted: float | None = None) -> ir.Node | None:
    """What computes the input of ``node`` that is no constant; the constant one, if ``wanted``, must be that number."""
    values = _inputs(node)
    if len(values) != 2:
        return None
    for value, other in (values, values[::-1]):
        number = float_constant(value)
        if number is not None and (wanted is None or (number.size == 1 and number.item() == wanted)):
            return None if other is None else other.producer()
    return None


def _inputs(node: ir.Node | None) -> list[ir.Value | None]:
    return [] if node is None else list(node.inputs)
