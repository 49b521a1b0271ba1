"""LSTM on integers: what is computed against brute force, where it is used, and where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from emitting import HERE, Emitted, emitted, session, sqnr
from onnx import TensorProto, helper
from zoo import Net, feeds, prepared

import onnxq
from onnxq.config import Config, Rule
from onnxq.emit import weight_key
from onnxq.graph.io import serialize
from onnxq.measure.kernels import kernel_map
from onnxq.plan import KeptFloat, ReasonCode, Storage, make_plan

Array = npt.NDArray[Any]
UNITS, INPUTS, BATCH = 96, 64, 2


def recurrent(
    direction: str = "forward",
    *,
    units: int = UNITS,
    op: str = "LSTM",
    extras: str = "",
    outputs: str = "y last cell",
    head: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """x [T, BATCH, INPUTS] -> one recurrent layer called "rnn"; ``extras`` of "b", "lengths", "states", "peepholes"."""
    n, count = Net(5), 2 if direction == "bidirectional" else 1
    gates = {"LSTM": 4, "GRU": 3}[op]
    inputs = {"x": ["T", BATCH, INPUTS]}
    given = [
        "x",
        n.const("w", n.rng.standard_normal((count, gates * units, INPUTS)) / np.sqrt(INPUTS)),
        n.const("r", n.rng.standard_normal((count, gates * units, units)) / np.sqrt(units)),
        n.const("b", n.rng.standard_normal((count, 2 * gates * units)) * 0.1) if "b" in extras.split() else "",
        n.const("lengths", [4, 2], np.int32) if "lengths" in extras.split() else "",
    ]
    if "states" in extras.split():
        inputs.update(h0=[count, BATCH, units], c0=[count, BATCH, units])
        given += ["h0", "c0"]
    if "peepholes" in extras.split():
        given += ["", ""] if "states" not in extras.split() else []
        given.append(n.const("p", n.rng.standard_normal((count, 3 * units)) * 0.1))
    shapes = {"y": ["T", count, BATCH, units], "last": [count, BATCH, units], "cell": [count, BATCH, units]}
    names = [o if o in outputs.split() else "" for o in shapes if op == "LSTM" or o != "cell"]
    while names and not names[-1]:
        names.pop()
    how = {"hidden_size": units, "direction": direction, **attributes}
    n.nodes.append(helper.make_node(op, given, names, name="rnn", **how))
    return n.model(inputs, {o: shapes[o] for o in names if o})


def steps(proto: onnx.ModelProto, length: int = 4, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    dims = {i.name: [d.dim_value or length for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    return {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in dims.items()}


def ran(proto: onnx.ModelProto | bytes) -> list[str]:
    content = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return [k.op for k in kernel_map(content).nodes]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    "extras", ["", "b", "b lengths", "b states", "b lengths states peepholes", "peepholes"], ids=lambda e: e or "plain"
)
def test_the_layer_runs_on_integers_with_all_its_inputs(direction: str, extras: str) -> None:
    proto = recurrent(direction, extras=extras)
    feed = steps(proto)
    e = emitted(proto, data=[feed])
    assert {w.storage for w in e.plan.weights} == {Storage.DYNAMIC}
    assert "DynamicQuantizeLSTM" in ran(e.content)
    assert "LSTM" not in ran(e.content)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 30.0


@pytest.mark.parametrize("outputs", ["y", "last", "cell", "y cell"])
def test_only_some_outputs_may_be_there(outputs: str) -> None:
    proto = recurrent(outputs=outputs, extras="b", clip=3.0, input_forget=0)
    feed = steps(proto)
    e = emitted(proto, data=[feed])
    assert "DynamicQuantizeLSTM" in ran(e.content)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 30.0


def dynamic(x: Array) -> Array:
    """DynamicQuantizeLinear, and back."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def test_one_step_is_what_the_definition_says() -> None:
    proto = recurrent(extras="b states")
    feed = steps(proto, length=1)
    e = emitted(proto, data=[feed])
    weights = {w.index: e.parameters.weights[weight_key(w)].dequantize()[0].astype(np.float64) for w in e.plan.weights}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    bias = constants["b"][0].astype(np.float64).reshape(2, -1).sum(0)
    gates = dynamic(feed["x"][0]) @ weights[1].T + dynamic(feed["h0"][0]) @ weights[2].T + bias
    i, o, f, c = (gates[:, k * UNITS : (k + 1) * UNITS] for k in range(4))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    cell = sigmoid(f) * feed["c0"][0] + sigmoid(i) * np.tanh(c)
    y, last, found = session(e.content).run(None, feed)
    # The runtime's own sigmoid and tanh are approximations.
    np.testing.assert_allclose(found[0], cell, atol=2e-5)
    np.testing.assert_allclose(last[0], sigmoid(o) * np.tanh(cell), atol=2e-5)
    np.testing.assert_array_equal(y[0], last)


@pytest.mark.parametrize("stored", ["int4", "int3", "codebook4"])
def test_weights_of_few_bits_become_integers_at_load(stored: str) -> None:
    proto = recurrent("bidirectional", extras="b", outputs="y")
    feed = steps(proto)
    e = emitted(proto, data=[feed], config=Config(weights=stored, first_last=stored))
    assert "DynamicQuantizeLSTM" in ran(e.content)
    assert len(e.content) < 0.65 * len(emitted(proto, data=[feed]).content)
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    for tensor in plain.graph.initializer:
        for w in e.plan.weights:
            if w.tensor == tensor.name:
                real = e.parameters.weights[weight_key(w)].dequantize()
                tensor.CopyFrom(onnx.numpy_helper.from_array(real, tensor.name))
    assert sqnr(session(plain).run(None, feed), session(e.content).run(None, feed)) > 30.0


@pytest.mark.parametrize(
    ("proto", "config"),
    [
        (recurrent(units=32), Config()),
        (recurrent(op="GRU"), Config()),
        (recurrent(), Config(operators="standard")),
        (recurrent(), Config(activations="uint4")),
        (recurrent(), Config(rules=(Rule(match="rnn", precision="stored"),))),
    ],
    ids=["few units", "GRU", "standard operators", "simulated", "rule"],
)
def test_elsewhere_weights_are_stored_only(proto: onnx.ModelProto, config: Config) -> None:
    e = emitted(proto, data=[steps(proto)], config=config)
    assert {w.storage for w in e.plan.weights} == {Storage.PACKED}
    assert "DynamicQuantizeLSTM" not in ran(e.content)


def test_another_layout_stays_float() -> None:
    plan = make_plan(prepared(recurrent(outputs="y", layout=1)), Config(), HERE)  # which no runtime runs today
    assert {w.storage for w in plan.weights} == {Storage.PACKED}


def test_a_rule_for_float_leaves_the_weights() -> None:
    proto = recurrent()
    e = emitted(proto, data=[steps(proto)], config=Config(rules=(Rule(match="rnn", precision="float"),)))
    assert e.plan.weights == ()
    assert [(s.node, s.reason) for s in e.plan.skipped] == [("rnn", "kept float by rule 'rnn'")]


def test_layers_that_lost_too_much_are_given_back() -> None:
    """One input is a thousand times the others: one range a tensor leaves nothing of these."""
    proto = recurrent(extras="b", outputs="y")
    weights = {t.name: t for t in proto.graph.initializer}
    w = onnx.numpy_helper.to_array(weights["w"]).copy()
    w[:, :, 0] /= 1000.0
    weights["w"].CopyFrom(onnx.numpy_helper.from_array(w, "w"))
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 32 * BATCH, INPUTS)).astype(np.float32)
    x[:, :, 0] *= 1000.0
    data = [{"x": x[:, i : i + BATCH]} for i in range(0, x.shape[1], BATCH)]
    plan = emitted(proto, data=data).plan
    assert plan.layers == ("rnn",)
    assert plan.anchors == ()
    result = onnxq.quantize(proto, data, config=Config(equalize="none"))
    assert "LSTM" in ran(serialize(result.model))
    assert any("1 of 1 layers stay float because they cost too much accuracy: rnn" in n for n in result.report.notes)
    equal = onnxq.quantize(proto, data)  # unless its channels can be made alike in front of it
    assert ran(serialize(equal.model)) == ["Mul", "DynamicQuantizeLSTM"]
    assert not any("stay float" in n for n in equal.report.notes)
    assert equal.report.sqnr_db > 20.0
    kept = onnxq.quantize(recurrent(extras="b", outputs="y"), data=[steps(proto, seed=s) for s in range(16)])
    assert kept.report.integer
    assert "DynamicQuantizeLSTM" in ran(serialize(kept.model))


def test_so_do_layers_in_the_body_of_a_loop() -> None:
    n = Net(3)
    inner = recurrent(outputs="y")
    graph = inner.graph
    graph.node[0].output[0] = "one"
    body = helper.make_graph(
        [
            *graph.node,
            helper.make_node("ReduceMean", ["one"], ["mean"], name="mean", axes=[0, 1], keepdims=0),
            helper.make_node("Identity", ["go"], ["on"], name="same"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, [BATCH, UNITS]),
        ],
        list(graph.initializer),
    )
    n.nodes.append(helper.make_node("Loop", [n.const("count", 2, np.int64), ""], ["z"], name="loop", body=body))
    proto = n.model({"x": [4, BATCH, INPUTS]}, {"z": [2, BATCH, UNITS]})
    (feed,) = feeds(proto, 1)
    e = emitted(proto, data=[feed])
    assert {w.storage for w in e.plan.weights} == {Storage.DYNAMIC}
    assert "DynamicQuantizeLSTM" in ran(e.content)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 25.0


def test_a_node_kept_float_for_a_look_has_its_own_weights() -> None:
    proto = recurrent()
    e = emitted(proto, data=[steps(proto)], keep_float={"rnn": KeptFloat("quantized alone")})
    assert e.plan.weights == ()


def test_the_outlook_counts_it_among_integers() -> None:
    outlook = onnxq.inspect(recurrent("bidirectional", extras="b")).outlook
    assert outlook is not None
    (row,) = [o for o in outlook.ops if o.op == "LSTM"]
    assert (row.nodes, row.integer, row.left_float) == (1, 1, 0)
    assert outlook.integer_bytes == 4 * 2 * 4 * UNITS * (INPUTS + UNITS)
    assert outlook.left == ()


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_weights_are_rounded_by_what_they_multiply(direction: str) -> None:
    """Inputs and states are alike from step to step: codes that make up for each other lose less at the outputs."""
    proto = recurrent(direction, extras="b", outputs="y")
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((INPUTS // 8, INPUTS)).astype(np.float32) / 2
    data = [{"x": (rng.standard_normal((6, BATCH, INPUTS // 8)) @ mix).astype(np.float32)} for _ in range(60)]
    config = {"weights": "int3", "first_last": "int3", "min_agreement": 0.0, "guard_sqnr": -100.0}
    together, nearest = (
        onnxq.quantize(proto, data, config=Config(rounding=rounding, **config)).report.sqnr_db
        for rounding in ("auto", "nearest")
    )
    assert together > nearest + 3.0


# -- input in two parts ---------------------------------------------------------------------------------------------

TWO_PARTS = KeptFloat.of(ReasonCode.TWO_PARTS, Storage.TWO_PARTS)


def of_kind(proto: onnx.ModelProto, storage: Storage, feed: dict[str, Array]) -> Emitted:
    (name,) = (n.name for n in proto.graph.node if n.op_type == "LSTM")
    return emitted(proto, keep_float={name: KeptFloat("measured", storage)}, data=[feed])


def in_two_parts(x: Array) -> tuple[Array, Array]:
    """What the layer reads of ``x``: on the grid that leaves 6 codes at both ends, and what that has lost, on it."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = (high - low) / np.float32(255)
    zero = np.rint(np.rint(-low / scale) * np.float32(243 / 255)) + 6
    scale = scale * np.float32(255 / 243)
    grid = lambda v: ((np.clip(np.rint(v / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)  # noqa: E731
    coarse = grid(x)
    return coarse, grid(12 * (x - coarse))


@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_one_step_in_two_parts_is_what_the_definition_says(sign: str) -> None:
    proto = recurrent(extras="b states")
    feed = steps(proto, length=1)
    if sign != "both":
        feed["x"] = np.abs(feed["x"]) * (1 if sign == "positive" else -1)
    e = of_kind(proto, Storage.TWO_PARTS, feed)
    assert {w.index: w.storage for w in e.plan.weights} == {1: Storage.TWO_PARTS, 2: Storage.DYNAMIC}
    stored = {w.index: e.parameters.weights[weight_key(w)] for w in e.plan.weights}
    scale = stored[1].params.scale.reshape(-1).astype(np.float64)
    codes = stored[1].codes[0].astype(np.float64)
    coarse, fine = in_two_parts(feed["x"][0])
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    bias = constants["b"][0].astype(np.float64).reshape(2, -1).sum(0)
    gates = (coarse @ codes.T + fine @ np.rint(codes / 12).T) * scale
    gates = gates + dynamic(feed["h0"][0]) @ stored[2].dequantize()[0].T + bias
    i, o, f, c = (gates[:, k * UNITS : (k + 1) * UNITS] for k in range(4))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    cell = sigmoid(f) * feed["c0"][0] + sigmoid(i) * np.tanh(c)
    for optimized in (False, True):
        y, last, found = session(e.content, optimized=optimized).run(None, feed)
        np.testing.assert_allclose(found[0], cell, atol=2e-5)
        np.testing.assert_allclose(last[0], sigmoid(o) * np.tanh(cell), atol=2e-5)
        np.testing.assert_array_equal(y[0], last)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_input_of_a_large_range_loses_less_in_two_parts(direction: str) -> None:
    proto = recurrent(direction, extras="b lengths states peepholes")
    feed = steps(proto, length=6)
    feed["x"][:, :, 3] *= 40.0  # few codes are left for the others
    w = next(t for t in proto.graph.initializer if t.name == "w")
    array = onnx.numpy_helper.to_array(w).copy()
    array[:, :, 3] /= 40.0
    w.CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    reference = session(proto).run(None, feed)
    found = {}
    for storage in (Storage.DYNAMIC, Storage.TWO_PARTS, Storage.PACKED):
        e = of_kind(proto, storage, feed)
        assert ("DynamicQuantizeLSTM" in ran(e.content)) == (storage is not Storage.PACKED)
        found[storage] = sqnr(reference, session(e.content).run(None, feed))
    assert found[Storage.TWO_PARTS] > found[Storage.DYNAMIC] + 6.0


def test_few_bits_are_read_in_one_part() -> None:
    proto = recurrent(extras="b")
    feed = steps(proto)
    e = emitted(proto, keep_float={"rnn": TWO_PARTS}, data=[feed], config=Config(weights="int4", first_last="int4"))
    assert {w.storage for w in e.plan.weights} == {Storage.DYNAMIC}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_recurrent_layer_in_float_keeps_small_weights(kind: str) -> None:
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * UNITS
    rng = np.random.default_rng(4)
    weights = {"w": (1, rows, 32), "r": (1, rows, UNITS)}
    n = Net()
    names = [n.const(name, 0.1 * rng.standard_normal(shape), np.float32) for name, shape in weights.items()]
    n(kind, "x", *names, name="layer", out="y", hidden_size=UNITS)
    proto = n.model({"x": ["steps", 2, 32]}, {"y": ["steps", 1, 2, UNITS]})
    feed = {"x": rng.standard_normal((5, 2, 32)).astype(np.float32)}
    kept = {"layer": KeptFloat.of(ReasonCode.ACCURACY, Storage.PACKED)}
    e = emitted(proto, keep_float=kept, data=[feed])
    assert {w.storage for w in e.plan.weights} == {Storage.PACKED}
    assert kind in ran(e.content)
    assert len(e.content) < 0.35 * len(proto.SerializeToString())
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 35.0


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_weight_that_holds_factors_is_not_stored_with_a_scale_for_each_row(kind: str) -> None:
    """Where the layer is float the factors make nothing better, and its weights 60 times as unlike."""
    rng = np.random.default_rng(4)
    factors = np.logspace(-0.9, 0.9, INPUTS).astype(np.float32)
    proto = recurrent(op=kind, extras="b", outputs="y")
    w = next(t for t in proto.graph.initializer if t.name == "w")
    w.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(w) / factors, "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(factors, "factors"))
    proto.graph.node.insert(0, helper.make_node("Mul", ["x", "factors"], ["scaled"], name="equalized"))
    proto.graph.node[1].input[0] = "scaled"
    feed = {"x": rng.standard_normal((4, BATCH, INPUTS)).astype(np.float32)}
    kept = {
        "rnn": KeptFloat.of(ReasonCode.ACCURACY, Storage.PACKED),
        "equalized": KeptFloat.of(ReasonCode.EQUALIZES, why="makes channels alike before they are rounded"),
    }
    e = emitted(proto, keep_float=kept, data=[feed])
    assert {w.index: w.storage for w in e.plan.weights} == {2: Storage.PACKED}
    reference = session(proto).run(None, feed)
    plain = emitted(proto, keep_float={"rnn": kept["rnn"]}, data=[feed])
    assert {w.index: w.storage for w in plain.plan.weights} == {1: Storage.PACKED, 2: Storage.PACKED}
    assert (
        sqnr(reference, session(e.content).run(None, feed))
        > sqnr(reference, session(plain.content).run(None, feed)) + 3
    )
