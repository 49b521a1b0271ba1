"""The user's own measure, labels and --max-drop: from the command line and in calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from typer.testing import CliRunner, Result

import onnxq
from onnxq import Config, ConfigError, DataError
from onnxq.cli import app
from onnxq.config import config_text, load_config

# Its toys are too small for integers to pay.
pytestmark = pytest.mark.no_costs

CODE = """
import numpy as np

def hit(outputs, label):
    return float(outputs["logits"].argmax() == label)

def near(outputs, other):
    return -float(np.abs(outputs["logits"] - other["logits"]).max())

def equal(outputs, other):
    return float(np.array_equal(outputs["logits"], other["logits"]))

def predict(outputs):
    return outputs["logits"].argmax(-1)

def score(predictions, labels):
    return np.mean(predictions == labels)

def nothing():
    return 1.0

def array(outputs):
    return outputs["logits"]

def not_a_number(outputs):
    return float("nan")

def wrong(outputs):
    return outputs["scores"]

def late(predictions, labels):
    return None

number = 3
calls = []

def worse(outputs):
    calls.append(1)
    return -len(calls)
"""


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    toys.write(toys.classifier(), tmp_path / "net.onnx")
    (tmp_path / "mine.py").write_text(CODE)
    images = toys.images(64)
    logits = _logits(tmp_path / "net.onnx", images)
    np.savez(tmp_path / "data.npz", image=images, labels=logits.argmax(-1), odd=np.full(64, 0.5))
    return tmp_path


def _logits(model: Path, images: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(model)).run(None, {"image": images})[0]


def quantize(*arguments: object) -> Result:
    return call("quantize", "net.onnx", "-c", "data.npz", "-o", "out.onnx", "--latency", 0, *arguments)


def evaluate(*arguments: object) -> Result:
    return call("evaluate", "net.onnx", "out.onnx", "-d", "data.npz", "--no-layers", *arguments)


@pytest.mark.parametrize(
    "metric",
    [("mine.py:hit", "--labels", "labels"), ("mine.py:predict,mine.py:score",), ("mine:near", "--max-drop", 9)],
)
def test_before_after_and_the_interval_are_printed(place: Path, metric: tuple[object, ...]) -> None:
    del place
    done = quantize("--metric", *metric)
    assert done.exit_code == 0, done.output
    line = next(line for line in done.stdout.splitlines() if line.startswith(str(metric[0])))
    for part in (" samples", " before, ", " after, ", "95 % interval ", "it may lose "):
        assert part in line
    assert evaluate("--metric", *metric).exit_code == 0


def test_json_has_it(place: Path) -> None:
    del place
    found = json.loads(quantize("--metric", "mine.py:hit", "--labels", "labels", "--max-drop", "2%", "--json").stdout)
    assert found["metric"]["before"] == 1.0
    assert found["metric"]["max_drop"] == 0.02
    assert found["metric"]["truth"] == "labels"
    assert found["metric"]["low"] <= found["metric"]["difference"] <= found["metric"]["high"]
    again = json.loads(evaluate("--metric", "mine.py:hit", "--labels", "labels", "--json").stdout)
    assert again["metric"]["samples"] == 64
    assert again["comparison"]["accuracy"] is None  # labels are what the metric takes them for


def test_what_cannot_be_kept_is_written_with_exit_code_3(place: Path) -> None:
    done = quantize("--metric", "mine.py:worse")
    assert done.exit_code == 3, done.output
    assert (place / "out.onnx").exists()
    assert "not good: mine.py:worse loses " in done.stderr
    assert "(--max-drop) (written all the same: out.onnx)" in done.stderr
    assert quantize("--metric", "mine.py:equal", "--max-drop", "100%").exit_code == 0
    done = evaluate("--metric", "mine.py:equal", "--max-drop", "0.5%")
    assert done.exit_code == 3
    assert "mine.py:equal loses" in done.stderr
    assert "may lose 0.005" in done.stderr


def test_the_measure_says_which_layers_go_back(place: Path) -> None:
    """All that is promised otherwise is kept; what the measure may lose decides."""
    del place
    data = dict(np.load("data.npz"))

    def near(outputs: Any, other: Any) -> float:
        return -float(np.abs(outputs["logits"] - other["logits"]).max())

    free = onnxq.quantize("net.onnx", data, metric=near, config=Config(max_drop=100.0))
    assert free.report.metric is not None
    lost = -free.report.metric.difference
    assert lost > 0
    assert len(free.plan.layers) == 2
    bound = onnxq.quantize("net.onnx", data, metric=near, config=Config(max_drop=lost * 0.7))
    assert bound.report.metric is not None
    assert bound.good
    assert 0 < -bound.report.metric.difference <= lost * 0.7
    assert len(bound.plan.layers) == 1


def test_a_measure_counts_with_few_bits_too(place: Path) -> None:
    del place
    data = dict(np.load("data.npz"))

    def near(outputs: Any, other: Any) -> float:
        return -float(np.abs(outputs["logits"] - other["logits"]).max())

    config = Config(weights="int4", first_last="int4", max_drop=1e-3)
    found = onnxq.quantize("net.onnx", data, metric=near, config=config)
    assert found.report.metric is not None
    assert found.good == found.report.metric.good


def test_a_broken_model_is_not_good_whatever_the_measure_says() -> None:
    from onnxq.measure.metric import MetricComparison
    from onnxq.search.acceptance import Shortfall, Verdict

    good = MetricComparison("m", 9, "", 1.0, 1.0, 0.0, 0.0, 0.1)
    broken = Verdict(None, 1.0, 30.0, False, (Shortfall.BROKEN, Shortfall.SQNR)).measured(good)  # type: ignore[arg-type]
    assert (broken.good, broken.shortfalls) == (False, (Shortfall.BROKEN,))
    noisy = Verdict(None, 1.0, 3.0, False, (Shortfall.SQNR,)).measured(good)  # type: ignore[arg-type]
    assert (noisy.good, noisy.shortfalls) == (True, ())
    assert noisy.standing == (True, 1.0, 3.0)


def test_labels_alone_give_the_accuracy_of_both(place: Path) -> None:
    del place
    done = quantize("--labels", "labels")
    assert done.exit_code == 0, done.output
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith("top-1 %"))
    assert row.split()[2] == "100.00"
    assert "labels" not in done.stdout.partition("top-1")[2].partition("ignored")[2]


def test_accuracy_is_that_of_samples_that_nothing_was_fitted_to(place: Path) -> None:
    del place
    found = json.loads(quantize("--labels", "labels", "--samples", 32, "--json").stdout)
    assert found["comparison"]["accuracy"]["rows"] == 4 + 32  # an eighth of 32, and the rest of 64


def test_labels_and_max_drop_judge_by_top_1(place: Path) -> None:
    del place
    found = json.loads(quantize("--labels", "labels", "--max-drop", "5%", "--json").stdout)
    assert found["metric"]["name"] == "top-1"
    assert found["comparison"]["accuracy"]["float_model"]["top1"] == 1.0
    assert evaluate("--labels", "labels", "--max-drop", "5%").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (("--metric", "mine.py:nothing"), "metric mine.py:nothing cannot be called with the outputs", "def nothing("),
        (("--metric", "mine.py:array"), "metric mine.py:array returned ndarray of shape [1, 6]", "one number"),
        (("--metric", "mine.py:not_a_number"), "metric mine.py:not_a_number returned nan for sample", "one number"),
        (("--metric", "mine.py:wrong"), "metric mine.py:wrong raised KeyError for sample", "correct the function"),
        (
            ("--metric", "mine.py:predict,mine.py:late"),
            "metric mine.py:late returned NoneType for 8 samples",
            "one number",
        ),
        (("--metric", "mine.py:predict,mine.py:nothing"), "metric mine.py:nothing cannot be called", "def nothing("),
        (("--metric", "mine.py:number"), "metric mine.py:number is int, not a function", "package.module:function"),
        (("--metric", "mine.py:missing"), "mine.py has no function 'missing'", "after the colon"),
        (("--metric", "missing.py:f"), "there is no file missing.py", "package.module:function"),
        (("--metric", "no_such_package.m:f"), "cannot be imported: ModuleNotFoundError", "run from its folder"),
        (("--metric", "accuracy"), "--metric accuracy names no function", "package.module:function"),
        (("--metric", "mine:hit,mine:hit,mine:hit"), "not one function, and not two", "comma"),
        (
            ("--metric", "mine.py:predict", "--labels", "labels"),
            "cannot be called with the outputs and the label",
            "def",
        ),
        (("--metric", "mine.py:hit", "--labels", "truth"), "no labels 'truth'", ""),
        (("--labels", "odd"), "labels must be integers", ""),
        (("--max-drop", "1%"), "max_drop says how much a metric may lose, and there is none", "--metric, --labels"),
        (("--labels", "labels", "--max-drop", "much"), "--max-drop much is nothing that a measure may lose", "0.5%"),
        (("--labels", "labels", "--max-drop", "-1%"), "--max-drop -1% is nothing", "0.5%"),
    ],
)
def test_what_is_no_measure_is_said_in_two_lines(place: Path, arguments: tuple[str, ...], what: str, hint: str) -> None:
    done = quantize(*arguments)
    assert done.exit_code == 2
    assert not (place / "out.onnx").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error", "hint"))]
    assert what in lines[0]
    assert all(hint in line for line in lines[1:])
    assert len(lines) == 1 + bool(hint) or not hint
    assert "Traceback" not in done.output


def test_a_measure_needs_data(place: Path) -> None:
    with pytest.raises(ConfigError, match="a metric needs data"):
        onnxq.quantize(place / "net.onnx", metric=lambda outputs: 1.0)


def test_calls_take_functions_pairs_and_names(place: Path) -> None:
    data = dict(np.load(place / "data.npz"))

    def predict(outputs: Any) -> Any:
        return outputs["logits"].argmax(-1)

    def score(predictions: Any, labels: Any) -> float:
        return float(np.mean(predictions == labels))

    found = onnxq.quantize(place / "net.onnx", data, metric=(predict, score), config=Config(labels="labels"))
    assert found.report.metric is not None
    assert found.config.metric == found.report.metric.name
    assert found.report.metric.name.endswith("predict,test_cli_metric:" + score.__qualname__)
    named = onnxq.quantize(place / "net.onnx", data, config=Config(metric="mine.py:predict,mine.py:score"))
    assert named.report.metric is not None
    again = onnxq.evaluate(
        place / "net.onnx",
        found.proto(),
        data,
        metric=(predict, score),
        labels="labels",
        max_drop=0.05,
        layer_samples=0,
    )
    assert again.metric is not None
    assert again.metric.max_drop == 0.05
    with pytest.raises(ConfigError, match="not one function, and not two"):
        onnxq.quantize(place / "net.onnx", data, metric=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a metric takes labels from the data"):
        onnxq.evaluate(place / "net.onnx", found.proto(), data, metric=score, labels=np.zeros(64, np.int64))
    with pytest.raises(DataError, match="raised KeyError"):
        onnxq.evaluate(place / "net.onnx", found.proto(), data, metric=lambda outputs: outputs["x"])


def test_no_file_names_code(place: Path) -> None:
    """What lies in a configuration is data: it is neither imported nor written there."""
    (place / "evil.py").write_text("open('ran', 'w').close()\ndef f(outputs): return 1.0\n")
    (place / "c.toml").write_text('metric = "evil:f"\n')
    done = quantize("--config", "c.toml")
    assert done.exit_code == 2
    assert "c.toml: metric names code, which no file may" in done.stderr
    assert "hint: give it as --metric" in done.stderr
    assert not (place / "ran").exists()
    done = quantize("--metric", "mine.py:hit", "--labels", "labels", "--max-drop", "5%", "--save-config", "saved.toml")
    assert done.exit_code == 0, done.output
    assert "mine" not in (place / "saved.toml").read_text()
    assert quantize("--config", "saved.toml").exit_code == 0


def test_what_is_saved_of_a_measure_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    for given, saved in (
        (Config(labels="y", max_drop=0.01), Config(labels="y", max_drop=0.01)),
        (Config(labels="y", metric="a:b", max_drop=0.01), Config(labels="y")),
    ):
        path.write_text(config_text(given))
        assert load_config(path) == saved


def test_batches_are_measured_sample_by_sample(tmp_path: Path) -> None:
    model = toys.write(toys.classifier(batch=4), tmp_path / "net.onnx")
    images = toys.images(64)
    shown: list[tuple[int, ...]] = []

    def metric(outputs: Any, label: Any) -> float:
        shown.append((*outputs["logits"].shape, int(label)))
        return 1.0

    data = {"image": images, "labels": np.arange(64)}
    found = onnxq.quantize(model, data, metric=metric, config=Config(labels="labels"))
    assert found.report.metric is not None
    assert {shape[:2] for shape in shown} == {(1, toys.CLASSES)}
    assert len({label for *_, label in shown}) == found.report.metric.samples == 64
