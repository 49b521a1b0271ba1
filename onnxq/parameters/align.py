"""Parameters by which sums and products with one number, and gates, are other parameters for the same codes.

Where the step divides what is added, a sum has the codes of its operand, and a HardSigmoid those of its input, clipped
(``emit.aligned``, ``emit.gates``): a pass over the map and a rounding less. The step of least error changes by at most
half a count to get there, a hundredth for fifty steps; where it would have to change too much it stays, and the sum is
computed. A product with one number above 0 has the codes of its operand in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, floor

import numpy as np
import onnx_ir as ir

from onnxq.emit.gates import gate_params
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Arithmetic
from onnxq.numerics import QuantParams, moved, scaled
from onnxq.parameters.concat import fits
from onnxq.plan import Plan
from onnxq.query import array, nodes, values_by_name
from onnxq.ranges.error import tensor_error
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.samples import of_histogram

# What the error of a gate's input may grow by: a fifth of a decibel for a pass less.
_GATE_ERROR = 1.05
_BITS = 8  # what has fewer codes has no kernels that could gain


@dataclass(frozen=True)
class _Tie:
    """``free``: the tensor whose step is chosen; ``other``: the tensor whose parameters follow from it.

    ``unit``: what the step must divide, 0 where it may be anything; ``follow``: the parameters of ``other``, None where
    there are none; ``is_gate``: whether codes are clipped on the way from ``free`` to ``other``.
    """

    free: str
    other: str
    unit: float
    follow: Callable[[QuantParams], QuantParams | None]
    is_gate: bool = False


def aligned(
    model: ir.Model, plan: Plan, tensors: Mapping[str, QuantParams], histograms: Mapping[str, Histogram]
) -> dict[str, QuantParams]:
    """``tensors`` changed so that integer nodes with one constant keep the codes, where that costs little.

    A sum: not more error than rounding twice makes. A gate: a twentieth more of its input's. A product: none.
    """
    found, values, roots = dict(tensors), values_by_name(model), plan.roots
    groups: dict[str, list[ir.Value]] = {}
    for tensor, root in roots.items():
        groups.setdefault(root, []).append(values[tensor])
    settled: set[str] = set()
    for tie in sorted(_ties(model, plan), key=lambda tie: not tie.unit):  # products put up with what others chose
        if not {tie.free, tie.other} <= found.keys() & histograms.keys() or tie.other in settled:
            continue
        if tie.unit and tie.free in settled:
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
            for chosen in _candidates(own, tie.unit)
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
    """The gates, and the sums and products with one number, among the integer nodes of ``plan``."""
    integer, roots = set(plan.integer), plan.roots
    counts, whole = Counter(roots.values()), {p.tensor for p in plan.points if p.consumers is None}
    alone = {tensor for tensor, root in roots.items() if tensor == root and counts[root] == 1} & whole
    found = []
    for node in nodes(model):
        operand = _operand(node) if node.name in integer else None
        if operand is None:
            continue
        x, number, y = operand[0].name or "", operand[1], node.outputs[0].name or ""
        record = operator(node)
        if record.line is not None and x in roots and y in alone:
            found.append(_gate(roots[x], y, *record.line(node)))
        elif record.arithmetic is Arithmetic.PRODUCT and {x, y} <= whole and roots[x] != roots[y] and number > 0:
            found.append(_Tie(roots[x], roots[y], 0.0, partial(scaled, factor=number)))
        elif record.arithmetic is Arithmetic.SUM and x in alone and y in whole and number and _only_reader(operand[0]):
            found.append(_Tie(roots[y], x, abs(number), partial(moved, shift=-number)))
    return found


def _only_reader(value: ir.Value) -> bool:
    """Whether one node alone reads ``value``: others would have to put up with the step of its sum."""
    return len(tuple(value.uses())) == 1 and not value.is_graph_output()


def _operand(node: ir.Node) -> tuple[ir.Value, float] | None:
    """What ``node`` reads beside a constant of one number, and that (of a HardSigmoid: its offset); None for others."""
    record = operator(node)
    if record.line is not None and node.inputs[0] is not None:
        _, offset = record.line(node)
        return (node.inputs[0], offset) if offset > 0 else None
    if record.arithmetic is None:
        return None
    arrays = [array(v) for v in node.inputs]
    numbers = [float(a.reshape(-1)[0]) for a in arrays if a is not None and a.size == 1]
    values = [v for v, a in zip(node.inputs, arrays, strict=True) if v is not None and a is None]
    return (values[0], numbers[0]) if len(values) == len(numbers) == 1 else None


def _gate(x: str, y: str, alpha: float, beta: float) -> _Tie:
    return _Tie(x, y, beta / alpha, partial(gate_params, alpha=alpha, beta=beta), is_gate=True)


def _candidates(own: QuantParams, unit: float) -> list[QuantParams]:
    """Parameters near ``own`` whose step divides ``unit``; ``own`` itself where that is 0."""
    if not unit:
        return [own]
    found = []
    count = unit / float(own.scale)
    for steps in {max(1, floor(count)), max(1, ceil(count))}:
        scale = np.asarray(unit / steps, np.float32)
        zero = int(own.zero_point) * float(own.scale) / float(scale)
        for code in {floor(zero), ceil(zero)}:
            kept = min(max(code, own.qtype.qmin), own.qtype.qmax)
            found.append(replace(own, scale=scale, zero_point=np.asarray(kept, own.qtype.storage)))
    return found
