"""Placement around products, poolings, joins, gates and splits: against all placements there are, and at its limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from zoo import Net, prepared

from onnxq.config import Config
from onnxq.kernels.costs import CostTable, Grid
from onnxq.kernels.targets import TARGETS
from onnxq.plan import Plan, Storage, fused_output, make_plan
from onnxq.plan.placement import Costs, table_costs, uneconomic
from onnxq.query import constant, nodes

VNNI = TARGETS["x86-vnni"]
# Not alike, and no sum of a few of one is a sum of a few of the other.
QUANTIZE, DEQUANTIZE = 1.0, 1.7
MAP, ROW = [1, 8, 4, 4], [1, 4, 8]


def table(**layers: tuple[float, float]) -> CostTable:
    """Conversions at the same cost for any size; ``layers``: microseconds in float and on integers by kernel."""
    axes = (("elements", (1.0, 1e6)),)
    grids = {("QuantizeLinear", "float"): Grid(axes, np.full(2, QUANTIZE))}
    grids["DequantizeLinear", "float"] = Grid(axes, np.full(2, DEQUANTIZE))
    for kernel, both in layers.items():
        sizes = tuple((str(i), (1.0, 1e6)) for i in range(3 if kernel in ("matmul", "conv.pointwise") else 1))
        for number, us in zip(("float", "int8"), both, strict=True):
            grids[kernel, number] = Grid(sizes, np.full([2] * len(sizes), us))
    return CostTable("test", grids)


def products(*, relu: bool = False, is_output: bool = False, readers: int = 1) -> onnx.ModelProto:
    n, outputs = Net(1), {}
    x = n.linear("x", 8, 8, name="a", bias=False)
    x = n("Relu", x, name="act") if relu else x
    for i in range(readers):
        outputs[n.linear(x, 8, 8, name=f"b{i}", bias=False, out=f"y{i}")] = ROW
    return n.model({"x": ROW}, {**outputs, x: ROW} if is_output else outputs)


def pooled() -> onnx.ModelProto:
    n = Net(2)
    x = n("MaxPool", n.conv("x", 8, 8, k=1, name="a"), name="pool", kernel_shape=[2, 2], strides=[2, 2])
    n.conv(x, 8, 8, k=1, name="b", out="y")
    return n.model({"x": MAP}, {"y": [1, 8, 2, 2]})


def joined(*, curve: bool = False, shared: bool = False) -> onnx.ModelProto:
    n, outputs = Net(3), {"y": MAP}
    other = n("Softplus", "z", name="curve") if curve else "z"
    x = n("Concat", n.conv("x", 8, 8, k=1, name="a"), other, name="join", axis=1)
    n.conv(x, 16, 8, k=1, name="b", out="y")
    if shared:
        outputs[n.conv(other, 8, 8, k=1, name="c", out="w")] = MAP
    return n.model({"x": MAP, "z": MAP}, outputs)


def summed(*, first: bool = False) -> onnx.ModelProto:
    """A sum that reads what a convolution reads too: it can run on integers where that one does."""
    n = Net(4)

    def total() -> None:
        n.conv(n("Add", n.conv("x", 8, 8, k=1, name="a"), "z", name="sum"), 8, 8, k=1, name="b", out="y")

    if first:
        total()
    n.conv("z", 8, 8, k=1, name="c", out="w")
    if not first:
        total()
    return n.model({"x": MAP, "z": MAP}, {"y": MAP, "w": MAP})


def gated() -> onnx.ModelProto:
    n = Net(5)
    n.conv(n("Mul", n.conv("x", 8, 8, k=1, name="a"), "z", name="gate"), 8, 8, k=1, name="b", out="y")
    return n.model({"x": MAP, "z": [1, 8, 1, 1]}, {"y": MAP})


def cut() -> onnx.ModelProto:
    n = Net(6)
    x = n.conv("x", 8, 8, k=1, name="a")
    one, two = n.many("Split", x, n.const("parts", [4, 4], np.int64), name="cut", count=2, axis=1)
    n.conv(one, 4, 8, k=1, name="b", out="y")
    n("Softplus", two, name="curve", out="w")
    return n.model({"x": MAP}, {"y": MAP, "w": [1, 4, 4, 4]})


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "two products": products,
    "a product whose Relu a quantizer absorbs": lambda: products(relu=True),
    "a product that two others read": lambda: products(readers=2),
    "a product that is an output too": lambda: products(is_output=True),
    "a product with a Relu that is an output too": lambda: products(relu=True, is_output=True),
    "a pooling": pooled,
    "a join with an input": joined,
    "a join with what a convolution reads": lambda: joined(shared=True),
    "a join with a float node": lambda: joined(curve=True),
    "a sum with what a convolution reads": summed,
    "a sum before a convolution that reads the same": lambda: summed(first=True),
    "a gate": gated,
    "a split that float reads": cut,
}


def shared(value: ir.Value, integer: set[str]) -> bool:
    """Whether a convolution reads ``value`` as integers."""
    return any(u.node.op_type == "Conv" and u.node.name in integer for u in value.uses())


def impossible(node: ir.Node, writers: dict[int, ir.Node], integer: set[str]) -> bool:
    """Whether a node without weights reads something that is not there in integers, nor cheaply made so."""
    if node.op_type in ("Conv", "MatMul"):
        return False
    for value in node.inputs:
        if value is None or constant(value) is not None:
            continue
        writer = writers.get(id(value))
        if writer is not None and writer.op_type != "MatMul":
            if writer.name not in integer:
                return True
        elif node.op_type == "MaxPool" or (node.op_type == "Add" and not shared(value, integer)):
            return True
    return False


def cost_of(model: ir.Model, plan: Plan, integer: set[str], costs: Costs) -> float:
    """What a placement costs, counted tensor by tensor; infinite where a node cannot run as it would have to."""
    total = sum(costs.integer_us[n] if n in integer else costs.float_us[n] for n in plan.integer)
    chosen = [n for n in nodes(model) if n.name in plan.integer]
    writers = {id(v): n for n in chosen for v in (n.outputs if n.op_type == "Split" else [fused_output(n)])}
    if any(impossible(n, writers, integer) for n in chosen if n.name in integer):
        return float("inf")
    for value in {id(v): v for n in nodes(model) for v in (*n.inputs, *n.outputs) if v is not None}.values():
        if constant(value) is not None:
            continue
        readers = [u.node for u in value.uses()]
        wants = [r.name in integer for r in readers] + ([False] if value.is_graph_output() else [])
        writer = writers.get(id(value))
        written = writer is not None and writer.name in integer
        plain = writer is not None and writer.op_type == "MatMul" and value is writer.outputs[0]
        # A product writes floats, unless its one reader takes codes; an absorbed Relu is one that does.
        codes = written and (not plain or wants == [True])
        total += QUANTIZE if any(wants) and not codes else 0.0
        total += DEQUANTIZE if written and not plain and not all(wants) else 0.0
    return total


def flat_shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Of no map, so that layouts cost nothing."""
    return {v.name: (1, 8, 16) for n in nodes(model) for v in (*n.inputs, *n.outputs) if v is not None and v.name}


@pytest.mark.parametrize("network", list(NETWORKS))
def test_no_placement_is_cheaper(network: str) -> None:
    model = prepared(NETWORKS[network]())
    plan = make_plan(model, Config(), VNNI)
    placements = [set(c) for size in range(len(plan.integer) + 1) for c in itertools.combinations(plan.integer, size)]
    rng = np.random.default_rng(7)
    chosen = set()
    for _ in range(20):
        costs = Costs(*({n: float(rng.uniform(0, most)) for n in plan.integer} for most in (8, 4)))
        kept = uneconomic(model, plan, flat_shapes(model), table(), VNNI, costs=costs)
        integer = set(plan.integer) - set(kept)
        least = min(cost_of(model, plan, placement, costs) for placement in placements)
        assert cost_of(model, plan, integer, costs) == pytest.approx(least, rel=1e-9)
        chosen.add(frozenset(integer))
    assert len(chosen) > 2  # the costs decide, not the network


def test_what_stays_float_stores_a_weight_as_integers_if_it_has_one() -> None:
    model = prepared(pooled())
    plan = make_plan(model, Config(), VNNI)
    costs = Costs(dict.fromkeys(plan.integer, 0.0), dict.fromkeys(plan.integer, 1.0))
    kept = uneconomic(model, plan, flat_shapes(model), table(), VNNI, costs=costs)
    assert {name: k.weight for name, k in kept.items()} == {"a": Storage.PACKED, "pool": None, "b": Storage.PACKED}


@pytest.mark.parametrize("wanted", ["a", "pool", "b"])
def test_what_is_wanted_takes_along_what_it_needs(wanted: str) -> None:
    model = prepared(pooled())
    plan = make_plan(model, Config(), VNNI)
    costs = Costs(dict.fromkeys(plan.integer, 0.0), dict.fromkeys(plan.integer, 1e6))
    kept = uneconomic(model, plan, flat_shapes(model), table(), VNNI, costs=costs, wanted=(wanted,))
    needed = {"a": {"a"}, "pool": {"a", "pool"}, "b": {"b"}}[wanted]
    assert set(kept) == set(plan.integer) - needed


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_a_gain_of_a_millionth_decides(scale: float) -> None:
    model = prepared(products())
    plan = make_plan(model, Config(), VNNI)
    other = scale * 100.0
    for gain, expected in ((1e-6, set()), (-1e-6, {"a", "b0"})):
        # The conversion in front of both is all that they cost but for their kernels.
        costs = Costs({"a": other + QUANTIZE, "b0": other * (1 + gain)}, {"a": other, "b0": other})
        assert set(uneconomic(model, plan, flat_shapes(model), table(), VNNI, costs=costs)) == expected


def test_ties_but_for_rounding_stay_float_however_large_the_costs() -> None:
    model = prepared(products())
    plan = make_plan(model, Config(), VNNI)
    large, alike = 1e9 * (0.1 + 0.2), 1e9 * 0.3
    assert large > alike
    costs = Costs({"a": large + QUANTIZE, "b0": alike}, {"a": alike, "b0": alike})
    assert set(uneconomic(model, plan, flat_shapes(model), table(), VNNI, costs=costs)) == {"a", "b0"}


def test_conversions_of_unknown_size_cost_nothing() -> None:
    model = prepared(products())
    plan = make_plan(model, Config(), VNNI)
    for gain, expected in ((0.1, set()), (-0.1, {"a", "b0"})):
        costs = Costs(dict.fromkeys(plan.integer, 5.0 + gain), dict.fromkeys(plan.integer, 5.0))
        assert set(uneconomic(model, plan, {}, table(), VNNI, costs=costs)) == expected


# -- costs from the table ----------------------------------------------------------------------------------------------


def test_costs_stand_as_they_were_found() -> None:
    costs = Costs({"a": 2.0}, {"a": 1.0})
    assert costs.pace == 1.0
    with pytest.raises(FrozenInstanceError):
        costs.pace = 2.0  # type: ignore[misc]


def test_a_layer_of_unknown_size_gains_a_microsecond_and_other_nodes_nothing() -> None:
    model = prepared(summed())
    plan = make_plan(model, Config(), VNNI)
    known = table(**{"conv.pointwise": (7.0, 3.0)})
    costs = table_costs(model, plan, {"w": (1, 8, 4, 4)}, known, VNNI)
    assert costs.float_us == {"a": 1.0, "sum": 0.0, "b": 1.0, "c": pytest.approx(7.0)}
    assert costs.integer_us == {"a": 0.0, "sum": 0.0, "b": 0.0, "c": pytest.approx(3.0)}
    # A kernel that no table has is as unknown as a size.
    assert table_costs(model, plan, {"w": (1, 8, 4, 4)}, table(), VNNI).float_us["c"] == 1.0


def test_only_nodes_of_the_plan_have_costs_whatever_lies_between_them() -> None:
    n = Net(7)
    x = n("Softplus", n.conv(n("Softplus", "x", name="first"), 8, 8, k=1, name="a"), name="middle")
    n.conv(x, 8, 8, k=1, name="b", out="y")
    model = prepared(n.model({"x": MAP}, {"y": MAP}))
    shapes = dict.fromkeys(flat_shapes(model), (1, 8, 4, 4))
    found = table_costs(model, make_plan(model, Config(), VNNI), shapes, table(**{"conv.pointwise": (7.0, 3.0)}), VNNI)
    assert found.float_us == {"a": pytest.approx(7.0), "b": pytest.approx(7.0)}


def test_a_sum_that_the_convolution_before_it_takes_in_is_free_in_float_only() -> None:
    model = prepared(summed())
    plan = make_plan(model, Config(), VNNI)
    shapes = dict.fromkeys(flat_shapes(model), (1, 8, 4, 4))
    known = table(**{"conv.pointwise": (7.0, 3.0), "Add": (5.0, 2.0)})
    found = table_costs(model, plan, shapes, known, VNNI)
    assert (found.float_us["sum"], found.integer_us["sum"]) == (0.0, pytest.approx(2.0))


def test_a_clip_of_unknown_size_costs_nothing_and_one_behind_a_bias_a_pass() -> None:
    n = Net(8)
    ends = (n.const("zero", 0.0), n.const("six", 6.0))
    n("Clip", n.linear("x", 8, 8, name="a"), *ends, name="clip", out="y")
    model = prepared(n.model({"x": ROW}, {"y": ROW}))
    plan = make_plan(model, Config(), VNNI)
    known = table(matmul=(7.0, 3.0), LeakyRelu=(5.0, 2.0))
    size = (1, 4, 8)
    everything = table_costs(model, plan, dict.fromkeys(flat_shapes(model), size), known, VNNI)
    assert everything.float_us == {"a": pytest.approx(12.0)}
    unknown = table_costs(model, plan, {"x": size, "a_out": size, "a_bias_out": size}, known, VNNI)
    assert unknown.float_us == {"a": pytest.approx(7.0)}
