"""Lengths that differ: how many may, which layers go back for them, and what comes of it from end to end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from claims import SCORES, compared, scores
from lengths_zoo import detector, picker, pictures, sentences, speech
from zoo import prepared

from onnxq import Config, quantize
from onnxq.build.candidate import Built
from onnxq.graph.lengths import value_lengths
from onnxq.graph.linear import multiply_accumulates
from onnxq.kernels.lengths import Length
from onnxq.measure.compare import OutputComparison
from onnxq.measure.kernels import KernelMap
from onnxq.parameters.choose import Parameters
from onnxq.plan import KeptFloat, Plan
from onnxq.plan.place import tensor_shapes
from onnxq.query import nodes
from onnxq.search import deciding
from onnxq.search.acceptance import DECIDING_WORK, Shortfall, Verdict, accepts
from onnxq.search.repair import Repaired, repair
from onnxq.search.search import typical


def series(differ: int, samples: int = 100, **changes: Any) -> OutputComparison:
    return replace(SCORES, length=Length.STRETCHED, samples=samples, other_length=differ, **changes)


def picked(agreement: float, rows: int = 1000, **changes: Any) -> OutputComparison:
    of = {"length": Length.DETECTED, "centred_sqnr_db": None, "samples": 10, **changes}
    return scores(agreement=agreement, rows=rows, rule="counterparts", **of)


def shortfalls(*outputs: OutputComparison, **choices: Any) -> tuple[Shortfall, ...]:
    return accepts(compared(*outputs), Config(**choices)).shortfalls


# -- how many may differ -----------------------------------------------------------------------------------------------


def tail(samples: int, differ: int, share: float) -> float:
    return sum(math.comb(samples, k) * share**k * (1 - share) ** (samples - k) for k in range(differ, samples + 1))


@pytest.mark.parametrize("samples", [5, 35, 64, 256])
def test_a_quarter_of_the_samples_may_have_another_length(samples: int) -> None:
    """More is a disagreement where chance does not explain it."""
    most = next(k for k in range(samples) if tail(samples, k + 1, 0.25) < 0.05)
    assert shortfalls(series(most, samples)) == ()
    assert shortfalls(series(most + 1, samples)) == (Shortfall.LENGTHS,)


def test_another_alignment_counts_as_another_length() -> None:
    assert shortfalls(series(20)) == ()
    assert shortfalls(replace(series(20), other_alignment=20)) == (Shortfall.LENGTHS,)


def test_the_promise_of_agreement_scales_with_what_may_differ() -> None:
    assert shortfalls(series(1), min_agreement=1.0) == (Shortfall.LENGTHS,)
    assert shortfalls(series(40), min_agreement=0.98) == ()
    assert shortfalls(series(100), min_agreement=0.0) == ()


def test_every_series_counts_and_not_only_the_first_output() -> None:
    assert shortfalls(SCORES, series(60, name="z")) == (Shortfall.LENGTHS,)
    assert shortfalls(SCORES, replace(series(60, name="z"), length=None)) == (Shortfall.LENGTHS,)


@pytest.mark.parametrize(
    ("agreement", "expected"), [(0.9, ()), (0.884, ()), (0.883, (Shortfall.LENGTHS,)), (0.0, (Shortfall.LENGTHS,))]
)
def test_nine_in_ten_of_what_was_picked_have_a_counterpart(agreement: float, expected: tuple[Shortfall, ...]) -> None:
    """Binomially: of 1000, up to 116 misses are explained by chance where 100 were promised."""
    assert tail(1000, 117, 0.1) < 0.05 < tail(1000, 116, 0.1)
    assert shortfalls(picked(agreement)) == expected
    assert shortfalls(picked(agreement), min_agreement=0.0) == ()


def test_counterparts_say_all_there_is_to_say_of_lengths() -> None:
    assert shortfalls(replace(picked(0.95), other_length=10)) == ()


def test_every_output_with_counterparts_counts() -> None:
    assert shortfalls(picked(0.95), picked(0.3, name="z")) == (Shortfall.LENGTHS,)
    assert shortfalls(SCORES, picked(0.3, name="z")) == (Shortfall.LENGTHS,)
    assert shortfalls(picked(0.0, rows=0, name="w"), picked(0.95, name="z")) == ()


def test_picked_rows_that_are_noisy_are_noise() -> None:
    assert shortfalls(picked(1.0, sqnr_db=9.9)) == (Shortfall.SQNR,)
    assert shortfalls(picked(0.5, sqnr_db=9.9)) == (Shortfall.SQNR, Shortfall.LENGTHS)


def test_only_lengths_are_told_from_all_else() -> None:
    lengths, both = accepts(compared(series(60)), Config()), accepts(compared(series(60, sqnr_db=5.0)), Config())
    good = accepts(compared(series(0)), Config())
    assert (good.good_but_for_lengths, lengths.good_but_for_lengths) == (True, True)
    assert not lengths.good
    assert not accepts(compared(series(60, centred_sqnr_db=5.0)), Config()).good_but_for_lengths
    assert not both.contradicted().good_but_for_lengths
    assert good.contradicted(Shortfall.LENGTHS).good_but_for_lengths
    assert not good.contradicted().good_but_for_lengths


# -- what goes back ----------------------------------------------------------------------------------------------------


def fake(anchors: tuple[str, ...], kept: Mapping[str, KeptFloat]) -> Built:
    plan = Plan(anchors=tuple(a for a in anchors if a not in kept), integer=anchors)
    return Built(plan, Parameters({}, {}, {}), None, b"", KernelMap("m", "extended", "0", ()), (), kept)  # type: ignore[arg-type]


@dataclass
class Bench:
    """Four layers; lengths are right where all of ``needed`` are float, and ``noisy`` must be float for the rest."""

    needed: frozenset[str]
    noisy: frozenset[str] = frozenset()
    tried: int = 0

    def build(self, kept: Mapping[str, KeptFloat]) -> Built:
        self.tried += 1
        return fake(("a", "b", "c", "d"), kept)

    def verdict(self, built: Built) -> Verdict:
        on = set(built.plan.anchors)
        found = [Shortfall.SQNR] if on & self.noisy else []
        found += [Shortfall.LENGTHS] if on & self.needed else []
        return Verdict(compared(), 1.0, 30.0 - len(on), not found, tuple(found))

    def noise(self, kept: Mapping[str, KeptFloat]) -> float:
        return float(not self.noisy & kept.keys())

    def repaired(self, *deciding: str) -> Repaired:
        return repair(fake(("a", "b", "c", "d"), {}), self, self, deciding=lambda _: deciding)


@pytest.mark.parametrize(
    ("needed", "deciding", "fallback"),
    [
        ("a", "ab", ("a",)),
        ("b", "ab", ("a", "b")),  # those nearest to the decision first
        ("c", "ab", ()),  # where what can go back does not help, nothing does
        ("c", "", ()),
    ],
)
def test_the_fewest_layers_that_decide_lengths_go_back(needed: str, deciding: str, fallback: tuple[str, ...]) -> None:
    found = Bench(frozenset(needed)).repaired(*deciding)
    assert found.fallback == fallback
    assert found.verdict.good == bool(fallback)
    assert set(found.built.plan.anchors) == set("abcd") - set(fallback)


def test_a_layer_that_is_float_already_is_not_given_back() -> None:
    bench = Bench(frozenset("a"))
    found = repair(fake(("b", "c"), {}), bench, bench, deciding=lambda _: ("z",))
    assert found.fallback == ()


def test_lengths_alone_give_nothing_else_back() -> None:
    bench = Bench(frozenset("c"))
    bench.repaired()
    assert bench.tried == 0


def test_what_is_noisy_goes_back_whatever_lengths_do() -> None:
    found = Bench(frozenset("c"), frozenset("d")).repaired("a")
    assert found.fallback == ("d",)
    assert found.verdict.shortfalls == (Shortfall.LENGTHS,)


# -- from end to end ---------------------------------------------------------------------------------------------------

CONFIG = Config(latency_seconds=0.0, placement="all")


@pytest.mark.parametrize("with_durations", [True, False])
def test_predicted_durations_keep_their_layers_on_integers(with_durations: bool) -> None:
    result = quantize(speech(with_durations=with_durations), sentences(), config=CONFIG)
    assert result.comparison is not None
    mel = result.comparison.outputs[0]
    assert result.good
    assert len(result.plan.layers) >= 4
    assert mel.length is Length.STRETCHED
    assert mel.samples == 5
    assert mel.sqnr_db is not None
    assert mel.sqnr_db > 20
    assert result.comparison.problems == ()
    assert result.report.result.file_bytes < 0.45 * result.report.source.file_bytes


@pytest.mark.parametrize("table", [True, False])
def test_detections_are_compared_by_their_counterparts(table: bool) -> None:
    result = quantize(detector(table=table), pictures(), config=CONFIG)
    assert result.comparison is not None
    assert result.good
    assert len(result.plan.layers) == 5
    first = result.comparison.primary
    assert first.agreement_rule == "counterparts"
    assert first.rows > 20
    assert first.agreement is not None
    assert first.agreement >= 0.9
    assert first.sqnr_db is not None
    assert first.sqnr_db > 25


def test_what_is_picked_is_compared_by_its_counterparts() -> None:
    result = quantize(picker(), pictures(), config=CONFIG)
    assert result.comparison is not None
    assert result.good
    assert len(result.plan.layers) >= 5
    assert result.comparison.primary.agreement_rule == "counterparts"
    assert result.comparison.primary.sqnr_db is not None
    assert result.comparison.primary.sqnr_db > 25


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.3, 1.0])
def test_only_layers_that_do_little_of_the_work_go_back_for_lengths(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest to the decision first, as many as do up to the share of all multiply-accumulates together."""
    assert DECIDING_WORK == 0.2
    monkeypatch.setattr(deciding, "DECIDING_WORK", share)
    graph, feed = prepared(speech()), sentences()[4]
    shapes = tensor_shapes(graph, feed, tmp_path)
    work = {n.name or "": multiply_accumulates(n, shapes) for n in nodes(graph)}
    steps = feed["ids"].size
    assert work["encode0"] == work["encode1"] == 48 * 48 * 3 * steps
    assert work["duration"] == 48 * steps
    lengths = value_lengths(graph)
    layers = ("encode0", "encode1", "duration", "decode0", "decode1")
    search: Any = SimpleNamespace(timed=[feed], job=SimpleNamespace(prepared=graph, folder=tmp_path))
    found = deciding.cheap_deciding(fake(layers, {}), lengths=lengths, search=search)
    order = ["duration", "encode1", "encode0"]
    sums = np.cumsum([work[n] for n in order])
    assert found == order[: int((sums <= share * sum(work.values())).sum())]
    alone = replace(lengths, only=frozenset(["encode0"]))
    first = deciding.cheap_deciding(fake(layers, {}), lengths=alone, search=search)
    assert first == [] or first[0] == "encode0"
    nothing: Any = SimpleNamespace(timed=None, job=search.job)
    assert deciding.cheap_deciding(fake(layers, {}), lengths=lengths, search=nothing) == []
    assert "encode1" not in deciding.cheap_deciding(fake(("encode0", "duration"), {}), lengths=lengths, search=search)


def test_a_promise_of_all_lengths_gives_back_only_what_decides(tmp_path: Path) -> None:
    """No length may change: the layers in front of the durations go back as far as they do little of the work."""
    result = quantize(speech(), sentences(), config=replace(CONFIG, min_agreement=1.0))
    assert result.comparison is not None
    assert {"decode0", "decode1"} <= set(result.plan.layers)


def test_the_sample_of_middle_size_tells_what_layers_cost() -> None:
    from onnxq.calibrate.feeds import open_feed
    from onnxq.graph.signature import TensorSpec

    spec = [TensorSpec("x", np.dtype(np.float32), ("N", "T"))]
    sizes = [3, 9, 4, 7, 5]
    feed = open_feed([{"x": np.zeros((1, size), np.float32)} for size in sizes], spec)
    assert typical(feed)["x"].shape == (1, 5)
    many = open_feed([{"x": np.zeros((1, 1 + i), np.float32)} for i in range(18)], spec)
    assert typical(many)["x"].shape == (1, 9)  # of nine, evenly spaced: 1, 3, ..., 17
    alike = open_feed({"x": np.arange(8, dtype=np.float32).reshape(4, 2)}, spec)
    np.testing.assert_array_equal(typical(alike)["x"], [[0.0, 1.0]])
