"""What is tried when the promise is not kept, what wins of it, and what becomes of models that gain nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from claims import Candidate, chain, claim, rows, scores, size_as, time_as
from zoo import Net

from onnxq import Result, quantize
from onnxq.config import Config, Rule
from onnxq.plan import Storage

# What is claimed is about integers; the toy networks are too small for them to pay.
pytestmark = pytest.mark.no_costs

# No channels are made alike: what is left to try before layers go back is to round weights together.
PLAIN = Config(equalize="none")


def good_below(layers: int, *, alone: float, together: float) -> Callable[[Candidate], Any]:
    """Claims that all is well with fewer than ``layers`` on integers; with all of them the level is one of these."""
    return lambda c: scores(level=50.0 if c.layers < layers else together if c.together else alone)


def rounding(result: Result) -> str:
    """``compensated`` where weights were rounded together because something was not good."""
    return result.config.rounding


# -- what is tried before layers go back -------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [4.0, 5.0])
def test_what_costs_more_and_gains_nothing_is_not_taken(together: float, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(monkeypatch, good_below(3, alone=5.0, together=together))
    timed = time_as(monkeypatch)
    result = quantize(chain(3), rows(), config=PLAIN)
    assert rounding(result) == "auto"
    assert len(result.plan.anchors) == 2
    assert timed == []


def test_what_is_good_at_once_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    claim(monkeypatch, good_below(3, alone=5.0, together=10.0))
    timed = time_as(monkeypatch)
    result = quantize(chain(3), rows(), config=PLAIN)
    assert (rounding(result), len(result.plan.anchors), result.good) == ("compensated", 3, True)
    assert timed == []


def test_nothing_more_is_tried_where_the_first_candidate_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = claim(monkeypatch, lambda c: scores())
    result = quantize(chain(3), rows(), config=PLAIN)
    assert rounding(result) == "auto"
    assert not any(c.together for c in heard)


@pytest.mark.parametrize(
    ("high", "expected"), [(1.0, "compensated"), (math.nextafter(1.0, 0.0), "auto"), (1.3, "compensated")]
)
def test_of_two_repaired_models_the_first_stays_unless_the_other_is_faster_beyond_doubt(
    high: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(monkeypatch, good_below(3, alone=5.0, together=6.0))
    timed = time_as(monkeypatch, high)
    result = quantize(chain(3), rows(), config=PLAIN)
    assert timed == [2]
    assert rounding(result) == expected
    assert len(result.plan.anchors) == 2


@pytest.mark.parametrize(("layers", "looked_further"), [(20, False), (19, True)])
def test_a_twentieth_of_the_layers_may_go_back_before_another_way_is_looked_for(
    layers: int, looked_further: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(monkeypatch, good_below(layers, alone=5.0, together=6.0))
    timed = time_as(monkeypatch, 0.5)
    result = quantize(chain(layers), rows(), config=PLAIN)
    assert len(result.plan.anchors) == layers - 1
    assert timed == ([2] if looked_further else [])
    assert rounding(result) == ("auto" if looked_further else "compensated")


@pytest.mark.parametrize("good", [True, False])
def test_of_two_the_good_one_wins_untimed(good: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded together no number of layers in float helps; rounded alone it does, if ``good``."""

    def says(c: Candidate) -> Any:
        level = 6.0 if c.together else 5.0
        return scores(level=50.0 if good and c.layers < 3 == c.stored and not c.together else level)

    claim(monkeypatch, says)
    timed = time_as(monkeypatch)
    result = quantize(chain(3), rows(), config=PLAIN)
    assert timed == []
    assert result.good == good
    assert rounding(result) == ("auto" if good else "compensated")


def test_where_nothing_is_good_agreement_comes_before_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(c: Candidate) -> Any:
        if c.layers < 3:
            return scores(level=1.0, agreement=0.1)
        return scores(level=6.0, agreement=0.5) if c.together else scores(level=5.0, agreement=0.6)

    claim(monkeypatch, says)
    result = quantize(chain(3), rows(), config=PLAIN)
    assert not result.good
    assert rounding(result) == "auto"


# -- never larger, never slower ----------------------------------------------------------------------------------------


def stored_only() -> onnx.ModelProto:
    """A recurrence whose weights can be stored as integers, but not computed with."""
    n = Net(2)
    w, r = n.weight("w", 1, 48, 64), n.weight("r", 1, 48, 16)
    n("GRU", "x", w, r, name="rnn", out="y", hidden_size=16)
    return n.model({"x": [4, "n", 64]}, {"y": [4, 1, "n", 16]})


@pytest.mark.parametrize(("of_float", "kept"), [(1001, True), (1000, False), (999, False)])
def test_a_file_of_the_same_size_stays_float(of_float: int, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    size_as(monkeypatch, of_float=of_float, quantized=1000)
    monkeypatch.setattr("onnxq.search.gains.described_bytes", lambda *_: 0)
    data = [{"x": np.random.default_rng(i).standard_normal((4, 1, 64)).astype(np.float32)} for i in range(16)]
    result = quantize(stored_only(), data)
    assert bool(result.plan.weights) == kept
    assert any(note.startswith("nothing can be gained") for note in result.report.notes) == (not kept)
    assert (result.report.sqnr_db > 100) == (not kept)
    asked = quantize(stored_only(), data, config=Config(rules=(Rule("rnn", "stored"),)))
    assert len(asked.plan.weights) == 1
    assert not any(note.startswith("nothing can be gained") for note in asked.report.notes)


def test_a_file_with_integer_layers_may_be_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    size_as(monkeypatch, of_float=1000, quantized=2000)
    assert len(quantize(chain(2), rows()).plan.anchors) == 2


@pytest.mark.parametrize(("low", "kept"), [(1.0, True), (1.02, True), (math.nextafter(1.02, 2.0), False)])
def test_two_percent_slower_beyond_doubt_is_slower(low: float, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = time_as(monkeypatch, 1.5, 1.0, low=low)
    result = quantize(chain(2), rows(), config=Config(latency_seconds=0.1))
    assert (len(result.plan.anchors) == 2) == kept
    assert len(timed) == (1 if kept else 2)
    if not kept:
        assert result.plan.anchors == ()
        assert {w.storage for w in result.plan.weights} == {Storage.PACKED}
