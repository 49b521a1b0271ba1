"""Formats that are added from outside: a fixed codebook, and floats of 4 bits in blocks, from a name to a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner
from zoo import Net, embedding, feeds, lstm, residual

import onnxq
from onnxq.cli.app import app
from onnxq.config import Config, Rule, config_text, load_config
from onnxq.errors import ConfigError, ModelError
from onnxq.measure import kernel_map
from onnxq.numerics import QType, round_half_even
from onnxq.ranges import Fit, Moments
from onnxq.ranges.method import for_dead_parts
from onnxq.ranges.rounding import Blocks, Grid
from onnxq.ranges.samples import F64
from onnxq.weights import Family, GridFormat, register, unregister, weight_format

# Quantiles of the normal distribution, and 0 (Dettmers et al., QLoRA, NeurIPS 2023, appendix E).
BELOW = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911)
ABOVE = (0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0)
QUANTILES = np.asarray([*BELOW, 0.0, *ABOVE])


@dataclass(frozen=True)
class NormalFloat(GridFormat):
    """``w = s_c L[q]``: 4 bits, the levels those of a normal distribution, the largest weight of a channel the last."""

    def grid(self, weight: F64, moments: Moments | None, *, qtype: QType, how: Fit) -> Grid:
        step = np.abs(weight).max(axis=2) / qtype.qmax
        return Grid(for_dead_parts(step, qtype), round_half_even(QUANTILES * qtype.qmax))


# Twice what 2 bits of exponent and 1 of mantissa hold (OCP Microscaling Formats, version 1.0, table 5).
E2M1 = np.asarray([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12], np.float64)
# The powers of two that leave the largest of them within 8 bits.
EXPONENTS = 3


@dataclass(frozen=True)
class MicroFloat(GridFormat):
    """``w = s_c 2^e_b L[q]``: a float of 4 bits, times a power of two for each block."""

    def grid(self, weight: F64, moments: Moments | None, *, qtype: QType, how: Fit) -> Grid:
        starts = np.arange(0, weight.shape[2], self.block)
        step = np.maximum.reduceat(np.abs(weight), starts, axis=2) / E2M1[-1]
        scale = for_dead_parts(step.max(axis=2) / 2**EXPONENTS, qtype)
        exponent = np.ceil(np.log2(np.maximum(step / scale[:, :, None], 1.0)))
        multiples = 2.0 ** np.minimum(exponent, EXPONENTS)
        return Grid(scale, E2M1, Blocks(self.block, multiples, np.zeros_like(multiples)))


@pytest.fixture(autouse=True)
def formats() -> Iterator[None]:
    register(Family("nf", (4,), "nf4"), NormalFloat)
    register(Family("mxfp", (4,), "mxfp4:32", blocks=(4,), plain=False), MicroFloat)
    yield
    unregister("nf")
    unregister("mxfp")


def deep() -> onnx.ModelProto:
    n = Net(6)
    x = n("Relu", n.linear("x", 48, 96, name="a"), name="ra")
    x = n("Relu", n.linear(x, 96, 100, name="b"), name="rb")
    n.linear(x, 100, 24, name="c", out="y")
    return n.model({"x": ["n", 48]}, {"y": ["n", 24]})


DATA = {"x": np.random.default_rng(1).standard_normal((400, 48)).astype(np.float32)}


def config(text: str, **choices: object) -> Config:
    return Config(weights=text, first_last=text, placement="all", target="x86-vnni", **choices)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["nf4", "mxfp4:32", "mxfp4:16"])
@pytest.mark.parametrize("net", [deep, residual])
def test_integer_kernels_compute_with_a_registered_format(net: object, text: str, tmp_path: Path) -> None:
    proto = net()  # type: ignore[operator]
    data = DATA if net is deep else feeds(proto, 24)
    result = onnxq.quantize(proto, data, config=config(text))
    usual = onnxq.quantize(proto, data, config=config("int8"))
    (path,) = result.save(tmp_path / "q.onnx")
    (same,) = usual.save(tmp_path / "8.onnx")
    assert {str(w.stored) for w in result.plan.weights} == {text}
    assert len(kernel_map(path).integer_compute) == len(kernel_map(same).integer_compute) > 2
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > (16.0 if net is deep else 12.0)
    assert path.stat().st_size < same.stat().st_size or net is residual  # a small file is all tables


def test_the_file_holds_nibbles_and_the_levels() -> None:
    proto = deep()
    made = onnxq.quantize(proto, DATA, config=config("nf4")).proto()
    arrays = [numpy_helper.to_array(t) for t in made.graph.initializer]
    levels = round_half_even(QUANTILES * 127)
    (table,) = (a for a in arrays if a.dtype == np.int8 and a.shape == (256, 2))  # one that all weights share
    np.testing.assert_array_equal(np.unique(table), levels)
    assert sorted(a.size for a in arrays if a.dtype == np.uint8 and a.ndim == 1 and a.size > 200) == sorted(
        size // 2 for size in (48 * 96, 96 * 100, 100 * 24)
    )


def test_a_power_of_two_for_each_block() -> None:
    weight = np.random.default_rng(2).standard_normal((1, 12, 70)) * np.repeat([[0.2, 3.0, 1.0]], 32, axis=1)[:, :70]
    how = Fit("minmax", "tensor", "none", "nearest")
    stored = weight_format("mxfp4:32")
    found = stored.quantized(weight, None, qtype=QType(8, signed=True, narrow=True), how=how, least=np.zeros(()))
    packed = found.representation.pack(found.codes[0], axis=0)
    assert set(np.unique(packed["multiples"])) <= {1, 2, 4, 8}
    np.testing.assert_array_equal(found.representation.unpack(packed, (12, 70), axis=0), found.codes[0])
    assert sum(a.nbytes for a in packed.values()) + 12 * 5 == stored.nbytes(12, 70)
    assert np.square(weight - found.codes * found.scale[:, :, None]).sum() < 0.02 * np.square(weight).sum()


@pytest.mark.parametrize("net", [embedding, lstm])
@pytest.mark.parametrize(("text", "rows"), [("nf4", "nf4"), ("mxfp4:32", "int4")])
def test_tables_and_recurrences_are_stored_so_too(net: object, text: str, rows: str) -> None:
    proto = net()  # type: ignore[operator]
    result = onnxq.quantize(proto, feeds(proto, 8), config=config(text))
    assert result.plan.weights
    assert {str(w.stored) for w in result.plan.weights if not w.storage.computes} <= {rows, text}
    assert rows in {str(w.stored) for w in result.plan.weights}


def test_a_rule_and_a_file_of_choices_take_the_name(tmp_path: Path) -> None:
    chosen = Config(weights="int4", rules=(Rule("b", weights="nf4"),), placement="all")
    (tmp_path / "c.toml").write_text(config_text(chosen))
    assert load_config(tmp_path / "c.toml") == chosen
    result = onnxq.quantize(deep(), DATA, config=chosen)
    assert {w.node: str(w.stored) for w in result.plan.weights} == {"a": "int8", "b": "nf4", "c": "int8"}


def test_the_command_takes_the_name(tmp_path: Path) -> None:
    onnx.save(deep(), tmp_path / "m.onnx")
    np.savez(tmp_path / "m.calib.npz", **DATA)
    run = CliRunner().invoke(app, ["quantize", str(tmp_path / "m.onnx"), "--weights", "nf4", "--latency", "0", "-q"])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "m.nf4a8.onnx").exists()


def test_a_closed_form_refit_keeps_to_the_format() -> None:
    result = onnxq.quantize(deep(), DATA, config=config("nf4", adapt="fast"))
    assert {str(w.stored) for w in result.plan.weights} == {"nf4"}
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 16.0


def test_integers_beyond_the_kernels_type_are_refused() -> None:
    class Wide(MicroFloat):
        def grid(self, weight: F64, moments: Moments | None, *, qtype: QType, how: Fit) -> Grid:
            return Grid(np.full(weight.shape[:2], 1e-4), np.arange(-200.0, 200.0, 60.0))

    register(Family("wide", (3,), "wide3"), Wide)
    try:
        with pytest.raises(ModelError, match="weight format 'wide3' made integers that int8n does not hold"):
            onnxq.quantize(deep(), DATA, config=config("wide3"))
    finally:
        unregister("wide")


def test_names_are_taken_once_and_forgotten() -> None:
    with pytest.raises(ConfigError, match="there is a family of weight formats called 'nf' already"):
        register(Family("nf", (3,), "nf3"), NormalFloat)
    with pytest.raises(ConfigError, match=r"no weight format 'nf3': .*nf4"):
        Config(weights="nf3")
    with pytest.raises(ConfigError, match="weight format 'mxfp4' comes in blocks; write mxfp4:32"):
        Config(weights="mxfp4")
    with pytest.raises(ConfigError, match=r"blocks of 16, 32, 64, 128, 256 weights go with int2, .*, mxfp4"):
        Config(weights="nf4:32")
    with pytest.raises(ConfigError, match="'int' is no family that was registered"):
        unregister("int")
    unregister("nf")
    with pytest.raises(ConfigError, match="no weight format 'nf4'"):
        Config(weights="nf4")
    register(Family("nf", (4,), "nf4"), NormalFloat)
