"""When a placement that was timed is kept: the limits of its interval, over all numbers of threads and for each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from bench import bench
from claims import chain
from zoo import feeds, prepared

from onnxq.config import Config
from onnxq.kernels.targets import TARGETS
from onnxq.measure.latency import Latency, LatencyReport
from onnxq.plan import KeptFloat, Storage
from onnxq.plan.place import Placement
from onnxq.search import tune as tuning
from onnxq.search.tune import tune

ABOVE = math.nextafter(1.0, 2.0)


@pytest.mark.parametrize(
    ("intervals", "kept"),
    [
        ([(0.9, 0.99), (0.9, 0.99)], True),
        ([(0.9, 1.0), (0.9, 1.0)], False),  # the whole interval must lie below 1
        ([(0.9, 0.5), (0.9, 1.9)], True),  # of all numbers of threads together
        ([(0.9, 0.5), (0.9, 2.1)], False),
        ([(0.5, 0.6), (1.0, 1.2)], True),  # not slower beyond doubt with two threads
        ([(0.5, 0.6), (ABOVE, 1.2)], False),
    ],
)
def test_the_limits_of_being_faster(
    intervals: list[tuple[float, float]], kept: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def claimed(*_: Any, **__: Any) -> LatencyReport:
        rows = []
        for threads, (low, high) in enumerate(intervals, start=1):
            rows.append(Latency("a", threads, 20, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
            rows.append(Latency("b", threads, 20, 0.9, 0.9, 0.9, 0.9, 0.9, low, high))
        return LatencyReport(tuple(rows), (), False, 0)

    monkeypatch.setattr(tuning, "benchmark", claimed)
    start = Placement({"l1": KeptFloat("test", Storage.PACKED)})
    proto = chain(2)
    made = bench(prepared(proto), Config(), TARGETS["x86-vnni"], feeds(proto, 4), tmp_path, placement=start)
    found = tune(made.candidate, made.context, feeds(proto, 1), threads=(1, 2), seconds=0.0, seed=0)
    assert {trial.kept for trial in found.trials} == {kept}
    assert ("l1" in found.placement.keep_float) == (not kept)
