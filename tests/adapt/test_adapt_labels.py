"""Labels: the loss against its formula and against what training sees, and that training follows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from adapting import built, correlated, deep, runtime
from typer.testing import CliRunner
from zoo import Net

from onnxq import Config, DataError, quantize
from onnxq.adapt import levels
from onnxq.adapt import runtime as home
from onnxq.adapt.engine import Engine
from onnxq.adapt.labels import Labels, cross_entropy, labelled
from onnxq.adapt.samples import Samples
from onnxq.adapt.simulation import simulated
from onnxq.adapt.trainer import Parameter, Schedule
from onnxq.adapt.training_graph import target_name, training_graph
from onnxq.cli import app
from onnxq.graph.io import serialize
from onnxq.runtime.session import open_session

RNG = np.random.default_rng(4)


def classes(x: np.ndarray) -> np.ndarray:
    """Classes that the toy knows nothing of: the same function of its inputs for all samples."""
    teacher = np.random.default_rng(7).standard_normal((32, 10)).astype(np.float32)
    return (x @ teacher).argmax(axis=1)


def net() -> onnx.ModelProto:
    return deep().model({"x": ["n", 32]}, {"y": ["n", 10]})


def test_nats_of_logits_and_of_probabilities() -> None:
    logits = RNG.standard_normal((40, 7)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = RNG.integers(0, 7, 40)
    labels[3] = -1
    known = labels >= 0
    expected = -np.log(p[known, labels[known]].astype(np.float64)).mean()
    for array in (logits, p):
        batches = [{"y": array[i : i + 9]} for i in range(0, 40, 9)]
        assert cross_entropy(batches, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.network
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("shape", [(16, 5), (16, 3, 5)])
def test_loss_and_gradient_in_training_are_those_of_cross_entropy(
    kind: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """By the bias of a last layer: one step of Adam moves each entry against the sign of ``mean(p - onehot)``."""
    n = Net(2)
    y = n.linear("x", 4, 5, name="a", out="y" if kind == "logits" else None)
    if kind == "probabilities":
        n("Softmax", y, name="last", axis=-1, out="y")
    axes = ["n", *shape[1:-1]]
    proto = n.model({"x": [*axes, 4]}, {"y": [*axes, 5]})
    x = RNG.standard_normal((*shape[:-1], 4)).astype(np.float32)
    builder, first, _ = built(proto, {"x": x}, tmp_path, Config(placement="all", held_out=0.0))
    simulation = simulated(builder.prepared, first.plan, first.parameters)
    answers = open_session(serialize(simulation)).run(None, {"x": x})[0]
    labels = RNG.integers(0, 5, shape[:-1])
    samples = labelled([(Samples({"x": x}, {"y": answers}), labels)])
    assert samples.labels == kind
    (bias,) = first.plan.biases
    place = (bias.node, bias.index)
    graph = training_graph(simulation, {}, [place], scores={"y": samples.score("y")}, labels=samples.labels)
    name = graph.free[place]
    start = graph.model.graph.initializers[name].const_value.numpy().copy()
    data = {"x": x, target_name("y"): samples.outputs["y"]}
    schedule = Schedule(1, (1e-3,), batch=16, every=1)
    engine = Engine(runtime(), tmp_path / "jobs")
    found = engine.train(graph.model, data, {name: Parameter(1.0)}, schedule, fit=range(16), check=range(16))
    assert found.before == pytest.approx(cross_entropy([{"y": answers}], labels), rel=1e-5)
    p = np.exp(answers) / np.exp(answers).sum(axis=-1, keepdims=True) if kind == "logits" else answers
    slope = (p - samples.outputs["y"]).reshape(-1, 5).mean(axis=0)
    np.testing.assert_array_equal(np.sign(found.values[name] - start), -np.sign(slope))


@pytest.mark.network
@pytest.mark.slow
def test_training_follows_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(home.VARIABLE, str(runtime()))
    monkeypatch.setattr(levels, "_FULL_STEPS", 300)
    x, unseen = correlated(1024, 32, 1), correlated(512, 32, 2)
    config = Config(weights="int4", placement="all", adapt="full", labels="kind", samples=1024)
    result = quantize(net(), {"x": x, "kind": classes(x)}, config=config)
    found = result.report.adaptation
    assert found is not None
    assert found.measure == "cross-entropy"
    assert found.steps[-1].what == "all trained on labels"
    assert found.steps[-1].kept
    before, after = (open_session(m).run(None, {"x": unseen})[0] for m in (net().SerializeToString(), proto_of(result)))
    scores = [float(np.mean(y.argmax(axis=1) == classes(unseen))) for y in (before, after)]
    assert scores[1] > scores[0] + 0.2


def proto_of(result: object) -> bytes:
    content: bytes = result.proto().SerializeToString()  # type: ignore[attr-defined]
    return content


def test_labels_that_do_not_fit_are_refused() -> None:
    samples = Samples({"x": np.zeros((4, 2), np.float32)}, {"y": np.zeros((4, 3), np.float32)})
    with pytest.raises(DataError, match=r"labels of shape \[3\] do not fit the rows \[4\] of output y"):
        labelled([(samples, np.zeros(3, np.int64))])
    with pytest.raises(DataError, match="label 3 is out of range: output y has 3 classes"):
        labelled([(samples, np.full(4, 3))])
    with pytest.raises(DataError, match="labels must be integers"):
        Labels(np.zeros(4), np.zeros(4))


@pytest.mark.network
@pytest.mark.no_costs
def test_labels_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(home.VARIABLE, str(runtime()))
    monkeypatch.setattr(levels, "_FULL_STEPS", 40)
    onnx.save(net(), tmp_path / "net.onnx")
    x = correlated(256, 32, 1)
    np.savez(tmp_path / "data.npz", x=x, kind=classes(x))
    common = ["quantize", str(tmp_path / "net.onnx"), "-c", str(tmp_path / "data.npz"), "--latency", "0"]
    more = ["--weights", "int4", "--adapt", "full", "--labels"]
    runner = CliRunner(env={"COLUMNS": "100"})
    done = runner.invoke(app, [*common, *more, "kind"])
    assert "nats before" in done.output, done.output
    assert "all trained on labels" in done.output
    assert "ignored" not in done.output
    wrong = runner.invoke(app, [*common, *more, "nothing"])
    assert wrong.exit_code == 2
    assert "has no labels 'nothing'" in wrong.output
