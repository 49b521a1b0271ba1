"""Presets and weight formats from end to end: what is written, what is said, what is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from sqnr_levels import least
from typer.testing import CliRunner
from zoo import Net, residual

from onnxq import Config, quantize
from onnxq.cli.app import app
from onnxq.config import Rule, load_config, preset
from onnxq.measure import kernel_map
from onnxq.plan import Storage


def deep() -> onnx.ModelProto:
    n = Net(6)
    x = n("Relu", n.linear("x", 48, 96, name="a"), name="ra")
    x = n("Relu", n.linear(x, 96, 96, name="b"), name="rb")
    x = n("Relu", n.linear(x, 96, 96, name="c"), name="rc")
    n.linear(x, 96, 24, name="d", out="y")
    return n.model({"x": ["n", 48]}, {"y": ["n", 24]})


def correlated(count: int, seed: int) -> dict[str, np.ndarray]:
    """As inputs are: a few directions hold most of the energy."""
    mix = np.random.default_rng(0).standard_normal((48, 48)) * np.linspace(2.0, 0.05, 48)[:, None]
    return {"x": (np.random.default_rng(seed).standard_normal((count, 48)) @ mix).astype(np.float32)}


DATA = correlated(400, 1)
EVERYWHERE = {"placement": "all"}


def level(config: Config) -> float:
    found = quantize(deep(), DATA, config=config).report.sqnr_db
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["w4a8", "w4", "w4a4", "w6a6"])
def test_presets_run_and_say_what_they_do(name: str, tmp_path: Path) -> None:
    result = quantize(deep(), DATA, config=replace(preset(name), **EVERYWHERE))
    (path,) = result.save(tmp_path / "q.onnx")
    assert result.good
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > least(f"deep, {name}")
    notes = "\n".join(result.report.notes)
    assert ("first and last layers are stored as int8 (first_last): a, d" in notes) == (name != "w6a6")
    assert ("MatMulNBits, int4:32); their inputs are rounded to 8 bits" in notes) == (name == "w4")
    assert ("which no kernel of this CPU computes with" in notes) == (name in ("w4a4", "w6a6"))
    if name == "w4a8":
        assert len(kernel_map(path).integer_compute) == 4


def test_rounding_together_loses_less_than_rounding_to_nearest() -> None:
    usual = {"weights": "int3", "first_last": "int3", **EVERYWHERE}
    assert level(Config(**usual)) > level(Config(**usual, rounding="nearest")) + 1.0
    assert level(Config(**usual, rounding="nearest")) > level(
        Config(**usual, rounding="nearest", weight_range="minmax", restore="none")
    )


def test_weights_alone_are_rounded_together_too() -> None:
    usual = {"weights": "int4:32", "first_last": "int4:32", "activations": "none", "accuracy_level": 1}
    assert level(Config(**usual)) > level(Config(**usual, rounding="nearest")) + 1.0


def test_fewer_bits_lose_more_and_take_less() -> None:
    sizes, levels = [], []
    for bits in (2, 3, 4, 5, 6, 8):
        result = quantize(deep(), DATA, config=Config(weights=f"int{bits}", first_last=f"int{bits}", **EVERYWHERE))
        levels.append(result.report.sqnr_db)
        sizes.append(
            sum(np.prod(t.dims) for t in result.proto().graph.initializer if len(t.dims) == 1 and t.data_type == 2)
        )
    assert levels == sorted(levels)
    assert sizes[:5] == sorted(sizes[:5])


def test_without_data_weights_are_packed_all_the_same() -> None:
    result = quantize(residual(), config=Config(weights="int4", first_last="int4", **EVERYWHERE))
    assert all(w.stored.bits == 4 for w in result.plan.weights)
    result = quantize(deep(), config=replace(preset("w4"), **EVERYWHERE))
    assert {w.storage for w in result.plan.weights} == {Storage.BLOCKS, Storage.DYNAMIC}


def test_a_rule_gives_one_layer_another_format() -> None:
    config = Config(weights="int4", rules=(Rule("b", weights="codebook3"), Rule("c", weights="int8")), **EVERYWHERE)
    result = quantize(deep(), DATA, config=config)
    assert {w.node: str(w.stored) for w in result.plan.weights} == {
        "a": "int8",
        "b": "codebook3",
        "c": "int8",
        "d": "int8",
    }
    assert result.plan.unused_rules == ()


@pytest.mark.no_costs
def test_the_command(tmp_path: Path) -> None:
    onnx.save(deep(), tmp_path / "m.onnx")
    np.savez(tmp_path / "m.calib.npz", **DATA)
    run = CliRunner().invoke
    quiet = ["--latency", "0", "-q"]
    for arguments, name in (
        (["--preset", "w4a8"], "m.w4a8.onnx"),
        (["--preset", "w4"], "m.w4.onnx"),
        (["--weights", "int3", "--save-config", str(tmp_path / "c.toml")], "m.w3a8.onnx"),
        (["--size-budget", "0.4"], "m.mixed.onnx"),
        (["--activations", "uint6"], "m.w8a6.onnx"),
    ):
        result = run(app, ["quantize", str(tmp_path / "m.onnx"), *arguments, *quiet])
        assert result.exit_code == 0, result.output
        assert (tmp_path / name).exists()
    assert load_config(tmp_path / "c.toml").weights == "int3"
    assert (tmp_path / "m.mixed.onnx").stat().st_size <= 0.4 * (tmp_path / "m.onnx").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "w5"], "no preset 'w5'"),
        (["--weights", "int7"], "no weight format 'int7'"),
        (["--weights", "uint4:32"], "zero points"),
        (["--activations", "int4"], "activations is one of uint8, uint6, uint4, none"),
        (["--weights", "auto"], "needs a size_budget or a min_sqnr"),
        (["--size-budget", "0.001"], "cannot be kept"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    onnx.save(deep(), tmp_path / "m.onnx")
    np.savez(tmp_path / "m.calib.npz", **DATA)
    result = CliRunner().invoke(app, ["quantize", str(tmp_path / "m.onnx"), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.glob("m.*.onnx"))
