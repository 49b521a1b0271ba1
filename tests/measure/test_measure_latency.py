"""Structure of latency figures, the interval of a median, footprints. No claim about how fast anything is."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from measure_models import Graph, conv_net, feeds

from onnxq.errors import ConfigError, DataError, RuntimeFailure
from onnxq.measure import benchmark, footprint
from onnxq.measure.busy import BUSY, share_waited, waiting
from onnxq.measure.latency import MAX_FEEDS, Latency, LatencyReport, _Stopwatch, distinct_labels, median_interval


def test_rows_for_every_model_and_thread_count() -> None:
    models = [conv_net(quantized=False), conv_net()]
    report = benchmark(models, feeds(2, 1, 4, 8, 8), threads=(1, 2), seconds=0.05, min_rounds=5, memory=False)
    assert [row.threads for row in report.rows] == [1, 1, 2, 2]
    assert not report.spinning
    for row in report.rows:
        assert row.rounds >= 5
        assert 0 < row.min_ms <= row.q1_ms <= row.median_ms <= row.q3_ms
        assert 0 < row.ratio_low <= row.ratio <= row.ratio_high
        assert row.speedup == pytest.approx(1 / row.ratio)
    firsts = [report.of(threads=n)[0] for n in (1, 2)]
    assert all((row.ratio, row.ratio_low, row.ratio_high) == (1, 1, 1) for row in firsts)
    json.dumps(report.to_dict(), allow_nan=False)


def heavy() -> bytes:
    g = Graph()
    value = "x"
    for i in range(30):
        value = g.node("MatMul", [value, g.const(f"w{i}", g.random(256, 256))], f"m{i}")
    return g.model({"x": [64, 256]}, {value: [64, 256]})


def light() -> bytes:
    g = Graph()
    g.node("Relu", ["x"], "y")
    return g.model({"x": [64, 256]}, {"y": [64, 256]})


def test_ratio_points_the_right_way() -> None:
    """A factor of hundreds in work: this asks for the sign of the ratio, not for its size."""
    report = benchmark([light(), heavy()], feeds(1, 64, 256), seconds=0.05, min_rounds=7, memory=False)
    assert report.rows[1].ratio_low > 1
    assert report.rows[1].speedup < 1


class Sleeper:
    """A session that waits, as one does whose core somebody else has."""

    def run(self, outputs: object, feed: object) -> None:
        time.sleep(0.05)

    def get_inputs(self) -> list[object]:
        return []

    get_outputs = get_inputs


@pytest.mark.skipif(sys.platform == "win32", reason="the time of a thread is counted in coarse steps there")
def test_with_one_thread_waiting_is_no_latency() -> None:
    stopwatch = _Stopwatch(1)
    assert stopwatch.time(Sleeper(), {}, 2) < 0.025
    stopwatch.probe()
    assert stopwatch.waited > 0.5
    assert _Stopwatch(2).time(Sleeper(), {}, 2) >= 0.05


def test_threads_that_share_cores_wait() -> None:
    cores = os.cpu_count() or 1
    assert waiting(8 * cores, seconds=0.01) > 0.5  # each has an eighth of a core at most
    assert 0.0 <= waiting(1, seconds=0.01) <= 1.0


def test_the_share_waited() -> None:
    assert share_waited(0.5, 2.0) == 0.75
    assert share_waited(2.0, 1.9) == 0.0  # clocks of different steps
    assert share_waited(0.0, 0.0) == 0.0


def row(threads: int, low: float, waited: float) -> Latency:
    return Latency("m", threads, 20, 1.0, 1.0, 1.0, 1.0, low, low, low, waited)


def test_times_of_several_threads_on_a_busy_machine_are_unsure() -> None:
    above = math.nextafter(BUSY, 1.0)
    assert row(1, 1.0, above).sure
    assert row(2, 1.0, BUSY).sure
    assert not row(2, 1.0, above).sure
    assert LatencyReport((row(2, 1.0, above), row(2, 9.0, above)), (), False, 0).unsure
    assert not LatencyReport((row(2, 1.0, above), row(2, 9.0, above)), (), False, 0).slower
    assert LatencyReport((row(2, 1.0, BUSY), row(2, 9.0, BUSY)), (), False, 0).slower
    assert LatencyReport((row(1, 1.0, 1.0), row(1, 1.03, 1.0)), (), False, 0).slower
    assert not LatencyReport((row(1, 1.0, 1.0), row(1, 1.02, 1.0)), (), False, 0).slower
    assert not LatencyReport((row(1, 1.0, 0.0), row(1, 9.0, 0.0)), (), False, 0, same_kernels=True).slower


def test_only_some_feeds_are_drawn() -> None:
    drawn = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal drawn
        while True:
            drawn += 1
            yield feeds(1, 1, 4, 8, 8)[0]

    benchmark([conv_net()], endless(), seconds=0.01, min_rounds=2, memory=False)
    assert drawn <= MAX_FEEDS


def test_models_of_one_name_are_told_apart() -> None:
    assert distinct_labels([Path("a/m.onnx"), Path("b/m.onnx"), Path("n.onnx")]) == ["a/m.onnx", "b/m.onnx", "n.onnx"]
    assert distinct_labels(["m.onnx", "m.onnx"]) == ["m.onnx #1", "m.onnx #2"]
    assert len(set(distinct_labels([b"1", b"2"]))) == 2


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(DataError, match="no data"):
        benchmark([conv_net()], [])
    with pytest.raises(ConfigError):
        benchmark([], feeds(1, 1, 4, 8, 8))
    with pytest.raises(DataError, match="does not fit"):
        benchmark([conv_net()], feeds(1, 1, 3, 8, 8), memory=False)


def exact_tail(n: int, k: int) -> float:
    return 2 * sum(math.comb(n, j) for j in range(k)) / 2**n


@pytest.mark.parametrize("n", [6, 7, 20, 25, 101])
def test_median_interval_is_the_narrowest_of_order_statistics_that_keeps_95_percent(n: int) -> None:
    x = np.random.default_rng(n).permutation(n).astype(float)
    median, low, high = median_interval(x)
    assert median == np.median(x)
    k = int(low) + 1  # values are their own ranks
    assert high == n - k
    assert exact_tail(n, k) <= 0.05
    assert exact_tail(n, k + 1) > 0.05


def test_median_interval_of_few_values_is_their_range() -> None:
    assert median_interval([3.0]) == (3.0, 3.0, 3.0)
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_median_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = sum(low <= 0 <= high for _, low, high in (median_interval(rng.standard_normal(30)) for _ in range(2000)))
    assert 0.95 <= hits / 2000 <= 0.97  # exact coverage for n = 30 is 0.957


def weights_model(floats: int) -> bytes:
    g = Graph()
    g.node("MatMul", ["x", g.const("w", np.ones((floats // 64, 64), np.float32))], "y")
    return g.model({"x": [1, floats // 64]}, {"y": [1, 64]})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory from /proc")
def test_footprint_sees_the_weights_and_not_the_parent(tmp_path: Path) -> None:
    ballast = np.ones(60_000_000, np.float32)  # 240 MB here must not show there
    small, large = 64 * 64, 64 * 100_000
    path = tmp_path / "large.onnx"
    path.write_bytes(weights_model(large))
    a = footprint(weights_model(small), [{"x": np.ones((1, 64), np.float32)}])
    b = footprint(path, [{"x": np.ones((1, 100_000), np.float32)}])
    assert ballast.any()
    assert 0 <= a.peak_bytes < 100_000_000
    assert b.peak_bytes - a.peak_bytes > 0.9 * large * 4
    assert a.load_seconds > 0
    assert (b.model, b.file_bytes) == ("large.onnx", path.stat().st_size)


def test_footprint_tells_why_it_failed() -> None:
    with pytest.raises(RuntimeFailure, match="does not fit"):
        footprint(conv_net(), feeds(1, 1, 3, 8, 8))
