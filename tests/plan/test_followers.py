"""What the minimum cut of the placement counts on: in every plan, nodes without weights read what is there in integers.

So rules of the cut that send a node to the float side for what it reads have nothing to do in plans of this planner.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import pytest
from zoo import ZOO, prepared

from onnxq.config import Config
from onnxq.kernels import ops
from onnxq.kernels.operators import operator
from onnxq.kernels.targets import TARGETS
from onnxq.plan import KeptFloat, Plan, ReasonCode, make_plan
from onnxq.plan.units import read, written
from onnxq.query import nodes


def read_without_codes(model: ir.Model, plan: Plan) -> Iterator[str]:
    """The followers of ``plan`` with something that no integer kernel writes, nor another one reads, as codes."""
    chosen = {n.name: n for n in nodes(model) if n.name in set(plan.integer)}
    coded = {
        id(value)
        for node in chosen.values()
        if ops.weight_slot(node) is None or operator(node).between_codes
        for value in written(node)
    }
    for node in chosen.values():
        if node.name in plan.anchors:
            continue
        for value in read(node):
            readers = [use.node for use in value.uses() if chosen.get(use.node.name) is use.node]
            others = any(operator(n).between_codes and value in read(n) for n in readers if n is not node)
            needs_none = ops.cheap_operand(node, value) or ops.quantizes_its_inputs(node)
            if id(value) not in coded and (ops.wants_channels_last(node) or not (needs_none or others)):
                yield node.name or ""


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("name", sorted(ZOO))
def test_followers_read_integers_whatever_is_kept_float(name: str, target: str) -> None:
    model, where = prepared(ZOO[name]()), TARGETS[target]
    first = make_plan(model, Config(), where)
    assert list(read_without_codes(model, first)) == []
    for anchor in first.anchors:
        kept = {anchor: KeptFloat.of(ReasonCode.NOT_WORTH_IT)}
        assert list(read_without_codes(model, make_plan(model, Config(), where, keep_float=kept))) == []


def test_a_plan_that_was_not_made_so_is_found() -> None:
    model = prepared(ZOO["maxpool"]())
    plan = make_plan(model, Config(), TARGETS["x86-vnni"])
    followers = tuple(name for name in plan.integer if name not in plan.anchors)
    assert followers
    assert list(read_without_codes(model, Plan(integer=followers))) == [followers[0]]
