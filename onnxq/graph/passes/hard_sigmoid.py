"""Every spelling of HardSwish and HardSigmoid as HardSigmoid, with a Mul behind it: two nodes that integers take.

    HardSwish(x)                          x * HardSigmoid(x)
    y * Clip(x + c, 0, d) / d             y * HardSigmoid(x; 1/d, c/d)
    Clip(x + c, 0, d) / d                 HardSigmoid(x; 1/d, c/d)

onnxruntime has no kernel for HardSwish and computes it just so; the longer spellings pass over the tensor up to twice
more. The numbers stay the same within rounding.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import (
    Array,
    float_constant,
    is_op,
    label,
    owner,
    rank,
    sole_consumer,
    supersede,
)
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.graph.passes.affine import read_affine

# How far a factor may be from the reciprocal of the upper end: 1/6 is written with seven digits at times.
_SAME = 1e-6


def spell_hard_sigmoid(model: ir.Model) -> int:
    """Rewrites what computes HardSwish or HardSigmoid in another way; returns how many."""
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if is_op(node, "HardSwish") and node.inputs[0] is not None:
                gate = _gate(node, node.inputs[0], 1 / 6, 0.5)
                _multiplied(node, node.inputs[0], gate)
                count += 1
            elif is_op(node, "Clip"):
                count += _from_clip(node)
    return count


def _from_clip(clip: ir.Node) -> bool:
    low, high = (_scalar(clip.inputs[i]) if i < len(clip.inputs) else None for i in (1, 2))
    shifted = None if clip.inputs[0] is None else _shifts(clip.inputs[0].producer())
    if low != 0.0 or high is None or high <= 0.0 or shifted is None:
        return False
    x, offset = shifted
    if sole_consumer(clip.inputs[0]) is not clip:  # type: ignore[arg-type]
        return False
    reader, other = sole_consumer(clip.outputs[0]), None
    if reader is not None and is_op(reader, "Mul"):
        factor = next((v for v in reader.inputs if v is not clip.outputs[0]), None)
        if factor is not None and float_constant(factor) is None:
            other, reader = factor, sole_consumer(reader.outputs[0])
    if reader is None or not _divides(reader, high):
        return False
    # Right before the last node: all that it reads is computed by then.
    gate = _gate(reader, x, 1 / high, offset / high)
    if other is None:
        supersede(reader.outputs[0], gate)
        owner(reader).remove(reader, safe=True)
    else:
        _multiplied(reader, other, gate)
    return True


def _gate(before: ir.Node, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    name = f"{label(before)}_gate"
    return NodeBuilder(Before(before))("HardSigmoid", [x], name=name, like=x, alpha=alpha, beta=beta)


def _multiplied(old: ir.Node, x: ir.Value, gate: ir.Value) -> None:
    """Puts ``x * gate`` in the place of ``old``."""
    product = NodeBuilder(Before(old)).node("Mul", [x, gate], name=f"{label(old)}_gated", like=old.outputs[0])
    supersede(old.outputs[0], product.outputs[0])
    owner(old).remove(old, safe=True)
    product.name = old.name


def _shifts(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """What ``node`` adds a number to, and the number."""
    found = None if node is None or not is_op(node, "Add") else read_affine(node)
    number = None if found is None else _number(found.shift, found.source)
    return None if found is None or number is None else (found.source, number)


def _divides(node: ir.Node, by: float) -> bool:
    """Whether ``node`` divides by the number ``by``, or multiplies by one over it."""
    found = read_affine(node) if is_op(node, "Div", "Mul") else None
    factor = None if found is None else _number(found.scale, found.source)
    return factor is not None and abs(factor * by - 1) <= _SAME


def _number(array: Array, beside: ir.Value) -> float | None:
    """The number that a constant holds, if it adds no dimension to what is ``beside`` it."""
    dims = rank(beside)
    fits = array.size == 1 and (array.ndim == 0 or (dims is not None and array.ndim <= dims))
    return float(array.item()) if fits else None


def _scalar(value: ir.Value | None) -> float | None:
    data = float_constant(value)
    return float(data.item()) if data is not None and data.size == 1 else None
