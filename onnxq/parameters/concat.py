"""Operands of an integer Concat with the parameters of its result, wherever that makes less noise.

A Concat on integers rescales every operand whose parameters differ from those of its result: each of its codes is
looked up in a table, and rounded a second time. With equal parameters codes are copied. An operand that nothing else
reads gains by that in any case; where others read it too, they must put up with the parameters of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isinf

import onnx_ir as ir

from onnxq.kernels.operators import operator
from onnxq.kernels.ops import highest
from onnxq.numerics import QuantParams
from onnxq.plan import Plan
from onnxq.plan.units import read
from onnxq.query import nodes, values_by_name
from onnxq.ranges.error import tensor_error
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.samples import of_histogram


def joined(
    model: ir.Model, plan: Plan, tensors: Mapping[str, QuantParams], histograms: Mapping[str, Histogram]
) -> dict[str, QuantParams]:
    """``tensors`` with the operands of Concat changed; those that agree hold the same object.

    With an error of ``e`` for the ``k`` readers of an operand by parameters of its own, ``f`` by those of the result,
    and ``r`` for being rounded again (a twelfth of the step's square), it takes the latter where ``k f <= k e + r``.
    """
    roots, values, found = plan.roots, values_by_name(model), dict(tensors)
    groups: dict[str, list[ir.Value]] = {}
    for tensor, of in roots.items():
        groups.setdefault(of, []).append(values[tensor])
    integer = set(plan.integer)
    for node in reversed(list(nodes(model))):  # results first: what they are joined to in turn has been decided
        result = roots.get(node.outputs[0].name or "")
        if not operator(node).joins or node.name not in integer or result is None or result not in found:
            continue
        for value in read(node):
            root = roots.get(value.name or "", "")
            if root == result or root not in found or root not in histograms:
                continue
            own, shared = found[root], found[result]
            if own is shared or own.qtype != shared.qtype or not all(fits(v, shared) for v in groups[root]):
                continue
            seen = of_histogram(histograms[root])
            readers = sum(len(tuple(v.uses())) + v.is_graph_output() for v in groups[root])
            again = histograms[root].total * float(shared.scale) ** 2 / 12
            if readers * tensor_error(seen, shared) <= readers * tensor_error(seen, own) + again:
                found[root] = shared
    return found


def fits(value: ir.Value, parameters: QuantParams) -> bool:
    """Whether ``parameters`` still clip what the activation that makes ``value`` clips."""
    producer = value.producer()
    top = None if producer is None else highest(producer)
    if top is None:
        return True
    steps = parameters.qtype.qmax - parameters.qtype.qmin
    return int(parameters.zero_point) == parameters.qtype.qmin and (
        isinf(top) or float(parameters.scale) * steps <= top
    )
