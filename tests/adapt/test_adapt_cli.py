"""`--adapt` and `onnxq setup` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from adapting import correlated, deep, runtime
from typer.testing import CliRunner, Result

from onnxq import Config, ConfigError, quantize
from onnxq.adapt.runtime import VARIABLE
from onnxq.cli import app
from onnxq.cli.choices import duration
from onnxq.config import config_text, load_config

# Toys are too small for integers to pay, and the command line has no option that says "all the same".
pytestmark = pytest.mark.no_costs


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(a) for a in arguments])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    onnx.save(deep().model({"x": ["n", 32]}, {"y": ["n", 10]}), tmp_path / "net.onnx")
    np.savez(tmp_path / "net.calib.npz", x=correlated(256, 32, 1))
    return tmp_path


def test_the_report_has_a_line_for_every_step(place: Path) -> None:
    done = call("quantize", place / "net.onnx", "--weights", "int3", "--adapt", "fast", "--latency", 0)
    assert done.exit_code == 0, done.output
    assert "Adapted to quantization noise: fast" in done.output
    assert "closed form" in done.output
    assert (place / "net.w3a8.onnx").exists()
    as_json = call("quantize", place / "net.onnx", "--weights", "int3", "--adapt", "fast", "--latency", 0, "--json")
    found = json.loads(as_json.stdout)["adaptation"]
    assert found["level"] == "fast"
    assert found["steps"][0]["after"] < found["steps"][0]["before"]
    assert [layer["node"] for layer in found["layers"]] == ["a", "b", "b2", "c", "c2", "d", "d2", "e"]


@pytest.mark.network
@pytest.mark.slow
def test_a_seed_makes_the_same_file_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(runtime()))
    config = Config(weights="int3", adapt="iterative", seed=5)
    files = [
        quantize(place / "net.onnx", place / "net.calib.npz", config=config)
        .proto()
        .SerializeToString(deterministic=True)
        for _ in range(2)
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0)])
def test_times(text: str, seconds: float) -> None:
    assert duration("--adapt-budget", text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3s", "ten", "0", "infh"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--adapt-budget .*; give a time as 90s, 10m or 1h"):
        duration("--adapt-budget", text)


def test_what_makes_no_sense_is_said(place: Path) -> None:
    assert (
        "adapt is one of none, fast, iterative, full, not 'much'"
        in call("quantize", place / "net.onnx", "--adapt", "much").output
    )
    (place / "net.calib.npz").unlink()
    done = call("quantize", place / "net.onnx", "--adapt", "fast")
    assert done.exit_code == 2
    assert "adapt needs calibration data" in done.output
    assert [p.name for p in place.iterdir()] == ["net.onnx"]


def test_a_handful_of_samples_is_too_few(place: Path) -> None:
    result = quantize(place / "net.onnx", {"x": correlated(5, 32, 1)}, config=Config(weights="int4", adapt="fast"))
    assert result.report.adaptation is None
    assert any(note.startswith("not adapted: 5 samples") for note in result.report.notes)


def test_two_fixed_batches_are_too_few() -> None:
    proto = deep().model({"x": [16, 32]}, {"y": [16, 10]})
    result = quantize(proto, {"x": correlated(32, 32, 1)}, config=Config(weights="int4", adapt="fast"))
    assert any(note.startswith("not adapted: 32 samples") for note in result.report.notes)


def test_the_choice_is_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(config_text(Config(adapt="full", adapt_seconds=90.0)))
    assert load_config(path) == Config(adapt="full", adapt_seconds=90.0)
    with pytest.raises(ConfigError, match="adapt_seconds must be at least 0"):
        Config(adapt_seconds=-1.0)


@pytest.mark.network
def test_setup_says_where_the_runtime_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(runtime()))
    done = call("setup")
    assert done.exit_code == 0
    assert str(runtime()) in done.output.replace("\n", "")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    done = call("setup")
    assert done.exit_code == 2
    assert "holds no onnxruntime-training-cpu" in done.output
