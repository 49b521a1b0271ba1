"""Gradients against the formulas that define them, rewrites against onnxruntime, the worker against mishaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from adapting import built, correlated, deep, runtime
from zoo import ZOO, Net, feeds, prepared

from onnxq import Config, quantize
from onnxq.adapt import adapter as adapter_module
from onnxq.adapt import levels
from onnxq.adapt import runtime as home
from onnxq.adapt.engine import Engine
from onnxq.adapt.gradients import differentiable, new_input, squared_errors, summed, with_gradient
from onnxq.adapt.joint import adapt_jointly
from onnxq.adapt.samples import Samples, Split, generated, stacked
from onnxq.adapt.sensitivity import output_costs
from onnxq.adapt.simulation import Simulation, simulated
from onnxq.adapt.trainer import Parameter, Schedule
from onnxq.adapt.training_graph import soften, training_graph
from onnxq.emit import emit
from onnxq.errors import RuntimeFailure
from onnxq.graph.copying import copy_model
from onnxq.graph.io import serialize
from onnxq.measure.references import Lost
from onnxq.numerics import INT8_NARROW, PerAxis, params
from onnxq.runtime.session import open_session

RNG = np.random.default_rng(8)


def pointwise(op: str, slope: bool = False, **attributes: float) -> onnx.ModelProto:
    n = Net()
    inputs = ["x", n.const("slope", RNG.uniform(0.1, 0.5, (3, 1)))] if slope else ["x"]
    n(op, *inputs, name="f", out="y", **attributes)
    return n.model({"x": ["n", 3, 50]}, {"y": ["n", 3, 50]})


@pytest.mark.parametrize(
    "proto",
    [
        pointwise("HardSwish"),
        pointwise("HardSigmoid", alpha=0.3, beta=0.4),
        pointwise("PRelu", slope=True),
        pointwise("Softplus"),
        pointwise("Elu", alpha=0.7),
    ],
    ids=["HardSwish", "HardSigmoid", "PRelu", "Softplus", "Elu"],
)
def test_rewrites_compute_the_same_and_have_gradients(proto: onnx.ModelProto) -> None:
    model = prepared(proto)
    assert "x" not in with_gradient(model)
    copy = copy_model(model)
    differentiable(copy)
    assert "x" in with_gradient(copy)
    x = (4 * RNG.standard_normal((2, 3, 50))).astype(np.float32)
    x[0, 0, :3] = 0.0, 90.0, -90.0
    old, new = (open_session(serialize(m)).run(None, {"x": x})[0] for m in (model, copy))
    assert np.allclose(old, new, rtol=1e-5, atol=1e-6)


def test_no_gradient_passes_what_has_none() -> None:
    n = Net()
    x = n.linear("x", 8, 8, name="a")
    x = n("Selu", x, name="wall")
    n.linear(x, 8, 8, name="b", out="y")
    reached = with_gradient(prepared(n.model({"x": ["n", 8]}, {"y": ["n", 8]})))
    assert "b_w" in reached
    assert "a_w" not in reached


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(runtime(), tmp_path / "training", seed=3, threads=1)


@pytest.mark.network
def test_gradients_are_those_of_learned_step_size_quantization(engine: Engine) -> None:
    """Esser et al., section 2.1: in range round(w/s) - w/s for the scale and 1 for w, beyond it qmin or qmax and 0."""
    n = Net(2)
    n("Gemm", "x", n.weight("w", 5, 7, fan=7), name="g", out="y", transB=1)
    model = prepared(n.model({"x": ["n", 7]}, {"y": ["n", 5]}))
    weight = np.asarray(model.graph.initializers["w"].const_value.numpy(), np.float64)  # type: ignore[union-attr]
    qtype = type(INT8_NARROW)(3, signed=True, narrow=True)
    chosen = params(qtype, (np.abs(weight).max(axis=1) / 5).astype(np.float32), granularity=PerAxis(0))
    graph = training_graph(model, {("g", 1): chosen}, [], scores={"y": 1.0})
    # The loss is replaced by a random combination of the outputs, so that the gradient is known in closed form.
    output = next(v for node in graph.model.graph for v in node.outputs if v.name == "y")
    graph.model.graph.inputs.pop()
    graph.model.graph.outputs.clear()
    graph.model.graph.outputs.append(output)
    for node in list(graph.model.graph)[::-1]:
        if not any(o is output for o in node.outputs) and all(not o.uses() for o in node.outputs):
            graph.model.graph.remove(node, safe=True)
    summed(graph.model, [(output, new_input(graph.model, "noise", output), 1.0)])
    x = RNG.standard_normal((4, 7)).astype(np.float32)
    latent = graph.weights["g", 1]
    found = engine.curvature(
        graph.model, {"x": x}, {latent.values: (0, 1), latent.log_scale: (0, 1)}, [((5,), True)], batch=4, repeats=1
    )
    v = np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32)
    outer = (v - v.mean(axis=-1, keepdims=True)).T @ x
    scale = chosen.scale.astype(np.float64)[:, None]
    ratio = weight / scale
    inside = (np.rint(ratio) >= qtype.qmin) & (np.rint(ratio) <= qtype.qmax)
    assert 0 < inside.sum() < inside.size
    of_weight = outer * inside
    of_scale = (outer * np.where(inside, np.rint(ratio) - ratio, np.clip(ratio, qtype.qmin, qtype.qmax))).sum(axis=1)
    of_log = (of_scale * scale[:, 0])[:, None]
    assert np.allclose(found[latent.values][0], of_weight @ of_weight.T, rtol=1e-4, atol=1e-5)
    assert np.allclose(found[latent.log_scale][0], of_log @ of_log.T, rtol=1e-3, atol=1e-5)


@pytest.mark.network
@pytest.mark.parametrize("kind", [Config(weights="int4"), Config(weights="int4", activations="uint4")])
@pytest.mark.parametrize("name", ["residual", "mobilenet", "silu", "hard_swish", "concat"])
def test_the_training_graph_computes_what_is_emitted(name: str, kind: Config, tmp_path: Path) -> None:
    """Its loss against the emitted model's, through onnxruntime's own FakeQuant."""
    proto = ZOO[name]()
    data = feeds(proto, 12)
    builder, made, _ = built(proto, data, tmp_path, kind)
    models = (serialize(builder.prepared), made.runtime_model)
    whole, rough = (np.concatenate([open_session(m).run(None, f)[0] for f in data]) for m in models)
    copy = copy_model(simulated(builder.prepared, made.plan, made.parameters))
    soften(copy, {})
    differentiable(copy)
    output = copy.graph.outputs[0]
    squared_errors(copy, [(output, new_input(copy, "target", output), 1.0)])
    engine = Engine(runtime(), tmp_path / "training", threads=1)
    weight = next(n for n in copy.graph.initializers if n.endswith("_input_1"))
    schedule = Schedule(0, (1e-3,), batch=1)
    count = range(len(whole))
    feed = {"target": whole, **{k: np.concatenate([f[k] for f in data]) for k in data[0]}}
    loss = engine.train(copy, feed, {weight: Parameter(1.0)}, schedule, fit=count, check=count).before
    lost = (rough - whole).astype(np.float64)
    if lost.ndim > 1:
        lost -= lost.mean(axis=-1, keepdims=True)
    assert loss == pytest.approx(np.square(lost).mean(), rel=0.05)


@pytest.mark.network
def test_costs_of_a_linear_network_are_exact_in_the_mean(engine: Engine) -> None:
    """``y = B (A x)``: an error of A x costs ``B^T P B`` by the mean square of y, P taking means away."""
    from onnxq.graph.linear import geometry_of

    n = Net(4)
    n.linear(n.linear("x", 6, 5, name="a", bias=False), 5, 4, name="b", bias=False, out="y")
    model = prepared(n.model({"x": ["n", 6]}, {"y": ["n", 4]}))
    x = {"x": RNG.standard_normal((2048, 6)).astype(np.float32)}
    samples = Samples(x, {"y": open_session(serialize(model)).run(None, x)[0]})
    builder = {node.name or "": node for node in model.graph}

    layers = {name: found for name, node in builder.items() if (found := geometry_of(node)) is not None}
    found = output_costs(model, layers, samples, engine)
    b = np.asarray(builder["b"].inputs[1].const_value.numpy(), np.float64)  # type: ignore[union-attr]
    centre = np.eye(4) - 1 / 4
    expected = b @ centre @ b.T
    got = found["a"][0] / np.trace(found["a"][0]) * np.trace(expected)
    assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
    last = found["b"][0] / np.trace(found["b"][0]) * 3
    assert np.abs(last - centre).max() < 0.1


@pytest.mark.network
def test_training_lowers_the_loss_and_keeps_the_best(engine: Engine, tmp_path: Path) -> None:
    n = Net(1)
    n("Gemm", "x", n.weight("w", 3, 6, fan=6), name="g", out="y", transB=1)
    model = prepared(n.model({"x": ["n", 6]}, {"y": ["n", 3]}))
    x = RNG.standard_normal((256, 6)).astype(np.float32)
    target = x @ RNG.standard_normal((6, 3)).astype(np.float32)
    copy = copy_model(model)
    output = copy.graph.outputs[0]
    squared_errors(copy, [(output, new_input(copy, "target", output), 1.0)])
    said = []
    trained = engine.train(
        copy,
        {"x": x, "target": target},
        {"w": Parameter(1.0)},
        Schedule(200, (1e-3, 3e-2), every=50),
        fit=range(200),
        check=range(200, 256),
        progress=lambda step, steps, loss: said.append((step, steps, loss)),
    )
    assert trained.finished
    assert trained.rate == 3e-2
    assert trained.after < 0.05 * trained.before
    assert [s for s, _, _ in said] == [50, 100, 150, 200]
    lost = target[200:] - x[200:] @ trained.values["w"].T
    lost -= lost.mean(axis=1, keepdims=True)
    assert np.square(lost).mean() == pytest.approx(trained.after, rel=1e-3)


@pytest.mark.network
def test_a_worker_that_cannot_start_is_one_clear_error(tmp_path: Path) -> None:
    n = Net(1)
    n("Selu", n("Gemm", "x", n.weight("w", 3, 6, fan=6), name="g", transB=1), name="s", out="y")
    copy = copy_model(prepared(n.model({"x": ["n", 6]}, {"y": ["n", 3]})))
    output = copy.graph.outputs[0]
    squared_errors(copy, [(output, new_input(copy, "target", output), 1.0)])
    data = {"x": np.zeros((8, 6), np.float32), "target": np.zeros((8, 3), np.float32)}
    for folder in (tmp_path / "nothing", runtime()):  # no runtime at all; an operator without a gradient
        engine = Engine(folder, tmp_path / "work", threads=1)
        with pytest.raises(RuntimeFailure, match=r"ended without a result .*; try --adapt fast"):
            engine.train(copy, data, {"w": Parameter(1.0)}, Schedule(1, (1e-3,)), fit=range(4), check=range(4, 8))


@pytest.mark.network
def test_where_the_runtime_may_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(home.VARIABLE, str(tmp_path))
    with pytest.raises(RuntimeFailure, match="which holds no onnxruntime-training-cpu: run 'pip install --no-deps"):
        home.training_runtime()
    monkeypatch.setenv(home.VARIABLE, str(runtime()))
    assert home.training_runtime() == runtime()
    monkeypatch.delenv(home.VARIABLE)
    monkeypatch.setattr(home, "HASHES", {})
    with pytest.raises(RuntimeFailure, match="--adapt fast needs no training"):
        home.training_runtime()
    monkeypatch.setattr(home, "HASHES", {home._interpreter(): "0" * 64})
    with pytest.raises(RuntimeFailure, match=f"cannot install .* set {home.VARIABLE}=DIR"):
        home.training_runtime()
    assert not home.default_folder().exists()


def test_samples_are_stacked_where_they_can_be() -> None:
    feed = [{"x": np.zeros((4, 3), np.float32)}, {"x": np.ones((2, 3), np.float32)}]
    answers = [{"y": np.zeros((4, 2), np.float32)}, {"y": np.ones((2, 2), np.float32)}]
    found = stacked(feed, answers)
    assert found is not None
    assert found.count == 6
    assert found.outputs["y"].shape == (6, 2)
    assert stacked([feed[0], {"x": np.ones((2, 5), np.float32)}], answers) is None
    assert stacked(feed, [answers[0], {"y": np.ones((3, 2), np.float32)}]) is None


def test_generated_samples_look_like_samples() -> None:
    inputs = {
        "image": RNG.standard_normal((6, 3, 8, 8)).astype(np.float32),
        "tokens": RNG.integers(0, 50, (6, 12)),
        "flag": RNG.standard_normal(6).astype(np.float32),
    }
    made = generated(inputs, 4, seed=1)
    again = generated(inputs, 4, seed=1)
    for name, array in made.items():
        assert array.shape == (24, *inputs[name].shape[1:])
        assert array.dtype == inputs[name].dtype
        assert np.array_equal(array, again[name])
        assert np.isfinite(array).all()
    assert set(np.unique(made["tokens"])) <= set(np.unique(inputs["tokens"]))
    assert not any(np.array_equal(image, other) for image in made["image"] for other in inputs["image"])


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["conv_transpose", "relu_then_float", "embedding", "squeeze_excite", "concat", "split"]
)
def test_networks_that_training_meets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators without gradients, weights that two nodes read, optional inputs left out."""
    monkeypatch.setenv(home.VARIABLE, str(runtime()))
    monkeypatch.setattr(levels, "_STEPS", 4)
    proto = ZOO[name]()
    config = Config(weights="int4", activations="uint4", adapt="iterative")
    found = quantize(proto, feeds(proto, 24), config=config).report.adaptation
    assert found is not None
    assert not found.notes
    assert any(step.curve for step in found.steps)


@pytest.mark.network
@pytest.mark.slow
def test_a_model_with_a_fixed_batch_is_trained_on_such_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(home.VARIABLE, str(runtime()))
    monkeypatch.setattr(levels, "_STEPS", 20)
    proto = deep().model({"x": [4, 32]}, {"y": [4, 10]})
    config = Config(weights="int3", placement="all", adapt="iterative")
    found = quantize(proto, {"x": correlated(256, 32, 1)}, config=config).report.adaptation
    assert found is not None
    assert any(step.curve for step in found.steps)
    assert not found.notes


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("level", ["fast", "iterative", "full"])
def test_every_level_helps_and_says_by_how_much(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(home.VARIABLE, str(runtime()))
    monkeypatch.setattr(levels, "_STEPS", 60)
    monkeypatch.setattr(levels, "_FULL_STEPS", 120)
    proto = deep().model({"x": ["n", 32]}, {"y": ["n", 10]})
    data = {"x": correlated(512, 32, 1)}
    plain = quantize(proto, data, config=Config(weights="int3", placement="all"))
    config = Config(weights="int3", placement="all", adapt=level)
    result = quantize(proto, data, config=config)
    found = result.report.adaptation
    assert found is not None
    assert found.level == level
    assert found.kept
    assert plain.report.sqnr_db is not None
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > plain.report.sqnr_db + 0.5
    for earlier, later in zip(found.steps, found.steps[1:], strict=False):
        assert later.before == (earlier.after if earlier.kept else earlier.before)
    assert all(step.after < step.before for step in found.steps if step.kept)
    words = [step.what for step in found.steps]
    assert words[0] == "closed form"
    if level != "fast":
        assert words[1] == "closed form, channels together"
        assert any(step.curve for step in found.steps)


def normalised() -> onnx.ModelProto:
    """Residual layers behind normalisations; the first two share their scale, the last one has no shift."""
    n = Net(4)
    scale, shift = n.const("scale", RNG.uniform(0.5, 1.5, 32)), n.const("shift", 0.1 * RNG.standard_normal(32))
    x = "x"
    for i, rest in enumerate([[scale, shift], [scale, shift], [scale]]):
        y = n("LayerNormalization", x, *rest, name=f"ln{i}", axis=-1, epsilon=1e-5)
        y = n("Relu", n.linear(y, 32, 48, name=f"a{i}"), name=f"r{i}")
        x = n("Add", x, n.linear(y, 48, 32, name=f"b{i}"), name=f"s{i}")
    n.linear(x, 32, 10, name="e", out="y")
    return n.model({"x": ["n", 32]}, {"y": ["n", 10]})


@pytest.mark.network
def test_normalisations_are_trained_too_unless_what_is_frozen_stands_behind_them(
    engine: Engine, tmp_path: Path
) -> None:
    data = {"x": correlated(256, 32, 1)}
    builder, made, feed = built(normalised(), data, tmp_path, Config(weights="int3", placement="all"))
    inputs = dict(next(iter(feed.batches(256))))
    target = open_session(serialize(builder.prepared)).run(None, inputs)[0]
    samples = Samples(inputs, {"y": target})
    frozen = ["a0", "b0", "a1"]
    found, trained = adapt_jointly(
        Simulation(builder.prepared, made.plan, made.parameters),
        Split(samples, fit=range(64, 256), check=range(64)),
        Schedule(40, (3e-3,), batch=32, every=20),
        engine,
        frozen=frozen,
    )
    assert trained is not None
    changed = {place for place in found.biases if place[0].startswith("ln")}
    assert changed == {("ln2", 1)}
    assert not np.array_equal(found.biases["ln2", 1], builder.prepared.graph.initializers["scale"].const_value.numpy())  # type: ignore[union-attr]
    emitted = open_session(serialize(emit(builder.prepared, made.plan, **vars(found)))).run(None, inputs)[0]
    simulation = open_session(serialize(simulated(builder.prepared, made.plan, found))).run(None, inputs)[0]
    plain = open_session(serialize(emit(builder.prepared, made.plan, **vars(made.parameters))))
    before = plain.run(None, inputs)[0]
    assert np.abs(emitted - simulation).max() < 0.02 * np.abs(target).max()
    assert np.square(emitted - target).mean() < np.square(before - target).mean()


@pytest.mark.parametrize(
    ("lost", "kept"),
    [(Lost(0.9, -0.1), True), (Lost(0.9, 0.1), False), (Lost(1.1, -0.1), False), (Lost(1.0, 0.0), False)],
)
def test_a_step_is_kept_where_all_together_and_the_typical_sample_gain(lost: Lost, kept: bool) -> None:
    adapter = adapter_module.Adapter.__new__(adapter_module.Adapter)
    before, found = object(), object()
    adapter.steps, adapter.best, adapter._loss = [], before, Lost(1.0, 0.0)  # type: ignore[assignment]
    adapter._loss_of = lambda _: lost  # type: ignore[method-assign]
    assert adapter._offer(levels.Phase("train_all", "training"), found, 0.0) is kept  # type: ignore[arg-type]
    assert adapter.best is (found if kept else before)
    assert adapter._loss == (lost if kept else Lost(1.0, 0.0))
    assert adapter.steps[0].kept is kept
    assert (adapter.steps[0].code, adapter.steps[0].what) == ("train_all", "training")


@pytest.mark.network
@pytest.mark.slow
def test_a_budget_of_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(home.VARIABLE, str(runtime()))
    proto = deep().model({"x": ["n", 32]}, {"y": ["n", 10]})
    config = Config(weights="int3", placement="all", adapt="iterative", adapt_seconds=0.01)
    found = quantize(proto, {"x": correlated(256, 32, 1)}, config=config).report.adaptation
    assert found is not None
    assert [step.what for step in found.steps] == ["closed form", "closed form, channels together"]
    assert found.notes == ("no time left for: part 1 of 3 trained with all that follows",)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_samples_that_judged_count_for_ranges_afterwards(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is kept, what comes out is what comes out without adapting."""
    proto = deep().model({"x": ["n", 32]}, {"y": ["n", 10]})
    data = {"x": correlated(256, 32, 1)}
    data["x"][::7] *= 3.0  # whichever samples are left out, ranges are not the same without them
    config = Config(weights=weights, placement="all", equalize="none", min_agreement=0.0, guard_sqnr=-200.0)
    # Whether ranges of least error look ahead is for other samples to decide with and without adapting.
    config = replace(config, activation_range="percentile:99.9")
    plain = quantize(proto, data, config=config)
    monkeypatch.setattr(adapter_module.Adapter, "_offer", lambda *_: False)
    adapted = quantize(proto, data, config=replace(config, adapt="fast"))
    assert adapted.report.adaptation is not None
    assert not adapted.report.adaptation.kept
    constants = [
        {
            name: v.const_value.numpy()
            for name, v in result.model.graph.initializers.items()
            if v.const_value is not None
        }
        for result in (plain, adapted)
    ]
    assert constants[0].keys() == constants[1].keys()
    for name, array in constants[0].items():
        if array.dtype == np.float32:
            np.testing.assert_allclose(constants[1][name], array, rtol=2e-3, err_msg=name)


def test_nothing_is_kept_that_does_not_help() -> None:
    """Eight bits on exact inputs: the closed form has nothing to make up for, and the file is that of no adaptation."""
    n = Net(3)
    n.linear("x", 32, 16, name="a", out="y")
    proto = n.model({"x": ["n", 32]}, {"y": ["n", 16]})
    data = {"x": correlated(256, 32, 1)}
    config = Config(placement="all")
    plain, adapted = (quantize(proto, data, config=replace(config, adapt=level)) for level in ("none", "fast"))
    assert adapted.report.adaptation is not None
    assert adapted.report.sqnr_db is not None
    assert plain.report.sqnr_db is not None
    assert adapted.report.sqnr_db > plain.report.sqnr_db - 0.5
