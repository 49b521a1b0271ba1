"""The loop over strategies, and which of two repaired candidates stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from zoo import feeds, gemm, prepared

from onnxq.build.build import Context
from onnxq.build.candidate import Built, Candidate
from onnxq.calibrate.feeds import Feed, open_feed
from onnxq.config import Config
from onnxq.equalize import Equalized
from onnxq.graph.signature import signature
from onnxq.kernels.targets import TARGETS
from onnxq.measure.compare import Comparison
from onnxq.measure.kernels import KernelMap
from onnxq.measure.latency import Latency, LatencyReport
from onnxq.parameters.choose import Parameters
from onnxq.plan import Plan
from onnxq.search import strategies
from onnxq.search.acceptance import Verdict
from onnxq.search.attempt import Attempt, Search
from onnxq.search.unrunnable import improved

GRAPH = prepared(gemm())


def attempt(content: bytes = b"", verdict: Verdict | None = None) -> Attempt:
    kernels = KernelMap("m", "extended", "0", ())
    built = Built(Plan(), Parameters({}, {}, {}), GRAPH, content, kernels, (), {})
    context = Context.of(TARGETS["x86-vnni"], (), None)  # type: ignore[arg-type]
    return Attempt(Candidate(GRAPH, Config()), context, Equalized(GRAPH), built, verdict)


def verdict(good: bool, agreement: float = 1.0, sqnr: float = 20.0) -> Verdict:
    return Verdict(Comparison("a", "b", 1, ()), agreement, sqnr, good)


def timed() -> Feed:
    return open_feed(feeds(gemm(), 2), signature(GRAPH).inputs)


def claimed(high: float, asked: list[Any]) -> Callable[..., LatencyReport]:
    def fake(models: Any, *_: Any, **__: Any) -> LatencyReport:
        asked.append(models)
        row = Latency("a", 1, 20, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
        return LatencyReport((row, replace(row, model="b", ratio_high=high)), (), False, 0)

    return fake


@pytest.mark.parametrize(("high", "second"), [(0.999, True), (1.0, False), (1.2, False)])
def test_of_two_good_ones_the_first_stays_unless_the_second_is_faster_beyond_doubt(
    high: float, second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(strategies, "benchmark", claimed(high, asked))
    ends = [(attempt(b"one", verdict(True)), ("a",)), (attempt(b"two", verdict(True)), ("b", "c"))]
    assert strategies._better(ends, timed()) is ends[second]
    assert asked == [[b"one", b"two"]]


@pytest.mark.parametrize(
    ("one", "two", "second"),
    [
        (verdict(True), verdict(False, 1.0, 99.0), False),
        (verdict(False), verdict(True, 0.5, 1.0), True),
        (verdict(False, 0.9, 10.0), verdict(False, 0.8, 30.0), False),
        (verdict(False, 0.9, 10.0), verdict(False, 0.9, 11.0), True),
    ],
)
def test_where_one_is_not_good_nothing_is_timed(
    one: Verdict, two: Verdict, second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(strategies, "benchmark", claimed(0.1, asked))
    ends = [(attempt(b"one", one), ()), (attempt(b"two", two), ())]
    assert strategies._better(ends, timed()) is ends[second]
    assert asked == []


def test_a_strategy_that_finds_nothing_leaves_what_there_was() -> None:
    seen: list[tuple[str, ...]] = []

    def nothing(_: Search, before: Attempt) -> None:
        seen.append(before.notes)

    def noting(_: Search, before: Attempt) -> Attempt:
        return before.noting("found")

    search = Search(None, None, None, "")  # type: ignore[arg-type]
    found = improved(search, attempt(), (nothing, noting, nothing, noting))
    assert found.notes == ("found", "found")
    assert seen == [(), ("found",)]


def test_what_was_not_built_cannot_be_looked_at() -> None:
    with pytest.raises(ValueError, match="not been built"):
        _ = replace(attempt(), made=None).built
