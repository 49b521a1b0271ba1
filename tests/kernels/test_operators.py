"""The records of operators: what they say holds in onnxruntime, and what nothing is said about stays float."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from bench import bench
from onnx import TensorProto, helper, numpy_helper
from zoo import Net, feeds, prepared

from onnxq.config import Config, Rule, config_text, load_config
from onnxq.kernels import ops
from onnxq.kernels.costs import CostTable, Grid, cost_table
from onnxq.kernels.operators import OPERATORS, find, named, operator
from onnxq.kernels.record import Gradient, Layout, Operator, Role
from onnxq.kernels.targets import TARGETS
from onnxq.kernels.work import Work, work_of
from onnxq.numerics import noise
from onnxq.plan import make_plan
from onnxq.plan import place as placing
from onnxq.plan.place import Placement, place
from onnxq.query import nodes
from onnxq.search.remember import as_config

VNNI = TARGETS["x86-vnni"]
MAP = (1, 8, 6, 6)
FOLLOWERS = sorted(name for name, record in OPERATORS.items() if record.follows)

# What a node of each follower needs besides what it reads as activations.
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "AveragePool": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    "MaxPool": {"kernel_shape": [2, 2]},
    "Concat": {"axis": 1},
    "DepthToSpace": {"blocksize": 2},
    "Resize": {"mode": "nearest"},
    "Split": {"axis": 1},
}
_CONSTANTS: dict[str, list[Any]] = {
    "Reshape": [np.array([8, 36])],
    "Squeeze": [np.array([0])],
    "Unsqueeze": [np.array([0])],
    "Slice": [np.array([1]), np.array([3]), np.array([1])],
    "Resize": [None, np.array([1, 1, 2, 2], np.float32)],
}


def between_quantizers(record: Operator, *, opset: int = 17) -> onnx.ModelProto:
    """A node of ``record`` between quantizers of one scale, as ``emit`` writes it."""
    made: list[onnx.NodeProto] = []
    given = [helper.make_tensor_value_info("cond", TensorProto.BOOL, MAP)]
    tensors = [numpy_helper.from_array(np.float32(0.02), "scale"), numpy_helper.from_array(np.uint8(128), "zero")]

    def quantized(value: str) -> str:
        made.append(helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"{value}_q"], f"{value}_Q"))
        made.append(helper.make_node("DequantizeLinear", [f"{value}_q", "scale", "zero"], [f"{value}_r"], f"{value}_D"))
        return f"{value}_r"

    slots = (0, 1) if record.data is None else record.data
    inputs = ["cond"] * (max(slots) + 1)
    for index in slots:
        given.append(helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, MAP))
        inputs[index] = quantized(f"x{index}")
    for i, data in enumerate(_CONSTANTS.get(record.name, [])):
        inputs.append("" if data is None else f"c{i}")
        tensors += [] if data is None else [numpy_helper.from_array(data, f"c{i}")]
    outs = ["y0", "y1"] if record.all_outputs else ["y0"]
    made.append(helper.make_node(record.name, inputs, outs, "node", **_ATTRIBUTES.get(record.name, {})))
    results = [helper.make_tensor_value_info(quantized(y), TensorProto.FLOAT, None) for y in outs]
    used = {name for node in made for name in node.input}
    graph = helper.make_graph(made, "g", [g for g in given if g.name in used], results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def optimized(proto: onnx.ModelProto, folder: Path) -> list[str]:
    """The operators that onnxruntime runs for ``proto``."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


# What emit spells in another way: the kernels of its record stand in for it, and are tested there.
SPELLED = {"HardSigmoid"}


@pytest.mark.parametrize("name", [n for n in FOLLOWERS if n not in SPELLED])
def test_onnxruntime_has_the_integer_kernel_that_the_record_names(name: str, tmp_path: Path) -> None:
    ran = optimized(between_quantizers(OPERATORS[name]), tmp_path)
    inner = [op for op in ran if not named(op).converts]
    assert len(inner) == 1
    assert inner[0] in OPERATORS[name].kernels
    # Quantizers at the ends alone: nothing around the kernel goes to float and back.
    ends = len([0, 1] if OPERATORS[name].data is None else OPERATORS[name].data or ())
    assert ran.count("QuantizeLinear") == ends
    assert ran.count("DequantizeLinear") == (2 if OPERATORS[name].all_outputs else 1)


def test_a_dilated_average_is_left_alone(tmp_path: Path) -> None:
    n = Net()
    pooled = n("AveragePool", n.conv("x", 3, 8, name="a"), name="pool", kernel_shape=[2, 2], dilations=[2, 2])
    n.conv(pooled, 8, 8, name="b", out="y")
    model = prepared(n.model({"x": [1, 3, 8, 8]}, {"y": [1, 8, 6, 6]}, opset=19, ir_version=9))
    assert {node.op_type: ops.can_follow(node) for node in nodes(model)} == {"Conv": False, "AveragePool": False}


def pooled_between_convolutions() -> onnx.ModelProto:
    n = Net()
    a = n.conv("x", 3, 16, name="first")
    n.conv(n("AveragePool", a, name="pool", kernel_shape=[2, 2], strides=[2, 2]), 16, 16, name="second", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 16, 4, 4]})


def chosen_between_convolutions() -> onnx.ModelProto:
    n = Net()
    a, b = n.conv("x", 3, 16, name="first"), n.conv("x", 3, 16, name="other")
    n.conv(n("Where", "chosen", a, b, name="where"), 16, 16, name="second", out="y")
    inputs = {"x": [1, 3, 8, 8], "chosen": (TensorProto.BOOL, [1, 16, 8, 8])}
    return n.model(inputs, {"y": [1, 16, 8, 8]})


def softmax_between_convolutions() -> onnx.ModelProto:
    n = Net()
    a = n.conv("x", 3, 16, name="first")
    n.conv(n("Softmax", a, name="softmax", axis=1), 16, 16, name="second", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 16, 8, 8]})


SLOWER = {
    "pool": (pooled_between_convolutions, "QLinearAveragePool"),
    "where": (chosen_between_convolutions, "QLinearWhere"),
    "softmax": (softmax_between_convolutions, "QLinearSoftmax"),
}


def data_for(proto: onnx.ModelProto) -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    found = feeds(proto, 8)
    for feed in found:
        if "chosen" in feed:
            feed["chosen"] = rng.random((1, 16, 8, 8)) < 0.5
    return found


@pytest.mark.parametrize("name", SLOWER)
def test_a_slower_kernel_stays_float_unless_it_is_asked_for(name: str) -> None:
    model = prepared(SLOWER[name][0]())
    for target in TARGETS.values():
        for config in (Config(), Config(placement="all")):
            plan = make_plan(model, config, target)
            assert name not in plan.integer
            assert name not in {s.node for s in plan.skipped}
    assert name in make_plan(model, Config(), VNNI, slower={name}).integer


@pytest.mark.parametrize("name", SLOWER)
def test_a_slower_kernel_that_is_asked_for_runs_and_is_right(name: str, tmp_path: Path) -> None:
    make, kernel = SLOWER[name]
    proto = make()
    data = data_for(proto)
    target = TARGETS["x86-avx2"]  # whose weights overflow nowhere
    placement = Placement(slower=frozenset({name}))
    built = bench(prepared(proto), Config(), target, data, tmp_path, placement=placement).build()
    assert name in built.plan.integer
    assert [k.op for k in built.kernels.nodes if k.kind == "integer elementwise"].count(kernel) == 1
    assert [a.integer for a in built.assignments] == [True] * len(built.plan.anchors)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    a, b = (
        ort.InferenceSession(m, options, providers=["CPUExecutionProvider"])
        for m in (proto.SerializeToString(), built.runtime_model)
    )
    seen = noise(np.concatenate([a.run(None, f)[0] for f in data]), np.concatenate([b.run(None, f)[0] for f in data]))
    assert seen.sqnr_db > 25.0


@pytest.mark.parametrize("name", SLOWER)
def test_a_slower_kernel_that_costs_chose_stands_in_the_saved_configuration(name: str, tmp_path: Path) -> None:
    proto = SLOWER[name][0]()
    model, target = prepared(proto), TARGETS["x86-avx2"]
    placement = Placement(slower=frozenset({name, "another"}))
    built = bench(model, Config(), target, data_for(proto), tmp_path, placement=placement).build()
    (tmp_path / "saved.toml").write_text(config_text(as_config(Config(), built, placement, nodes(model))))
    saved = load_config(tmp_path / "saved.toml")
    assert [rule.match for rule in saved.rules if rule.precision == "int8"] == [name]
    assert make_plan(model, saved, target, keep_float=built.kept_float).integer == built.plan.integer
    # It is no wish for everything that a rule may match besides.
    for match in (f"{name[:-1]}?", "*"):
        assert name not in make_plan(model, Config(rules=(Rule(match, "int8"),)), target).integer


def flat(**microseconds: float) -> CostTable:
    """A table where each kernel takes the same at every size; ``kernel__number``."""
    grids = {}
    for key, us in microseconds.items():
        kernel, number = key.split("__")
        axes = 3 if kernel in ("few", "spatial", "pointwise") else 1
        points = tuple((str(i), (1.0, 1e6)) for i in range(axes))
        grids[f"conv.{kernel}" if axes == 3 else kernel, number] = Grid(points, np.full([2] * axes, us))
    return CostTable("t", grids)


CHEAP = {"few__float": 90.0, "few__int8": 9.0, "spatial__float": 90.0, "spatial__int8": 9.0, "Transpose__int8": 1.0}
CONVERT = {"QuantizeLinear__float": 5.0, "DequantizeLinear__float": 5.0}
REORDER = {"ReorderInput__float": 1.0, "ReorderOutput__float": 1.0}


@pytest.mark.parametrize(("on_integers", "taken"), [(5.0, True), (12.0, True), (40.0, False)])
def test_costs_choose_a_slower_kernel_where_conversions_are_dearer(
    on_integers: float, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = flat(**CHEAP, **CONVERT, **REORDER, AveragePool__float=4.0, AveragePool__int8=on_integers)
    monkeypatch.setattr(placing, "cost_table", lambda _: table)
    proto = pooled_between_convolutions()
    found = place(prepared(proto), Config(), VNNI, feeds(proto, 1), tmp_path)
    assert found.slower == ({"pool"} if taken else frozenset())
    assert "pool" not in found.keep_float
    assert place(prepared(proto), Config(placement="all"), VNNI, feeds(proto, 1), tmp_path) == Placement()


def test_costs_choose_among_slower_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    softmax = {"Softmax__float": 4.0, "Softmax__int8": 90.0}
    table = flat(**CHEAP, **CONVERT, **REORDER, **softmax, AveragePool__float=4.0, AveragePool__int8=5.0)
    monkeypatch.setattr(placing, "cost_table", lambda _: table)
    n = Net()
    a = n("AveragePool", n.conv("x", 3, 16, name="a"), name="pool", kernel_shape=[2, 2], strides=[2, 2])
    n.conv(n("Softmax", n.conv(a, 16, 16, name="b"), name="softmax", axis=1), 16, 16, name="c", out="y")
    proto = n.model({"x": [1, 3, 8, 8]}, {"y": [1, 16, 4, 4]})
    found = place(prepared(proto), Config(), VNNI, feeds(proto, 1), tmp_path)
    assert found.slower == {"pool"}
    assert found.keep_float == {}


def test_a_slower_kernel_that_was_not_measured_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "cost_table", lambda _: flat(**CHEAP, **CONVERT, **REORDER, AveragePool__float=4.0))
    proto = pooled_between_convolutions()
    assert place(prepared(proto), Config(), VNNI, feeds(proto, 1), tmp_path).slower == frozenset()


@pytest.mark.parametrize("target", [name for name in TARGETS if cost_table(name) is not None])
def test_every_integer_kernel_has_a_cost_on_every_measured_target(target: str) -> None:
    table = cost_table(target)
    assert table is not None
    for name in FOLLOWERS:
        record = OPERATORS[name]
        if record.work is None:
            assert {(name, "float"), (name, "int8")} <= set(table.grids), name


def test_what_was_not_measured_costs_what_it_costs_in_float_or_nothing() -> None:
    table = flat(Sigmoid__float=7.0)
    assert table.cost("Sigmoid", "int8", 100) == table.cost("Sigmoid", "float", 100) == pytest.approx(7.0)
    assert table.cost("Mish", "float", 100) == table.cost("Mish", "int8", 100) == 0.0
    assert Work("Sigmoid", (100,)).known(table)
    assert not Work("Mish", (100,)).known(table)
    assert Work("", ()).known(table)
    assert Work("conv.widened", (3, 9, 16, 64), otherwise=Work("Sigmoid", (9,))).known(table)


def test_an_operator_without_work_of_its_own_is_looked_up_by_name_and_elements() -> None:
    model = prepared(softmax_between_convolutions())
    (softmax,) = (n for n in nodes(model) if n.name == "softmax")
    shapes = {softmax.outputs[0].name or "": (1, 16, 8, 8)}
    assert work_of(softmax, shapes, VNNI) == Work("Softmax", (1024,))
    assert work_of(softmax, {}, VNNI) is None


def test_what_nothing_is_known_of_stays_float() -> None:
    plain = Operator("Whatever")
    for name, domain in [("Whatever", ""), ("Conv", "my.own"), ("QLinearSigmoid", "my.own"), ("Gelu", "my.own")]:
        assert find(name, domain) == dataclasses.replace(plain, name=name, domains=(domain,))
    node = ir.node("Conv", [], domain="my.own")
    assert operator(node).role is Role.FLOAT
    assert ops.weight_slot(node) is None
    assert not ops.can_follow(node)


def test_records_agree_with_themselves() -> None:
    for name, record in OPERATORS.items():
        assert name == record.name
        assert (record.slot is not None) == (record.role is Role.ANCHOR)
        assert not record.absorbed or record.follows is False
        assert bool(record.kernels) >= (record.follows or record.role is Role.ANCHOR)
        assert all(named(k).quantized or named(k).kind == "integer movement" or k == "Clip" for k in record.kernels)
        assert record.fast_on is None or record.fast_on <= set(TARGETS)
        assert not record.gradient_outputs or record.gradient is Gradient.SMOOTH
        assert not record.moves_data or record.layout in (Layout.NONE, Layout.NEEDS)
