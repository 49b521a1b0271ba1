"""The promise at its limits: which figures of a comparison make a candidate good, and which samples have a say."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest
from claims import accepted, chain, claim, compared, rows, scores, verdict

from onnxq import quantize
from onnxq.config import Config

# What is claimed is about integers; the toy networks are too small for them to pay.
pytestmark = pytest.mark.no_costs

# Far fewer decisions alike than any promise: good only where decisions are not asked.
WRONG = {"agreement": 0.5, "rows": 1000}
ANY_LEVEL = Config(guard_sqnr=-1000.0)


# -- where the float model is sure, and near ties ----------------------------------------------------------------------


@pytest.mark.parametrize("level", [15.0, 30.0, 80.0])
def test_decisions_count_whatever_the_level(level: float) -> None:
    assert not accepted(Config(), scores(level=level, **WRONG))
    assert accepted(Config(), scores(level=level))


def test_where_float_is_sure_the_promise_is_whole_and_near_ties_are_two_for_one() -> None:
    assert accepted(Config(), scores(agreement=0.98, sure=0.99))
    assert not accepted(Config(), scores(agreement=0.98, sure=0.97))
    assert not accepted(Config(), scores(agreement=0.96, sure=1.0))
    assert accepted(Config(), scores(agreement=0.96, sure=1.0, near_ties=5))


def test_decisions_of_integers_count() -> None:
    whole = {"sqnr_db": None, "centred_sqnr_db": None, "rule": "equal"}
    assert not accepted(Config(), scores(**whole, **WRONG))
    assert accepted(Config(), scores(**whole))


def test_a_level_is_kept_or_not() -> None:
    numbers = {"agreement": None, "centred_sqnr_db": None}
    assert accepted(Config(), scores(kept=0.99, **numbers))
    assert not accepted(Config(), scores(kept=0.9899, **numbers))
    assert accepted(Config(min_agreement=0.9), scores(kept=0.9, **numbers))
    assert accepted(Config(min_agreement=0.0), scores(kept=-5.0, **numbers))


# -- how many decisions may change -------------------------------------------------------------------------------------


def allowed(near_ties: int, rows: int, config: Config) -> int:
    """The most rows that may be decided otherwise, if all fewer may be too."""
    misses = [
        m
        for m in range(rows + 1)
        if accepted(config, scores(near_ties=near_ties, rows=rows, agreement=1 - m / rows, sure=1.0))
    ]
    assert misses == list(range(len(misses)))
    return misses[-1]


def explained(rows: int, share: float) -> int:
    """The most misses that happen to a true ``share`` of them in at least one case of twenty, by brute force."""

    def tail(misses: int) -> float:
        return sum(comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(misses, rows + 1))

    return max(m for m in range(rows + 1) if m <= share * rows or tail(m) >= 0.05)


@pytest.mark.parametrize("promise", [0.9, 0.99])
@pytest.mark.parametrize("near_ties", [1, 2, 5])
@pytest.mark.parametrize("rows", [20, 150])
def test_so_many_near_ties_may_change_for_one_decision(near_ties: int, rows: int, promise: float) -> None:
    config = Config(min_agreement=promise)
    assert allowed(near_ties, rows, config) == explained(rows, near_ties * (1 - promise))


def test_one_decision_in_a_hundred_is_promised_unless_told_otherwise() -> None:
    assert allowed(1, 150, Config()) == explained(150, 0.01) < explained(150, 0.02)
    assert allowed(2, 150, Config()) == explained(150, 0.02) < explained(150, 0.03)


def test_where_no_agreement_is_asked_for_none_is_needed() -> None:
    assert accepted(Config(min_agreement=0.0), scores(agreement=0.0))
    assert not accepted(Config(min_agreement=1.0), scores(agreement=0.999))


# -- the level of all outputs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "least"), [(Config(), 10.0), (Config(guard_sqnr=33.0), 33.0)])
def test_every_output_needs_the_level_that_is_asked_for(config: Config, least: float) -> None:
    fine, poor = scores(level=50.0), math.nextafter(least, 0.0)
    assert accepted(config, scores(level=least))
    assert not accepted(config, scores(level=poor))
    assert accepted(config, fine, scores(name="z", level=least))
    assert not accepted(config, fine, scores(name="z", level=poor))
    assert verdict(config, fine, scores(name="z", level=poor)).sqnr_db == poor


def test_every_output_decides_and_the_worst_counts() -> None:
    found = verdict(Config(), scores(), scores(name="z", **WRONG))
    assert not found.good
    assert found.agreement == 0.5
    codes = scores(name="codes", sqnr_db=None, centred_sqnr_db=None, rule="equal", agreement=0.0)
    assert compared(codes, scores()).primary.name == "y"
    assert not accepted(Config(), codes, scores())
    assert not accepted(Config(), scores(), scores(name="z", agreement=None, kept=0.98))


def test_what_is_broken_is_never_good() -> None:
    anything = Config(min_agreement=0.0, guard_sqnr=-1000.0)
    assert accepted(anything, scores(level=-100.0, agreement=0.0))
    assert not accepted(anything, scores(level=100.0, problem="output y holds NaN"))
    assert not accepted(anything, scores(level=100.0), scores(name="z", problem="output z holds NaN"))


# -- which samples have a say ------------------------------------------------------------------------------------------


def first_inputs(feeds: list[dict[str, np.ndarray]]) -> set[float]:
    """What tells samples of ``rows`` apart."""
    return {float(row[0]) for feed in feeds for row in feed["x"]}


def test_calibration_samples_may_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is well on the 8 samples that are held out; on the other 56 only with two layers in float."""
    heard = claim(
        monkeypatch,
        lambda c: scores(level=25.0, rows=len(c.feeds), agreement=0.5 if c.layers > 1 and len(c.feeds) > 8 else 1.0),
    )
    result = quantize(chain(3), rows(64), config=Config(equalize="none"))
    assert result.good
    assert len(result.plan.anchors) == 1
    assert any(note.startswith("2 of 3 layers stay float because") for note in result.report.notes)
    seen = {frozenset(first_inputs(c.feeds)) for c in heard if len(c.feeds) <= 64}  # the others are made ones
    assert sorted(len(s) for s in seen) == [8, 56]
    assert not frozenset.intersection(*seen)
    # What is reported are the figures of the samples that calibration never saw.
    assert result.comparison is not None
    assert (result.comparison.primary.rows, result.comparison.primary.agreement) == (8, 1.0)


def test_the_second_check_set_vouches_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What held-out samples contradict is not asked of others, and their approval does not count."""
    heard = claim(monkeypatch, lambda c: scores(rows=100, agreement=0.5 if c.layers and len(c.feeds) == 8 else 1.0))
    result = quantize(chain(3), rows(64), config=Config(equalize="none"))
    assert result.plan.anchors == ()
    assert {c.layers for c in heard if len(c.feeds) != 8} == {0}


@pytest.mark.parametrize(("config", "count"), [(Config(held_out=0.0), 64), (Config(), 7)])
def test_samples_that_are_not_held_out_are_asked_once(
    config: Config, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = claim(monkeypatch, lambda c: scores())
    result = quantize(chain(2), rows(count), config=config)
    assert {len(c.feeds) for c in heard} == {count}
    assert len({c.steps for c in heard}) == len(heard)  # each candidate
    assert any("judged on the calibration samples themselves" in note for note in result.report.notes)


def test_no_more_than_256_calibration_samples_and_64_held_out_ones_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = claim(monkeypatch, lambda c: scores())
    quantize(chain(2), rows(640), config=Config(equalize="none", samples=640, held_out=0.25))
    lengths = [len(c.feeds) for c in heard]
    assert sorted(set(lengths)) == [64, 256]


def test_where_weights_of_few_bits_are_asked_for_only_what_is_broken_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(equalize="none", weights="int4")
    claim(monkeypatch, lambda c: scores(level=5.0 if c.layers == 3 else 50.0))
    result = quantize(chain(3), rows(), config=config)
    assert len(result.plan.anchors) == 3
    claim(monkeypatch, lambda c: scores(level=50.0, problem="output y holds NaN" if c.layers == 3 else None))
    assert len(quantize(chain(3), rows(), config=config).plan.anchors) == 2


# -- ranges for what is yet to come ------------------------------------------------------------------------------------


def test_of_two_ranges_the_one_that_loses_less_stays_and_of_equals_the_one_that_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chosen(level_of_wider: float) -> float:
        heard = claim(monkeypatch, lambda c: scores(level=40.0))
        quantize(chain(2), rows(), config=Config(equalize="none"))
        narrow, wide = sorted({c.steps for c in heard})
        found = claim(monkeypatch, lambda c: scores(level=level_of_wider if c.steps == wide else 40.0))
        quantize(chain(2), rows(), config=Config(equalize="none"))
        return (found[-1].steps - narrow) / (wide - narrow)

    assert chosen(40.0) == 0.0
    assert chosen(39.9) == 0.0
    assert chosen(40.1) == 1.0


@pytest.mark.parametrize(("how", "least"), [("strict", 0.999), ("default", 0.99), ("fast", 0.97)])
def test_how_accuracy_is_kept_moves_the_promise(how: str, least: float) -> None:
    """With very many rows the promise itself is the limit."""
    config = Config(keep_accuracy=how, guard_sqnr=-1000.0)
    rows = 100_000_000
    assert accepted(config, scores(level=10.0, agreement=least, rows=rows))
    assert not accepted(config, scores(level=10.0, agreement=least - 0.0005, rows=rows))
