"""Which format each weight is stored in: what rules say, what the configuration says, and the two ends of a model."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxq.config import Config
from onnxq.kernels import ops
from onnxq.kernels.held import held
from onnxq.kernels.operators import operator
from onnxq.query import constant, is_float, nodes
from onnxq.weights import WeightFormat, weight_format

# At and below so many bits the first and the last layers keep a format of their own: the first sees the input, which no
# layer before it has spread over channels, the last has no layer behind it that could average its noise out.
FEW_BITS = 4


def stored_formats(model: ir.Model, config: Config) -> dict[str, WeightFormat]:
    """By name of the node, the format of every weight that may be stored as integers."""
    weighted = {n.name or "": n for n in nodes(model) if _has_weight(n)}
    usual = weight_format(config.usual_weights)
    ends = first_and_last(model, weighted) if usual.bits <= FEW_BITS else frozenset()
    found = {}
    for name, node in weighted.items():
        ruled = config.weights_of(name, node.op_type)
        found[name] = weight_format(ruled) if ruled else weight_format(config.first_last) if name in ends else usual
    return found


def first_and_last(model: ir.Model, weighted: Mapping[str, ir.Node]) -> frozenset[str]:
    """The names among ``weighted`` that no other one lies before, and those that no other one lies behind."""
    order = list(nodes(model))
    before: set[int] = set()  # values that depend on a weighted node
    first = set()
    for node in order:
        depends = any(id(v) in before for v in (*node.inputs, *_captured(node)) if v is not None)
        if node.name in weighted and not depends:
            first.add(node.name)
        if depends or node.name in weighted:
            before.update(id(o) for o in node.outputs)
    behind: set[int] = set()  # values that a weighted node depends on
    last = set()
    for node in reversed(order):
        leads = any(id(o) in behind for o in node.outputs)
        if node.name in weighted and not leads:
            last.add(node.name)
        if leads or node.name in weighted:
            behind.update(id(v) for v in (*node.inputs, *_captured(node)) if v is not None)
    return frozenset(n for n in first | last if n is not None)


def _captured(node: ir.Node) -> list[ir.Value | None]:
    """What the bodies of ``node`` read, and what they give back."""
    bodies = [a.value for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    found: list[ir.Value | None] = []
    for body in bodies:
        found += [v for inner in body.all_nodes() for v in inner.inputs]
        found += list(body.outputs)
    return found


def _has_weight(node: ir.Node) -> bool:
    if node.domain:
        return False
    slot, gathered = ops.weight_slot(node), operator(node).gathered
    indices = [slot.index] if slot is not None else [0] if gathered else ops.stored_slots(node)
    for index in indices:
        value = held(node.inputs[index]) if index < len(node.inputs) else None
        weight = constant(value)
        if weight is not None and is_float(value) and len(weight.shape) >= 2:
            return not gathered or constant(node.inputs[1]) is None
    return False
