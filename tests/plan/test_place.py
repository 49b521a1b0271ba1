"""Placement in one model: sizes from a run of it, costs from a table, rules of the user before both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from sqnr_levels import least
from zoo import Net, feeds, prepared

from onnxq.config import Config, Rule
from onnxq.errors import ConfigError
from onnxq.kernels.costs import CostTable, Grid, cost_table
from onnxq.kernels.targets import TARGETS
from onnxq.pipeline import quantize
from onnxq.plan import place as placing
from onnxq.plan.place import Placement, place, tensor_shapes

AVX2 = TARGETS["x86-avx2"]


def large_and_small() -> onnx.ModelProto:
    """A product that integers are made for, and one that is over before it has begun."""
    n = Net()
    n.linear(n("Softplus", "x", name="curve"), 512, 512, name="large", out="y")
    n.linear(n("Softplus", "s", name="bend"), 16, 8, name="small", out="z")
    return n.model({"x": ["n", 64, 512], "s": ["n", 4, 16]}, {"y": ["n", 64, 512], "z": ["n", 4, 8]})


def test_integers_where_they_pay(tmp_path: Path) -> None:
    proto = large_and_small()
    found = place(prepared(proto), Config(), AVX2, feeds(proto, 1), tmp_path)
    assert set(found.keep_float) == {"small"}
    assert found.force_gemm == frozenset()


def test_rules_come_before_costs(tmp_path: Path) -> None:
    proto = large_and_small()
    config = Config(rules=(Rule("small", "int8"),))
    assert place(prepared(proto), config, AVX2, feeds(proto, 1), tmp_path).keep_float == {}
    assert place(prepared(proto), Config(placement="all"), AVX2, feeds(proto, 1), tmp_path) == Placement()


def test_without_a_table_or_an_input_everything_that_can(tmp_path: Path) -> None:
    proto = large_and_small()
    assert place(prepared(proto), Config(), AVX2, [], tmp_path) == Placement()
    if cost_table("arm64") is None:
        assert place(prepared(proto), Config(), TARGETS["arm64"], feeds(proto, 1), tmp_path) == Placement()


def test_sizes_are_those_of_the_feed(tmp_path: Path) -> None:
    model = prepared(large_and_small())
    feed = {"x": np.zeros((3, 64, 512), np.float32), "s": np.zeros((3, 4, 16), np.float32)}
    shapes = tensor_shapes(model, feed, tmp_path)
    assert shapes["large_out"] == (3, 64, 512)
    assert shapes["x"] == (3, 64, 512)
    assert tensor_shapes(model, {**feed, "x": feed["s"]}, tmp_path) == {}


def never() -> CostTable:
    """A table by which integers never pay."""
    axes = tuple((name, (1.0, 1e6)) for name in ("rows", "inner", "columns"))
    grids = {("matmul", k): Grid(axes, np.full((2, 2, 2), us)) for k, us in (("float", 1.0), ("int8", 9.0))}
    line = (("elements", (1.0, 1e6)),)
    for kernel in ("QuantizeLinear", "DequantizeLinear"):
        grids[kernel, "float"] = Grid(line, np.full(2, 1.0))
    return CostTable("test", grids)


def test_a_model_that_integers_would_slow_down_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "cost_table", lambda target: never())
    proto = large_and_small()
    result = quantize(proto, feeds(proto, 16), config=Config(min_agreement=0.0))
    assert result.plan.anchors == ()
    assert {s.reason for s in result.plan.skipped} == {"integers would not pay here, conversions counted"}
    assert any("stored as integers, the computing is float" in note for note in result.report.notes)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > least("large_and_small, stored")


def test_words_for_placement_and_operators_are_checked() -> None:
    with pytest.raises(ConfigError, match="placement is one of cost, all, not 'fast'"):
        Config(placement="fast")
    with pytest.raises(ConfigError, match="operators is one of onnxruntime, standard, not 'onnx'"):
        Config(operators="onnx")
