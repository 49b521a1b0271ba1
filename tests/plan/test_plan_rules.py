"""What a plan follows: rules, nodes kept float, the followers' fixed point, and the reasons it gives."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from zoo import ZOO, Net, attention, concat, gemm, if_body, loop_body, mobilenet, prepared, residual, silu

from onnxq.config import Config, Rule
from onnxq.kernels.targets import TARGETS
from onnxq.numerics import INT7_NARROW, UINT8, PerAxis
from onnxq.plan import (
    KeptFloat,
    Own,
    Plan,
    Point,
    ReasonCode,
    SharedWith,
    Storage,
    Weight,
    fused_output,
    make_plan,
)
from onnxq.plan.place import Placement
from onnxq.plan.planner import nothing_to_quantize
from onnxq.search.remember import as_config

VNNI = TARGETS["x86-vnni"]


def plan_of(
    proto: onnx.ModelProto, *rules: Rule, keep_float: dict[str, KeptFloat] | None = None, target: str = "x86-vnni"
) -> Plan:
    return make_plan(prepared(proto), Config(rules=rules), TARGETS[target], keep_float=keep_float)


def reasons(plan: Plan) -> dict[str, str]:
    return {s.node: s.reason for s in plan.skipped}


def point(plan: Plan, tensor: str) -> Point | None:
    return next((p for p in plan.points if p.tensor == tensor), None)


# -- rules ----------------------------------------------------------------------------------------------------------


def test_a_rule_keeps_a_node_float_and_is_named() -> None:
    plan = plan_of(residual(), Rule("conv1"))
    assert plan.anchors == ("stem", "conv2", "fc")
    assert reasons(plan) == {"conv1": "kept float by rule 'conv1'"}
    assert "conv1" not in {w.node for w in plan.weights} | {b.node for b in plan.biases}


def test_the_first_matching_rule_wins() -> None:
    assert plan_of(residual(), Rule("conv2", "int8"), Rule("conv*")).anchors == ("stem", "conv2", "fc")
    assert plan_of(residual(), Rule("conv*"), Rule("conv2", "int8")).anchors == ("stem", "fc")


def test_a_rule_speaks_of_operator_types_too() -> None:
    plan = plan_of(residual(), Rule("Conv"))
    assert plan.anchors == ("fc",)
    assert {p.tensor for p in plan.points} == {"flatten_out"}


def test_rules_that_match_nothing_are_reported() -> None:
    plan = plan_of(residual(), Rule("nowhere*"), Rule("conv1"), Rule("Softmax"))
    assert plan.unused_rules == ("nowhere*", "Softmax")
    assert str(plan).endswith("unused   rule nowhere*\nunused   rule Softmax")


def test_a_rule_keeps_a_follower_float() -> None:
    plan = plan_of(residual(), Rule("Add"))
    assert "add" not in plan.integer
    assert reasons(plan)["add"] == "kept float by rule 'Add'"


def test_an_int8_rule_does_not_override_an_obstacle() -> None:
    assert "scores" in reasons(plan_of(attention(), Rule("*", "int8")))


# -- keep_float: what measurements said -----------------------------------------------------------------------------


def big_gemms() -> onnx.ModelProto:
    n = Net()
    h = n("Relu", n("Gemm", "x", n.weight("w1", 48, 48), n.vector("b1", 48), name="fc1", transB=1), name="relu")
    h = n.linear(h, 48, 48, name="mm")
    n("Gemm", h, n.weight("w2", 48, 48), name="fc2", out="y")
    return n.model({"x": ["n", 48]}, {"y": ["n", 48]})


@pytest.mark.parametrize("storage", [None, Storage.DYNAMIC, Storage.PACKED])
def test_three_ways_to_keep_a_layer_float(storage: Storage | None) -> None:
    plan = plan_of(big_gemms(), keep_float={"fc1": KeptFloat("because", storage)})
    assert plan.anchors == ("mm", "fc2")
    assert reasons(plan) == {"fc1": "because"}
    mine = [(w.storage, w.granularity) for w in plan.weights if w.node == "fc1"]
    assert mine == ([] if storage is None else [(storage, PerAxis(0))])
    # the bias stays float, known as one that may be corrected
    assert [b.storage for b in plan.biases if b.node == "fc1"] == ([] if storage is None else [storage])


def test_dynamic_falls_back_to_packed_for_convolutions() -> None:
    n = Net()
    y = n.conv(n.conv("x", 8, 16, name="one"), 16, 16, name="two", out="y")
    plan = plan_of(
        n.model({"x": [1, 8, 4, 4]}, {y: [1, 16, 4, 4]}), keep_float={"one": KeptFloat("r", Storage.DYNAMIC)}
    )
    assert [(w.node, w.storage) for w in plan.weights] == [("two", Storage.INTEGER), ("one", Storage.PACKED)]


def test_a_rule_outranks_what_was_measured() -> None:
    plan = plan_of(big_gemms(), Rule("fc1"), keep_float={"fc1": KeptFloat("because", Storage.PACKED)})
    assert reasons(plan) == {"fc1": "kept float by rule 'fc1'"}
    assert {w.node for w in plan.weights} == {"mm", "fc2"}


def test_small_weights_are_not_packed() -> None:
    assert [w.node for w in plan_of(gemm(), keep_float={"fc1": KeptFloat("r", Storage.PACKED)}).weights] == ["fc2"]


# -- followers ------------------------------------------------------------------------------------------------------


def test_followers_lie_between_integers() -> None:
    """Every follower reads integers and is read by a node that wants them."""
    for name, make in ZOO.items():
        model = prepared(make())
        plan = make_plan(model, Config(), VNNI)
        named = {n.name: n for n in model.graph.all_nodes()}
        pointed = {p.tensor for p in plan.points}
        for follower in set(plan.integer) - set(plan.anchors):
            node = named[follower]
            assert {v.name for v in node.inputs[:1]} <= pointed, name
            readers = {u.node.name for out in (fused_output(node), *node.outputs) for u in out.uses()}
            assert readers & set(plan.integer), name


def chain_of_adds(length: int, *, ends_in_conv: bool) -> onnx.ModelProto:
    n = Net()
    x = n.conv("x", 4, 4, name="first")
    y = x
    for i in range(length):
        y = n("Add", y, x, name=f"add{i}")
    if ends_in_conv:
        n.conv(y, 4, 4, name="last", out="y")
    else:
        n("Tanh", y, name="last", out="y")
    return n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 4, 4]})


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_chain_is_taken_whole_or_not_at_all(length: int) -> None:
    """The last Add decides: nobody who wants integers reads it, so it goes, then its maker, and so on."""
    adds = {f"add{i}" for i in range(length)}
    assert adds <= set(plan_of(chain_of_adds(length, ends_in_conv=True)).integer)
    assert not adds & set(plan_of(chain_of_adds(length, ends_in_conv=False)).integer)


def test_a_float_operand_keeps_an_add_float() -> None:
    n = Net()
    y = n("Add", n.conv("x", 4, 4, name="one"), n("Tanh", "x", name="tanh"), name="add")
    n.conv(y, 4, 4, name="two", out="y")
    plan = plan_of(n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 4, 4]}))
    assert plan.integer == ("one", "two")


def test_a_per_channel_gate_from_float_is_cheap_enough() -> None:
    n = Net()
    gate = n("Tanh", n("ReduceMean", "x", name="mean", axes=[2, 3]), name="tanh")
    n.conv(n("Mul", n.conv("x", 4, 4, name="one"), gate, name="mul"), 4, 4, name="two", out="y")
    plan = plan_of(n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 4, 4]}))
    assert plan.integer == ("one", "mul", "two")
    gate_point = point(plan, "tanh_out")
    assert gate_point is not None
    assert gate_point.consumers == ("mul",)


def test_the_order_of_nodes_does_not_matter() -> None:
    """The same graph with its independent nodes listed in every order gives the same points and kernels."""
    proto = concat()
    convs = [i for i, n in enumerate(proto.graph.node) if n.name in ("left", "right")]
    relus = [i for i, n in enumerate(proto.graph.node) if n.name in ("left_relu", "right_relu")]
    rest = [i for i in range(len(proto.graph.node)) if i not in convs + relus]
    found = set()
    for a, b in itertools.product(itertools.permutations(convs), itertools.permutations(relus)):
        shuffled = onnx.ModelProto()
        shuffled.CopyFrom(proto)
        del shuffled.graph.node[:]
        shuffled.graph.node.extend(proto.graph.node[i] for i in (*a, *b, *rest))
        plan = plan_of(shuffled)
        found.add((frozenset(plan.integer), frozenset((p.tensor, str(p.source)) for p in plan.points)))
    assert len(found) == 1


@pytest.mark.parametrize(("magnitude", "taken"), [(9.9e3, True), (1e4, False), (3.4e38, False), (np.inf, False)])
def test_masks_are_not_quantized(magnitude: float, taken: bool) -> None:
    n = Net()
    mask = n.const("mask", np.where(np.eye(4) > 0, 0.0, -magnitude).reshape(1, 1, 4, 4))
    n.conv(n("Add", n.conv("x", 4, 4, name="one"), mask, name="add"), 4, 4, name="two", out="y")
    plan = plan_of(n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 4, 4]}))
    assert ("add" in plan.integer) == taken
    assert [c.tensor for c in plan.constants] == (["mask"] if taken else [])


@pytest.mark.parametrize(
    ("op", "how", "taken"),
    [
        ("Sigmoid", {}, True),
        ("LeakyRelu", {"alpha": 0.1}, True),
        ("Tanh", {}, False),
        ("Softmax", {"axis": 1}, False),
        ("AveragePool", {"kernel_shape": [1, 1]}, False),
        ("HardSwish", {}, True),
        ("HardSigmoid", {"alpha": 0.3}, True),
        ("HardSigmoid", {"alpha": -0.3}, False),
        ("Transpose", {"perm": [0, 1, 3, 2]}, True),
    ],
)
def test_only_kernels_that_pay_are_followers(op: str, how: dict[str, object], taken: bool) -> None:
    n = Net()
    n.conv(n(op, n.conv("x", 4, 4, name="one"), name="between", **how), 4, 4, name="two", out="y")
    assert ("between" in plan_of(n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 4, 4]})).integer) == taken


@pytest.mark.parametrize(("mode", "taken"), [("nearest", True), ("linear", False), ("cubic", False)])
def test_resize_is_taken_only_where_it_copies(mode: str, taken: bool) -> None:
    n = Net()
    y = n("Resize", n.conv("x", 4, 4, name="one"), "", n.const("scales", [1, 1, 2, 2]), name="resize", mode=mode)
    n.conv(y, 4, 4, name="two", out="y")
    assert ("resize" in plan_of(n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 8, 8]})).integer) == taken


# -- points ---------------------------------------------------------------------------------------------------------


def test_what_moves_data_shares_parameters_and_is_not_observed() -> None:
    plan = plan_of(ZOO["maxpool"]())
    pooled = point(plan, "pool_out")
    assert pooled is not None
    assert pooled.source == SharedWith("relu_out")
    assert "pool_out" not in plan.observed
    assert "relu_out" in plan.observed


def test_an_absorbed_relu_leaves_no_point_before_it() -> None:
    plan = plan_of(residual())
    assert point(plan, "stem_out") is None
    assert point(plan, "stem_relu_out") == Point("stem_relu_out", UINT8, Own())


@pytest.mark.parametrize(
    ("low", "high", "ceiling"), [(0.0, 6.0, 6.0), (0.0, None, None), (-1.0, 6.0, "kept"), (0.0, 0.0, "kept")]
)
def test_which_clips_are_absorbed(low: float, high: float | None, ceiling: float | str | None) -> None:
    n = Net()
    ends = [n.const("low", low)] + ([] if high is None else [n.const("high", high)])
    n.conv(n("Clip", n.conv("x", 4, 4, name="one"), *ends, name="clip"), 4, 4, name="two", out="y")
    plan = plan_of(n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 4, 4]}))
    if ceiling == "kept":  # the convolution's output is quantized before the Clip, which computes in float
        assert point(plan, "one_out") is not None
    else:
        assert point(plan, "one_out") is None
        clipped = point(plan, "clip_out")
        assert clipped is not None
        assert clipped.ceiling == ceiling


def test_a_relu_whose_input_is_read_elsewhere_is_not_absorbed() -> None:
    n = Net()
    x = n.conv("x", 4, 4, name="one")
    n.conv(n("Add", n("Relu", x, name="relu"), x, name="add"), 4, 4, name="two", out="y")
    assert point(plan_of(n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 4, 4]})), "one_out") is not None


def test_the_residual_stream_of_a_transformer_stays_float() -> None:
    plan = plan_of(ZOO["transformer_mlp"]())
    assert point(plan, "down_bias_out") is None
    stream = point(plan, "residual_out")
    assert stream is not None
    assert stream.consumers == ("head",)
    assert "residual" not in plan.integer


def test_attention_keeps_scores_mask_and_softmax_float() -> None:
    plan = plan_of(attention())
    assert plan.integer == ("q", "k", "v", "proj")
    assert {p.tensor for p in plan.points} == {"x", "mix_out"}
    assert not plan.constants


def test_a_layer_followed_by_relu_writes_integers_for_float_readers() -> None:
    """onnxruntime leaves Gemm and MatMul in float where a Relu follows that no quantizer absorbs."""
    plan = plan_of(ZOO["relu_then_float"]())
    assert point(plan, "relu1_out") == Point("relu1_out", UINT8)
    assert point(plan, "y") == Point("y", UINT8)


# -- weights and obstacles ------------------------------------------------------------------------------------------


def one_gemm(**how: object) -> onnx.ModelProto:
    n = Net()
    rows = how.pop("rows", [5])
    n("Gemm", "x", n.weight("w", 5, 5), n.const("c", np.ones(rows)), name="fc", out="y", **how)
    return n.model({"x": [5, 5]}, {"y": [5, 5]})


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"alpha": 0.5}, "alpha and beta are not 1"),
        ({"beta": 2.0}, "alpha and beta are not 1"),
        ({"transA": 1}, "its input is transposed"),
        ({"rows": [1]}, "its bias has shape [1]"),
        ({"rows": [5, 5]}, "its bias has shape [5, 5]"),
        ({"rows": [5, 1]}, "its bias has shape [5, 1]"),
    ],
)
def test_gemms_that_no_kernel_takes(how: dict[str, object], complaint: str) -> None:
    plan = plan_of(one_gemm(**how))
    assert not plan.anchors
    assert reasons(plan)["fc"].startswith(complaint)
    assert nothing_to_quantize(plan).startswith(f"nothing to quantize: Gemm 'fc': {complaint}")


@pytest.mark.parametrize("rows", [[5], [1, 5]])
def test_gemm_biases_that_are_one_entry_a_channel(rows: list[int]) -> None:
    assert [b.tensor for b in plan_of(one_gemm(rows=rows)).biases] == ["c"]


def test_a_constant_on_the_left_and_a_stack_of_matrices_stay_float() -> None:
    n = Net()
    left = n("MatMul", n.weight("w", 4, 4), "x", name="left")
    n("MatMul", left, n.weight("stack", 2, 4, 4), name="stacked", out="y")
    told = reasons(plan_of(n.model({"x": [2, 4, 4]}, {"y": [2, 4, 4]})))
    assert told["left"] == "its constant is on the left, where no integer kernel takes weights"
    assert told["stacked"] == "its weight has rank 3; integer kernels take matrices"


def test_a_model_without_weights_says_so() -> None:
    n = Net()
    n("Relu", "x", name="relu", out="y")
    plan = plan_of(n.model({"x": [2]}, {"y": [2]}))
    assert (plan.anchors, plan.weights) == ((), ())
    assert nothing_to_quantize(plan) == (
        "nothing to quantize: the model has no Conv, Gemm or MatMul with constant weights"
    )


def test_many_reasons_are_cut_short() -> None:
    plan = plan_of(mobilenet(), Rule("*"))
    assert nothing_to_quantize(plan).count("kept float by rule '*'") == 3
    assert nothing_to_quantize(plan).endswith("; ...")


def test_a_bias_that_would_raise_the_rank_is_not_absorbed() -> None:
    n = Net()
    y = n("MatMul", "x", n.weight("w", 4, 4), name="mm")
    n("Add", y, n.const("b", np.ones((1, 1, 4))), name="add", out="y")
    assert not plan_of(n.model({"x": [2, 4]}, {"y": [1, 2, 4]})).biases


def test_the_target_decides_the_weights_type() -> None:
    plan = plan_of(silu(), target="x86-avx2")
    assert {w.qtype for w in plan.weights} == {INT7_NARROW}
    assert {p.qtype for p in plan.points} == {UINT8}


def test_bodies_of_if_are_planned_and_those_of_loop_measure_at_run_time() -> None:
    assert {"inner_then", "inner_else"} <= set(plan_of(if_body()).anchors)
    plan = plan_of(loop_body())
    assert [w.storage for w in plan.weights if w.node == "step"] == [Storage.DYNAMIC]
    assert reasons(plan)["step"] == "inside a Loop or Scan body, where calibration fixes no range"


def test_a_rule_reaches_into_a_loop() -> None:
    plan = plan_of(loop_body(), Rule("step"))
    assert "step" not in {w.node for w in plan.weights}


def test_planning_changes_nothing() -> None:
    import onnx_ir as ir

    model = prepared(residual())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    make_plan(model, Config(), VNNI)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_plan_prints_every_kind_of_line() -> None:
    plan = Plan(
        points=(Point("t", UINT8, SharedWith("s"), ("a", "b"), 6.0),),
        weights=(Weight("w", "n", 1, INT7_NARROW, PerAxis(0), Storage.PACKED),),
        integer=("n", "m"),
        anchors=("n",),
        unused_rules=("r",),
    )
    assert str(plan).splitlines() == [
        "1 weighted and 1 other integer nodes",
        "point    t: uint8 as s <= 6 -> a, b",
        "weight   n[1] w: int7n per-axis(0) stored int8, computed float",
        "unused   rule r",
    ]


def test_max_pool_beside_a_convolution_that_reads_the_same_stays_float() -> None:
    n = Net()
    x = n("Tanh", "x", name="tanh")
    y = n("MaxPool", x, name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    y = n("Concat", y, n.conv(x, 4, 4, name="one"), name="joined", axis=1)
    n.conv(y, 8, 4, k=1, name="two", out="y")
    assert "pool" not in plan_of(n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 4, 4]})).integer


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        ((), ("GlobalAveragePool",), True),  # right behind a convolution
        (("Relu",), ("GlobalAveragePool",), True),
        (("Sigmoid",), ("GlobalAveragePool",), False),  # the layout of convolutions is not carried on
        (("Sigmoid",), (), True),  # a convolution reads it
        (("Sigmoid",), ("LeakyRelu", "Sigmoid"), True),
        (("Sigmoid",), ("Reshape",), False),
    ],
)
def test_max_pool_on_integers_only_in_the_layout_of_convolutions(
    before: tuple[str, ...], after: tuple[str, ...], taken: bool
) -> None:
    n = Net()
    y = n.conv("x", 4, 4, name="one")
    for i, op in enumerate(before):
        y = n(op, y, name=f"before{i}")
    y = n("MaxPool", y, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    for i, op in enumerate(after):
        shape = [n.const("shape", [1, 4, 1, 4], np.int64)] if op == "Reshape" else []
        y = n(op, y, *shape, name=f"after{i}")
    n.conv(y, 4, 4, k=1, name="two", out="y")
    assert ("pool" in plan_of(n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, "h", "w"]})).integer) == taken


def test_a_weight_made_of_constants_is_no_activation():
    one = numpy_helper.from_array(np.array([0.5], np.float32))
    made = {
        "computed, from constants alone": helper.make_node("ConstantOfShape", ["shape"], ["w"], value=one),
        "multiplies two activations": helper.make_node("Transpose", ["x"], ["w"]),
    }
    for reason, weight in made.items():
        graph = helper.make_graph(
            [weight, helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 512])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.array([512, 512]), "shape")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        assert reason in nothing_to_quantize(plan_of(model))


def test_a_rule_puts_a_layer_on_integers_with_its_input_in_two_parts() -> None:
    plan = plan_of(big_gemms(), Rule("mm", "int8-two-parts"))
    assert {w.node: w.storage for w in plan.weights}["mm"] is Storage.TWO_PARTS
    assert plan.anchors == ("fc1", "fc2")
    assert set(plan.layers) == {"fc1", "mm", "fc2"}
    n = Net()
    y = n.conv("x", 8, 16, name="one", out="y")
    proto = n.model({"x": [1, 8, 4, 4]}, {y: [1, 16, 4, 4]})
    assert [w.storage for w in plan_of(proto, Rule("one", "int8-two-parts")).weights] == [Storage.PACKED]


def test_what_was_kept_from_the_usual_kernels_is_spelled_out_as_rules() -> None:
    graph = prepared(big_gemms())
    kept = {
        "fc1": KeptFloat("r"),
        "mm": KeptFloat.of(ReasonCode.TWO_PARTS, Storage.TWO_PARTS),
        "fc2": KeptFloat("r", Storage.PACKED),
    }
    plan = make_plan(graph, Config(), TARGETS["x86-vnni"], keep_float=kept)
    config = as_config(Config(), SimpleNamespace(plan=plan, kept_float=kept), Placement(), graph.graph)  # type: ignore[arg-type]
    assert {rule.match: rule.precision for rule in config.rules} == {
        "fc1": "float",
        "mm": "int8-two-parts",
        "fc2": "stored",
    }
    again = make_plan(graph, config, TARGETS["x86-vnni"])
    assert again.weights == plan.weights
