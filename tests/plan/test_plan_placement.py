"""The placement of least cost against all placements there are, on random networks with random costs."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from zoo import Net, prepared

from onnxq.config import Config
from onnxq.kernels.costs import CostTable, Grid, cost_table
from onnxq.kernels.targets import TARGETS
from onnxq.plan import Plan, Storage, fused_output, make_plan
from onnxq.plan.placement import Costs, table_costs, uneconomic
from onnxq.plan.reasons import ReasonCode
from onnxq.query import constant, nodes

CHANNELS = 8
VNNI = TARGETS["x86-vnni"]


def table(convert: float, transpose: float = 0.0) -> CostTable:
    """Every conversion costs ``convert`` and every change of layout ``transpose``, whatever its size."""
    axes = (("elements", (1.0, 1e6)),)
    costs = {"QuantizeLinear": convert, "DequantizeLinear": convert, "ReorderInput": 1e-9, "ReorderOutput": 1e-9}
    grids = {(name, "float"): Grid(axes, np.full(2, max(us, 1e-9))) for name, us in costs.items()}
    grids["Transpose", "int8"] = Grid(axes, np.full(2, max(transpose, 1e-9)))
    return CostTable("test", grids)


def network(seed: int) -> onnx.ModelProto:
    """Five to seven convolutions and sums, each reading what came before, some results also read in float."""
    rng = np.random.default_rng(seed)
    n, made = Net(seed), ["x"]
    for i in range(int(rng.integers(5, 8))):
        if i > 1 and rng.random() < 0.4:
            a, b = rng.choice(len(made[1:]), 2, replace=False) if len(made) > 2 else (0, 0)
            made.append(n("Add", made[1 + a], made[1 + b], name=f"add{i}"))
        else:
            made.append(n.conv(made[int(rng.integers(len(made)))], CHANNELS, CHANNELS, k=1, name=f"conv{i}"))
        if rng.random() < 0.2:
            n("Softplus", made[-1], name=f"float{i}")  # no integer kernel
    outputs = {made[-1]: [1, CHANNELS, 4, 4]}
    for node in n.nodes:
        if not any(node.output[0] in other.input for other in n.nodes):
            outputs[node.output[0]] = [1, CHANNELS, 4, 4]
    return n.model({"x": [1, CHANNELS, 4, 4]}, outputs)


def cost_of(model: ir.Model, plan: Plan, integer: set[str], costs: Costs, convert: float) -> float:
    """What a placement costs, counted tensor by tensor; infinite where a sum would run on integers it cannot read."""
    total = sum(costs.integer_us[n] if n in integer else costs.float_us[n] for n in plan.integer)
    by_output = {id(fused_output(n)): n for n in nodes(model) if n.name in plan.integer}
    values = {id(v): v for n in nodes(model) for v in (*n.inputs, *n.outputs) if v is not None}
    for value in values.values():
        if constant(value) is not None:
            continue
        writer = by_output.get(id(value))
        readers = [u.node for u in value.uses()]
        wants = [r.name in integer for r in readers] + ([False] if value.is_graph_output() else [])
        written = writer is not None and writer.name in integer
        if any(wants) and not written:
            total += convert
            sums = [r for r in readers if r.op_type == "Add" and r.name in integer]
            convs = [r for r in readers if r.op_type == "Conv" and r.name in integer]
            if sums and (writer is not None or not convs):
                return float("inf")
        total += convert if written and not all(wants) else 0.0
    return total


@pytest.mark.parametrize("seed", range(40))
def test_no_placement_is_cheaper(seed: int) -> None:
    model = prepared(network(seed))
    plan = make_plan(model, Config(), VNNI)
    rng = np.random.default_rng(1000 + seed)
    costs = Costs(
        {n: float(rng.uniform(0, 10)) for n in plan.integer}, {n: float(rng.uniform(0, 8)) for n in plan.integer}
    )
    convert = float(rng.choice([0.3, 2.0]))
    shapes = {
        v.name: (1, CHANNELS, 16) for n in nodes(model) for v in (*n.inputs, *n.outputs) if v is not None and v.name
    }
    kept = uneconomic(model, plan, shapes, table(convert), VNNI, costs=costs)
    found = cost_of(model, plan, set(plan.integer) - set(kept), costs, convert)
    choices = itertools.chain.from_iterable(
        itertools.combinations(plan.integer, size) for size in range(len(plan.integer) + 1)
    )
    least = min(cost_of(model, plan, set(choice), costs, convert) for choice in choices)
    assert found == pytest.approx(least, rel=1e-6, abs=1e-6)


def chain() -> onnx.ModelProto:
    n = Net()
    x = n.conv("x", 8, 8, k=1, name="one")
    x = n.conv(x, 8, 8, k=1, name="two")
    n.conv(x, 8, 8, k=1, name="three", out="y")
    return n.model({"x": [1, 8, 4, 4]}, {"y": [1, 8, 4, 4]})


SHAPES = dict.fromkeys(("x", "one_out", "two_out", "y"), (1, 8, 16))


def kept(
    float_us: float, integer_us: float, *, middle: float, convert: float, wanted: tuple[str, ...] = ()
) -> set[str]:
    model = prepared(chain())
    plan = make_plan(model, Config(), VNNI)
    costs = Costs(dict.fromkeys(plan.integer, float_us), {**dict.fromkeys(plan.integer, integer_us), "two": middle})
    found = uneconomic(model, plan, SHAPES, table(convert), VNNI, costs=costs, wanted=wanted)
    assert {k.code for k in found.values()} <= {ReasonCode.NOT_WORTH_IT}
    assert {k.weight for k in found.values()} <= {Storage.PACKED}  # the file shrinks all the same
    return set(found)


def test_a_slow_integer_kernel_is_worth_leaving_only_if_conversions_allow() -> None:
    assert kept(10, 5, middle=12, convert=0.5) == {"two"}
    assert kept(10, 5, middle=12, convert=1.5) == set()  # two conversions more would cost 3, the kernel costs 2


def test_small_gains_do_not_pay_for_conversions() -> None:
    assert kept(10, 9, middle=9, convert=2.0) == {"one", "two", "three"}
    assert kept(10, 9, middle=9, convert=1.0) == set()


def test_what_is_wanted_on_integers_runs_there() -> None:
    assert kept(10, 12, middle=12, convert=0.5, wanted=("two",)) == {"one", "three"}


def test_ties_stay_float() -> None:
    assert kept(10, 10, middle=10, convert=0.0) == {"one", "two", "three"}


def test_layers_of_unknown_size_run_on_integers() -> None:
    model = prepared(chain())
    plan = make_plan(model, Config(), VNNI)
    assert uneconomic(model, plan, {}, table(1.0), VNNI) == {}


def test_costs_come_from_the_table_by_kernel_and_size() -> None:
    model = prepared(chain())
    plan = make_plan(model, Config(), VNNI)
    axes = (("reduction", (8.0, 64.0)), ("channels", (8.0, 64.0)), ("pixels", (16.0, 64.0)))
    grids = {("conv.pointwise", k): Grid(axes, np.full((2, 2, 2), us)) for k, us in (("float", 7.0), ("int8", 3.0))}
    costs = table_costs(model, plan, dict.fromkeys(SHAPES, (1, 8, 4, 4)), CostTable("t", grids), VNNI)
    assert costs.float_us == dict.fromkeys(("one", "two", "three"), pytest.approx(7.0))
    assert costs.integer_us == dict.fromkeys(("one", "two", "three"), pytest.approx(3.0))


def test_a_clip_is_a_pass_of_its_own_in_float() -> None:
    known, costs = cost_table("x86-vnni"), {}
    assert known is not None
    for op in ("Relu", "Clip"):
        n = Net()
        ends = (n.const("zero", 0.0), n.const("six", 6.0)) if op == "Clip" else ()
        n(op, n.conv("x", 16, 16, name="conv"), *ends, name="act", out="y")
        model = prepared(n.model({"x": [1, 16, 32, 32]}, {"y": [1, 16, 32, 32]}))
        shapes = dict.fromkeys(("x", "conv_out", "y"), (1, 16, 32, 32))
        costs[op] = table_costs(model, make_plan(model, Config(), VNNI), shapes, known, VNNI)
    assert costs["Clip"].integer_us == costs["Relu"].integer_us
    one_pass = known.cost("LeakyRelu", "float", 16 * 32 * 32)
    assert costs["Clip"].float_us["conv"] == pytest.approx(costs["Relu"].float_us["conv"] + one_pass)
