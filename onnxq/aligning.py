"""Steps that divide the constants which are added to what they quantize.

Then a sum with one number has the codes of its operand, and a HardSigmoid those of its input, clipped
(``emit.aligned``, ``emit.gates``): a pass over the map and a rounding less. The step of least error changes by at most
half a count to get there, a hundredth for fifty steps; where it would have to change too much it stays, and the sum is
computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, floor

import numpy as np
import onnx_ir as ir

from onnxq.emit.gates import gate_params, slope_and_offset
from onnxq.graph.query import array, nodes, values_by_name
from onnxq.joining import fits
from onnxq.numerics import QuantParams, moved
from onnxq.plan import Plan
from onnxq.ranges.error import tensor_error
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.samples import of_histogram

# What the error of a gate's input may grow by: a fifth of a decibel for a pass less.
_GATE_ERROR = 1.05
_BITS = 8  # what has fewer codes has no kernels that could gain


@dataclass(frozen=True)
class _Tie:
    """``free``: the tensor whose step is chosen; ``other``: the tensor whose parameters follow from it.

    ``unit``: what the step must divide; ``follow``: the parameters of ``other``, None where there are none.
    """

    free: str
    other: str
    unit: float
    follow: Callable[[QuantParams], QuantParams | None]
    is_gate: bool


def aligned(
    model: ir.Model, plan: Plan, tensors: Mapping[str, QuantParams], histograms: Mapping[str, Histogram]
) -> dict[str, QuantParams]:
    """``tensors`` with steps that divide the constants which integer nodes add to them, where that costs little.

    A sum: not more error than rounding twice makes. A gate: a twentieth more of its input's.
    """
    found, values, roots = dict(tensors), values_by_name(model), plan.roots
    groups: dict[str, list[ir.Value]] = {}
    for tensor, root in roots.items():
        groups.setdefault(root, []).append(values[tensor])
    settled: set[str] = set()
    for tie in _ties(model, plan):
        if not {tie.free, tie.other} <= found.keys() & histograms.keys() or {tie.free, tie.other} & settled:
            continue
        own, seen = found[tie.free], of_histogram(histograms[tie.free])
        if own.qtype != found[tie.other].qtype or own.qtype.bits != _BITS or not own.scale > 0:
            continue
        most = tensor_error(seen, own)
        if tie.is_gate:
            most *= _GATE_ERROR
        else:
            most += tensor_error(of_histogram(histograms[tie.other]), found[tie.other])
        usable = [
            (error, chosen, follows)
            for chosen in _candidates(own, abs(tie.unit))
            if (follows := tie.follow(chosen)) is not None
            and all(fits(v, chosen) for v in groups[tie.free])
            and (tie.is_gate or all(fits(v, follows) for v in groups[tie.other]))
            and (error := tensor_error(seen, chosen)) <= most
        ]
        if usable:
            _, found[tie.free], found[tie.other] = min(usable, key=lambda one: one[0])
            settled |= {tie.free, tie.other}
    return found


def tied(model: ir.Model, plan: Plan, tensors: Mapping[str, QuantParams]) -> frozenset[str]:
    """The tensors whose parameters follow from each other, so that none of them may change alone."""
    return frozenset(
        name
        for tie in _ties(model, plan)
        if {tie.free, tie.other} <= tensors.keys() and tie.follow(tensors[tie.free]) == tensors[tie.other]
        for name in (tie.free, tie.other)
    )


def _ties(model: ir.Model, plan: Plan) -> list[_Tie]:
    """The sums with one number, and the gates, among the integer nodes of ``plan``."""
    integer, roots = set(plan.integer), plan.roots
    counts, whole = Counter(roots.values()), {p.tensor for p in plan.points if p.consumers is None}
    alone = {tensor for tensor, root in roots.items() if tensor == root and counts[root] == 1} & whole
    found = []
    for node in nodes(model):
        if node.name not in integer or node.domain:
            continue
        x, y = node.inputs[0], node.outputs[0]
        if node.op_type == "HardSigmoid" and x is not None and x.name in roots and y.name in alone:
            alpha, beta = slope_and_offset(node)
            if beta > 0:
                found.append(_gate_tie(roots[x.name], y.name, alpha, beta))
        elif node.op_type == "Add" and y.name in whole:
            constants = [array(v) for v in node.inputs]
            number = next((c for c in constants if c is not None and c.size == 1), None)
            x = next((v for v, c in zip(node.inputs, constants, strict=True) if c is None), None)
            # What else read the operand would have to put up with the step of the sum.
            single = x is not None and x.name in alone and len(tuple(x.uses())) == 1 and not x.is_graph_output()
            if number is not None and number.any() and x is not None and x.name and single:
                found.append(_sum_tie(roots[y.name], x.name, float(number.reshape(-1)[0])))
    return found


def _gate_tie(x: str, y: str, alpha: float, beta: float) -> _Tie:
    return _Tie(x, y, beta / alpha, lambda p: gate_params(p, alpha, beta), is_gate=True)


def _sum_tie(total: str, x: str, shift: float) -> _Tie:
    return _Tie(total, x, shift, lambda p: moved(p, -shift), is_gate=False)


def _candidates(own: QuantParams, unit: float) -> list[QuantParams]:
    """Parameters near ``own`` whose step divides ``unit``."""
    found = []
    count = unit / float(own.scale)
    for steps in {max(1, floor(count)), max(1, ceil(count))}:
        scale = np.asarray(unit / steps, np.float32)
        zero = int(own.zero_point) * float(own.scale) / float(scale)
        for code in {floor(zero), ceil(zero)}:
            kept = min(max(code, own.qtype.qmin), own.qtype.qmax)
            found.append(replace(own, scale=scale, zero_point=np.asarray(kept, own.qtype.storage)))
    return found
