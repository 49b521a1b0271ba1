"""Which format each weight is stored in: what rules say, what the configuration says, and the two ends of a model."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxq.config import Config
from onnxq.graph.flow import downstream, upstream
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
    """The names among ``weighted`` that none lies before, and those that none lies behind.

    A layer that multiplies the state of a Loop or Scan lies before and behind itself.
    """
    behind_some = downstream(model, [v for node in weighted.values() for v in node.outputs])
    before_some = upstream(model, [v for node in weighted.values() for v in node.inputs])
    return frozenset(
        name
        for name, node in weighted.items()
        if behind_some.isdisjoint(v for v in node.inputs if v is not None) or before_some.isdisjoint(node.outputs)
    )


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
