"""Recurrent layers in training: the same outputs as onnxruntime's own kernels, gradients against finite differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from adapting import built, correlated, runtime
from onnx import helper
from zoo import Net, prepared

from onnxq import Config, quantize
from onnxq.adapt import levels
from onnxq.adapt import runtime as home
from onnxq.adapt.engine import Engine
from onnxq.adapt.gradients import differentiable, new_input, obstacle, summed, with_gradient
from onnxq.adapt.joint import adapt_jointly
from onnxq.adapt.samples import Samples, Split
from onnxq.adapt.simulation import Simulation
from onnxq.adapt.trainer import Schedule
from onnxq.emit import emit
from onnxq.graph.copying import copy_model
from onnxq.graph.io import serialize
from onnxq.runtime.session import open_session

RNG = np.random.default_rng(6)
GATES = {"LSTM": 4, "GRU": 3}
UNITS, INPUTS, STEPS = 6, 4, 5


def layer(
    n: Net, x: str, op: str, direction: str, outputs: str, *, given: str = "", units: int = UNITS, inputs: int = INPUTS
) -> None:
    """A recurrent node "rnn"; ``given`` of "b", "h0" and "c0" as inputs of the model, "lengths" as a constant."""
    count, gates, words = 2 if direction == "bidirectional" else 1, GATES[op], given.split()
    names = [
        x,
        n.const("w", n.rng.standard_normal((count, gates * units, inputs)) / np.sqrt(inputs)),
        n.const("r", n.rng.standard_normal((count, gates * units, units)) / np.sqrt(units)),
        n.const("b", n.rng.standard_normal((count, 2 * gates * units)) * 0.3) if "b" in words else "",
        n.const("lengths", [STEPS, 2, 3], np.int32) if "lengths" in words else "",
        *(state if state in words else "" for state in ("h0", "c0")[: 2 if op == "LSTM" else 1]),
    ]
    all_outputs = [o if o in outputs.split() else "" for o in ("y", "h", "c")[: 3 if op == "LSTM" else 2]]
    n.nodes.append(helper.make_node(op, names, all_outputs, name="rnn", hidden_size=units, direction=direction))


def alone(op: str, direction: str, outputs: str, given: str = "") -> onnx.ModelProto:
    n, count = Net(3), 2 if direction == "bidirectional" else 1
    layer(n, "x", op, direction, outputs, given=given)
    state = [count, "n", UNITS]
    shapes: dict[str, list[Any]] = {"y": ["t", count, "n", UNITS], "h": state, "c": state}
    inputs = {"x": ["t", "n", INPUTS], **{s: state for s in ("h0", "c0") if s in given.split()}}
    return n.model(inputs, {o: shapes[o] for o in outputs.split()})


def feed(model: ir.Model) -> dict[str, Any]:
    of = {"t": STEPS, "n": 3}
    return {
        v.name or "": RNG.standard_normal([of.get(str(d), d) for d in v.shape or ()]).astype(np.float32)
        for v in model.graph.inputs
    }


@pytest.mark.parametrize("given", ["", "b", "b h0 c0"])
@pytest.mark.parametrize("outputs", ["y", "h", "y h"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_every_direction_computes_the_same_and_has_gradients(op: str, direction: str, outputs: str, given: str) -> None:
    model = prepared(alone(op, direction, outputs, given if op == "LSTM" else given.replace(" c0", "")))
    copy = copy_model(model)
    differentiable(copy)
    assert obstacle(copy) is None
    assert {"x", "w", "r"} <= with_gradient(copy)
    inputs = feed(model)
    old, new = (open_session(serialize(m)).run(None, inputs) for m in (model, copy))
    for before, after in zip(old, new, strict=True):
        assert np.array_equal(before, after)


@pytest.mark.network
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_gradients_are_those_of_finite_differences(op: str, direction: str, tmp_path: Path) -> None:
    model = prepared(alone(op, direction, "y", "b"))
    copy = copy_model(model)
    differentiable(copy)
    output = copy.graph.outputs[0]
    summed(copy, [(output, new_input(copy, "noise", output), 1.0)])
    x = RNG.standard_normal((STEPS, 3, INPUTS)).astype(np.float32)
    count = len(model.graph.initializers["w"].const_value.numpy())  # type: ignore[union-attr]
    engine = Engine(runtime(), tmp_path, seed=3, threads=1)
    shape = (count, 3, UNITS)
    found = engine.curvature(copy, {"x": x}, {"w": (1, 1), "r": (1, 1)}, [(shape, False)], batch=STEPS, repeats=1)
    noise = np.random.default_rng(3).standard_normal((STEPS, *shape)).astype(np.float32)

    def loss(name: str, value: Any) -> float:
        model.graph.initializers[name].const_value = ir.tensor(value)
        return float((open_session(serialize(model)).run(None, {"x": x})[0].astype(np.float64) * noise).sum())

    for name in ("w", "r"):
        start = model.graph.initializers[name].const_value.numpy().copy()  # type: ignore[union-attr]
        slopes = np.zeros(start.shape)
        for place in np.ndindex(start.shape):
            ends = []
            for move in (1e-2, -1e-2):
                moved = start.copy()
                moved[place] += move
                ends.append(loss(name, moved))
            slopes[place] = (ends[0] - ends[1]) / 2e-2
        loss(name, start)
        rows = slopes.transpose(1, 0, 2).reshape(slopes.shape[1], -1)
        expected = rows @ rows.T
        assert np.abs(found[name][0] - expected).max() < 1e-2 * np.abs(expected).max()


def test_what_the_runtime_cannot_run_is_named() -> None:
    found = obstacle(prepared(alone("LSTM", "bidirectional", "y", "b lengths")))
    assert found == "onnxruntime-training runs no LSTM with sequences of differing lengths ('rnn')"


def sequences(op: str) -> onnx.ModelProto:
    """x [n, t, 32] -> a recurrent layer both ways -> its last state through a linear layer."""
    n, units = Net(5), 96
    x = n("Transpose", "x", name="steps_first", perm=[1, 0, 2])
    layer(n, x, op, "bidirectional", "h", given="b", units=units, inputs=32)
    h = n("Transpose", "h", name="batch_first", perm=[1, 0, 2])
    h = n("Reshape", h, n.const("flat", [-1, 2 * units], np.int64), name="flat_state")
    n.linear(h, 2 * units, 10, name="head", out="y")
    return n.model({"x": ["n", 6, 32]}, {"y": ["n", 10]})


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.no_costs
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_models_that_read_both_ways_are_trained(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(home.VARIABLE, str(runtime()))
    monkeypatch.setattr(levels, "_STEPS", 12)
    data = {"x": correlated(6 * 64, 32, 1).reshape(64, 6, 32)}
    found = quantize(sequences(op), data, config=Config(weights="int3", adapt="iterative")).report.adaptation
    assert found is not None
    assert not found.notes
    assert any(step.curve for step in found.steps)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "int4:32", "uint4:32"])
def test_codes_move_and_what_is_emitted_is_what_was_trained(kind: str, tmp_path: Path) -> None:
    if kind == "lstm":
        proto, places = sequences("LSTM"), {("rnn", 1), ("rnn", 2)}
        data = {"x": correlated(6 * 256, 32, 1).reshape(256, 6, 32)}
        config = Config(weights="int3", first_last="int3", placement="all")
    else:
        n = Net(4)
        x = n("Relu", n.linear("x", 40, 48, name="a"), name="up")  # 40 inputs: the last block has 8
        n.linear(x, 48, 32, name="b", out="y")
        proto, places = n.model({"x": ["n", 40]}, {"y": ["n", 32]}), {("a", 1), ("b", 1)}
        data = {"x": correlated(256, 40, 1) + 1.0}
        config = Config(weights=kind, activations="none", first_last=kind)
    config = replace(config, rounding="nearest", objective="tensor", restore="none")  # leaves much to be gained
    builder, made, source = built(proto, data, tmp_path, config)
    inputs = dict(next(iter(source.batches(256))))
    target = open_session(serialize(builder.prepared)).run(None, inputs)[0]
    found, trained = adapt_jointly(
        Simulation(builder.prepared, made.plan, made.parameters),
        Split(Samples(inputs, {"y": target}), fit=range(256), check=range(256)),
        Schedule(300, (3e-3,), batch=64, every=20),
        Engine(runtime(), tmp_path / "training", seed=3, threads=1),
    )
    assert trained is not None
    assert trained.after < trained.before
    changed = {
        (w.node, w.index)
        for w, (old, new) in zip(
            made.plan.weights, zip(made.parameters.weights.values(), found.weights.values(), strict=True), strict=True
        )
        if not np.array_equal(old.codes, new.codes)
    }
    assert places <= changed
    before, after = (
        open_session(serialize(emit(builder.prepared, made.plan, **vars(p)))).run(None, inputs)[0]
        for p in (made.parameters, found)
    )

    def noise(outputs: Any) -> float:
        lost = (outputs - target).astype(np.float64)
        return float(np.square(lost - lost.mean(axis=1, keepdims=True)).mean())

    score = float(np.square(target - target.mean(axis=1, keepdims=True), dtype=np.float64).mean())
    assert noise(before) / score == pytest.approx(trained.before, rel=0.05)
    assert noise(after) / score == pytest.approx(trained.after, rel=0.05)
