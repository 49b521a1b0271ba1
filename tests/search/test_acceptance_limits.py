"""Each rule of acceptance a step this side and that of every number in it, by brute force where there is a closed form.

The numbers are written out here: they are what users were promised, or what a judgement may cost.
"""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from math import comb

import pytest

from onnxq.config import Config
from onnxq.measure.compare import Comparison, OutputComparison
from onnxq.measure.kinds import Promise
from onnxq.measure.latency import Latency, LatencyReport
from onnxq.numerics import Share
from onnxq.search import acceptance
from onnxq.search.acceptance import Shortfall, Verdict, accepts, contradicts

BELOW_ONE = math.nextafter(1.0, 0.0)


def output(
    *,
    level: float | None = 25.0,
    agreement: float | None = 0.5,
    rows: int = 1000,
    times: int = 1,
    kept: float | None = None,
    problem: str | None = None,
) -> OutputComparison:
    """Decisions of which half were decided otherwise, unless told more."""
    share = None if agreement is None else Share(round(agreement * rows), rows, rows)
    promises = () if share is None else (Promise("decisions", share, times),)
    promises += () if kept is None else (Promise("level", level=kept, times=times),)
    return OutputComparison("y", 10_000, level, None, 0.1, problem, share=share, promises=promises)


def verdict(*outputs: OutputComparison, min_agreement: float = 0.99, guard_sqnr: float = -1000.0) -> Verdict:
    return accepts(Comparison("float", "int8", 1, outputs), Config(min_agreement=min_agreement, guard_sqnr=guard_sqnr))


@pytest.mark.parametrize("level", [None, -50.0, 20.0, 30.0, 200.0])
def test_decisions_count_at_any_level(level: float | None) -> None:
    found = verdict(output(level=level))
    assert (found.good, found.shortfalls, found.agreement) == (False, (Shortfall.AGREEMENT,), 0.5)
    assert verdict(output(level=level, agreement=1.0)).good


@pytest.mark.parametrize(("least", "times"), [(0.99, 1), (0.99, 5), (0.9, 1), (0.5, 1), (0.998, 1), (0.9, 10)])
def test_a_level_is_what_is_promised_or_more(least: float, times: int) -> None:
    limit = 1 - times * (1 - least)
    assert verdict(output(agreement=None, kept=limit, times=times), min_agreement=least).good
    assert verdict(output(agreement=None, kept=limit - 5e-13, times=times), min_agreement=least).good
    found = verdict(output(agreement=None, kept=limit - 1e-9, times=times), min_agreement=least)
    assert (found.shortfalls, found.agreement) == ((Shortfall.LEVEL,), 1.0)
    assert verdict(output(agreement=None, kept=math.nan, times=times), min_agreement=least).shortfalls == (
        Shortfall.LEVEL,
    )


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("least", [0.9981, 1.0])
def test_no_promise_asks_numbers_to_be_off_by_less_than_a_five_hundredth(least: float, times: int) -> None:
    assert verdict(output(agreement=None, kept=1 - 0.002 * times, times=times), min_agreement=least).good
    assert not verdict(output(agreement=None, kept=0.999999 - 0.002 * times, times=times), min_agreement=least).good


def test_of_a_level_nothing_is_promised_where_no_agreement_is_asked_for() -> None:
    poor = output(agreement=None, kept=-3.0)
    assert verdict(poor, min_agreement=0.0).good
    assert verdict(poor, min_agreement=1e-9).shortfalls == (Shortfall.LEVEL,)


def test_of_an_output_of_which_nothing_is_known_nothing_is_held_against_it() -> None:
    found = verdict(output(agreement=None, level=None), guard_sqnr=1000.0)
    assert (found.good, found.agreement, found.sqnr_db) == (True, 1.0, math.inf)
    assert acceptance.keeps(Promise("nothing"), Config())


def test_the_worst_level_of_those_that_are_known_counts() -> None:
    others = [output(level=level, agreement=1.0) for level in (50.0, None, 40.0, 45.0)]
    assert verdict(*others, guard_sqnr=40.0).sqnr_db == 40.0
    assert verdict(*others, guard_sqnr=40.0).good
    assert verdict(*others, guard_sqnr=math.nextafter(40.0, 50.0)).shortfalls == (Shortfall.SQNR,)
    assert verdict(output(level=math.nan, agreement=1.0)).shortfalls == (Shortfall.SQNR,)


def test_the_lowest_share_counts_of_those_that_decide() -> None:
    found = verdict(output(agreement=1.0), output(agreement=None), output(agreement=0.3, rows=10), output(rows=0))
    assert found.agreement == 0.3
    assert verdict(output(agreement=None)).agreement == 1.0


def test_a_problem_comes_first_and_the_rest_is_told_too() -> None:
    found = verdict(output(level=5.0, kept=0.5, problem="NaN"), guard_sqnr=10.0)
    assert found.shortfalls == (Shortfall.BROKEN, Shortfall.AGREEMENT, Shortfall.LEVEL, Shortfall.SQNR)
    assert not found.good


def test_a_verdict_stands_as_it_was_given() -> None:
    found = verdict(output(agreement=1.0))
    assert Verdict(found.comparison, 1.0, 25.0, True).shortfalls == ()
    with pytest.raises(FrozenInstanceError):
        found.good = False  # type: ignore[misc]
    poor = verdict(output()).contradicted()
    assert poor.shortfalls == (Shortfall.AGREEMENT, Shortfall.SECOND_CHECK)
    assert not poor.good


# -- how many decisions may change -------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 5, 10, 25])
def test_what_is_promised_of_what_may_change_more_often(times: int) -> None:
    for least in (0.5, 0.9, 0.99, 1.0):
        assert acceptance.share(Config(min_agreement=least), times) == pytest.approx(1 - times * (1 - least), abs=1e-12)


def tail(misses: int, rows: int, share: Fraction) -> Fraction:
    """The probability of so many misses or more, exactly."""
    return sum(
        (comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(misses, rows + 1)), start=Fraction(0)
    )


def alone(misses: float, rows: int) -> Share:
    """So many misses among decisions of as many samples."""
    return Share(rows - int(misses), rows, rows)


@pytest.mark.parametrize("percent", [1, 5, 10, 30, 60])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 20, 40])
def test_what_chance_explains_at_one_in_twenty_contradicts_nothing(rows: int, percent: int) -> None:
    share = Fraction(percent, 100)
    for misses in range(rows + 1):
        exact = tail(misses, rows, share)
        if abs(exact - Fraction(1, 20)) > Fraction(1, 10**9):  # nearer than that is a matter of rounding
            assert contradicts(alone(misses, rows), float(1 - share)) == (exact < Fraction(1, 20)), misses


def test_many_rows_do_not_underflow() -> None:
    """One standard deviation of the 10,000 misses that a million rows are granted is 99.5 of them."""
    assert not contradicts(alone(10_100, 1_000_000), 0.99)
    assert contradicts(alone(10_300, 1_000_000), 0.99)


def test_what_hangs_together_counts_as_fewer() -> None:
    """Ten samples of a hundred rows, one of which is wrong as a whole: as if one of ten were."""
    hanging = sum((Share.of(100, 100) for _ in range(9)), start=Share.of(0, 100))
    assert hanging.design_effect == pytest.approx(100.0 * 10 / 9)
    assert contradicts(alone(100, 1000), 0.99)
    assert tail(1, 10, Fraction(1, 100)) > Fraction(1, 20)
    assert not contradicts(hanging, 0.99)
    assert contradicts(hanging, 0.999)


def test_what_is_spared_is_no_evidence_unless_nothing_may_change() -> None:
    for misses in range(6):
        assert contradicts(alone(misses + 1, 20), 0.95, spare=1) == contradicts(alone(misses, 20), 0.95)
    assert not contradicts(alone(1, 2), 0.99, spare=1)
    assert contradicts(alone(1, 2), 0.99)
    assert contradicts(alone(1, 2), 1.0, spare=1)
    assert not verdict(output(agreement=0.75, rows=4)).good
    spared = replace(output(), promises=(Promise("decisions", alone(1, 4), spare=1),))
    assert verdict(spared).good


def test_where_nothing_may_change_one_row_contradicts() -> None:
    assert contradicts(alone(1, 1000), 1.0)
    assert not contradicts(alone(0, 1000), 1.0)
    assert not contradicts(Share(), 1.0)


@pytest.mark.parametrize(("same", "promise"), [(0, 0.0), (0, -1.0), (5, -1.0), (5, 0.0)])
def test_what_promises_nothing_cannot_be_contradicted(same: int, promise: float) -> None:
    """Two rows a decision make a negative promise of one below a half."""
    assert not contradicts(Share(same, 10, 10), promise)


# -- of two candidates, and of two files -------------------------------------------------------------------------------


def of(sqnr_db: float, good: bool = False) -> Verdict:
    return Verdict(Comparison("float", "int8", 1, (output(),)), 1.0, sqnr_db, good)


def test_the_second_is_the_one_to_start_from_if_it_is_good_or_loses_less() -> None:
    more = math.nextafter(20.0, 30.0)
    assert acceptance.less_noise(of(more), of(20.0))
    assert not acceptance.less_noise(of(20.0), of(20.0))
    assert not acceptance.less_noise(of(20.0), of(more))
    assert acceptance.promising(of(more), of(20.0))
    assert not acceptance.promising(of(20.0), of(20.0))
    assert acceptance.promising(of(10.0, good=True), of(20.0))


@pytest.mark.parametrize(("layers", "few"), [(19, 0), (20, 1), (39, 1), (40, 2), (100, 5)])
def test_a_layer_of_twenty_may_fall_back_before_another_way_is_looked_for(layers: int, few: int) -> None:
    accepted = [n for n in range(layers + 1) if acceptance.good_enough(of(20.0, good=True), n, layers)]
    assert accepted == list(range(few + 1))
    assert not acceptance.good_enough(of(20.0), 0, layers)


def test_faster_is_below_one_and_slower_above() -> None:
    above = math.nextafter(1.0, 2.0)
    assert acceptance.faster(BELOW_ONE)
    assert acceptance.faster(0.5)
    assert not acceptance.faster(1.0)
    assert not acceptance.faster(above)
    assert acceptance.faster_with_all(BELOW_ONE, [0.5, BELOW_ONE, 1.0])
    assert not acceptance.faster_with_all(BELOW_ONE, [0.5, above])
    assert not acceptance.faster_with_all(1.0, [0.5])


def test_a_file_is_worth_it_if_it_is_a_byte_smaller() -> None:
    assert [acceptance.smaller_file(size, 1000) for size in (1, 999, 1000, 1001)] == [True, True, False, False]


def test_slower_with_any_number_of_threads_is_slower() -> None:
    def report(*ratios: float) -> LatencyReport:
        def latency(label: str, threads: int, ms: float) -> Latency:
            return Latency(label, threads, 20, ms, ms, ms, ms, ms, ms, ms)

        rows = [latency(name, i + 1, ms) for i, r in enumerate(ratios) for name, ms in (("a", 1.0), ("b", r))]
        return LatencyReport(tuple(rows), (), False, 0)

    assert not acceptance.slower(None)
    assert not acceptance.slower(report(0.5, 1.0))
    assert acceptance.slower(report(0.5, 2.0))
    assert acceptance.slower(report(2.0, 0.5))


# -- how much data a judgement takes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "feeds"),
    [(0, 8), (1, 8), (2**23, 8), (2**23 + 1, 7), (2**24, 4), (2**24 * 1.3, 3), (2**25, 2), (2**26, 2), (2**40, 2)],
)
def test_2_to_8_feeds_of_2_to_the_26_elements_rank_layers(elements: float, feeds: int) -> None:
    assert acceptance.ranked_feeds(elements) == feeds


@pytest.mark.parametrize(
    ("elements", "samples"),
    [(0, 256), (1, 256), (2**16, 256), (2**16 + 1, 255), (2**22, 4), (2**23, 2), (2**24, 1), (2**25, 1), (2**40, 1)],
)
def test_up_to_256_samples_of_2_to_the_24_elements_are_the_second_check_set(elements: float, samples: int) -> None:
    assert acceptance.second_check_samples(elements) == samples


def test_how_many_samples_and_seconds_a_judgement_takes() -> None:
    assert (acceptance.FEW_SAMPLES, acceptance.JUDGED_FEEDS, acceptance.BATCHES_TO_ADAPT) == (8, 64, 4)
    assert (acceptance.TIMED_FEEDS, acceptance.TIMED_SECONDS) == (4, 2.0)
