"""The report: its figures, its JSON, its tables, and what importing it costs."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from measure_models import conv_net, feeds
from rich.console import Console

from onnxq.measure import assignments, benchmark, common_tensors, compare, kernel_map, layer_noise, model_size
from onnxq.measure.latency import Latency, LatencyReport
from onnxq.report.report import Report
from onnxq.report.tables import show
from onnxq.runtime.plain import plain

FLOAT, QUANTIZED = conv_net(quantized=False), conv_net(broken=True)
DATA = feeds(3, 1, 4, 8, 8)


@pytest.fixture(scope="module")
def report() -> Report:
    kernels = kernel_map(QUANTIZED)
    return Report(
        model_size(FLOAT),
        model_size(QUANTIZED),
        comparison=compare(FLOAT, QUANTIZED, DATA),
        latency=benchmark([FLOAT, QUANTIZED], DATA, seconds=0.02, min_rounds=5),
        kernels=kernels,
        assignments=assignments(QUANTIZED, kernels),
        layers=tuple(layer_noise(FLOAT, QUANTIZED, common_tensors(FLOAT, QUANTIZED)[:1], DATA)),
        reasons={"conv2": "first [and] last layer stay float"},
        reason_codes={"conv2": "rule"},
        notes=("calibrated on 3 samples",),
        warnings=("only 3 samples",),
        provenance={"onnxruntime": kernels.runtime},
    )


def printed(result: object, width: int = 100) -> str:
    stream = io.StringIO()
    show(result, Console(file=stream, width=width, color_system=None))  # type: ignore[arg-type]
    return stream.getvalue()


def test_reasons_of_the_plan_come_first_and_the_graph_explains_the_rest(report: Report) -> None:
    left = {node.node: node for node in report.left_float}
    assert set(left) == {"conv1", "conv2"}
    assert left["conv2"].reason == "first [and] last layer stay float"
    assert "QuantizeLinear" in left["conv1"].reason
    assert left["conv1"].kernel == "FusedConv"
    assert report.integer == ()


def test_json_holds_every_part(report: Report) -> None:
    loaded = json.loads(report.to_json())
    assert loaded["result"]["file_bytes"] == len(QUANTIZED)
    assert loaded["comparison"]["outputs"][0]["name"] == "y"
    assert loaded["sqnr_db"] == loaded["comparison"]["sqnr_db"] == report.sqnr_db
    assert [node["node"] for node in loaded["left_float"]] == ["conv1", "conv2"]
    assert [node["code"] for node in loaded["left_float"]] == ["output_not_quantized", "rule"]
    assert {fate["code"] for fate in loaded["fates"]} == {"output_not_quantized", "input_not_dequantized"}
    assert loaded["latency"]["rows"][1]["ratio_low"] <= loaded["latency"]["rows"][1]["ratio_high"]
    assert loaded["kernels"]["counts"]["float compute"] == {"FusedConv": 1, "Conv": 1}
    assert loaded["warnings"] == ["only 3 samples"]
    assert loaded["provenance"]["onnxruntime"]


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_say_the_essentials(report: Report, width: int) -> None:
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width
    for words in ("file size MB", "latency ms, 1 thread", "0 of 2", "FusedConv", "[and]", "Warning: only 3 samples"):
        assert words in text
    assert f"{report.sqnr_db:.1f}" in text


def test_every_result_can_be_shown(report: Report) -> None:
    assert "time / first" in printed(report.latency)
    assert "judged as" in printed(report.comparison)
    assert "constants again on every run" in printed(report.kernels)
    assert "local dB" in printed(report.layers)
    labelled = compare(FLOAT, FLOAT, [{"x": np.ones((1, 4, 8, 8), np.float32)}])
    assert "200.0" in printed(labelled)


def test_a_bare_report_prints_too() -> None:
    bare = Report(model_size(FLOAT), model_size(QUANTIZED))
    assert "file size" in printed(bare)
    assert json.loads(bare.to_json())["latency"] is None
    assert not bare.slower


def latency(low: float, high: float) -> LatencyReport:
    first = Latency("a", 1, 9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    second = Latency("b", 1, 9, 1.0, 1.0, 1.0, 1.0, (low + high) / 2, low, high)
    return LatencyReport((first, second), (), False, 0)


def test_slower_means_beyond_doubt() -> None:
    sizes = model_size(FLOAT), model_size(QUANTIZED)
    assert Report(*sizes, latency=latency(1.03, 1.2)).slower
    assert not Report(*sizes, latency=latency(1.01, 1.2)).slower
    assert not Report(*sizes, latency=latency(0.9, 1.2)).slower
    assert not Report(*sizes, latency=latency(0.5, 0.6)).slower


def test_losses_are_called_losses() -> None:
    sizes = model_size(QUANTIZED), model_size(FLOAT)
    text = printed(Report(*sizes, latency=latency(1.5, 2.5)))
    assert "2.00x slower (1.50-2.50)" in text
    assert "x larger" in text
    assert "2.00x faster (1.67-2.50)" in printed(Report(*sizes, latency=latency(0.4, 0.6)))


def test_plain_refuses_what_json_has_no_word_for() -> None:
    assert plain({"a": (np.float32(0.5), float("nan"), None)}) == {"a": [0.5, None, None]}
    with pytest.raises(TypeError, match="object"):
        plain(object())


def test_importing_the_report_loads_no_heavy_module() -> None:
    heavy = "onnx", "onnx_ir", "onnxruntime", "rich"
    code = f"import sys, onnxq.report.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
