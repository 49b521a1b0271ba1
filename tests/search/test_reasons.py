"""Why a candidate is not accepted is a code, and each code has its own cause."""

from __future__ import annotations

from typing import Any

import pytest
from claims import scores

from onnxq.config import Config
from onnxq.measure.compare import Comparison, OutputComparison
from onnxq.measure.latency import NOTICEABLE, Latency, LatencyReport
from onnxq.search.acceptance import (
    FEW_FALLBACKS,
    RANKED_ELEMENTS,
    RANKED_FEEDS,
    SECOND_CHECK_ELEMENTS,
    SECOND_CHECK_SAMPLES,
    Shortfall,
    Verdict,
    accepts,
    as_asked,
    faster_with_all,
    good_enough,
    less_noise,
    promising,
    ranked_feeds,
    second_check_samples,
    slower,
    smaller_file,
)


def output(**figures: Any) -> OutputComparison:
    """The scores of 1,000 samples, none of which changed its decision."""
    return scores(**{"centred_sqnr_db": None, **figures})


def verdict(*outputs: OutputComparison, **choices: Any) -> Verdict:
    return accepts(Comparison("a", "b", 1, outputs), Config(**choices))


CASES = {
    "good": (output(), {}, ()),
    "broken": (output(problem="NaN"), {}, (Shortfall.BROKEN,)),
    "decisions": (output(agreement=0.9), {}, (Shortfall.AGREEMENT,)),
    "decisions at next to no noise": (output(agreement=0.9, sqnr_db=60.0), {}, (Shortfall.AGREEMENT,)),
    "near ties": (output(agreement=0.98, sure=1.0), {}, ()),
    "maps": (output(agreement=None, kept=0.98), {}, (Shortfall.LEVEL,)),
    "clean maps": (output(agreement=None, kept=0.99), {}, ()),
    "maps of which nothing is asked": (output(agreement=None, kept=0.5), {"min_agreement": 0.0}, ()),
    "noise": (output(sqnr_db=9.9), {}, (Shortfall.SQNR,)),
    "noise that is just allowed": (output(sqnr_db=10.0), {}, ()),
    "noise that is allowed by configuration": (output(sqnr_db=9.9), {"guard_sqnr": 9.0}, ()),
    "both": (output(sqnr_db=9.9, agreement=0.9), {}, (Shortfall.AGREEMENT, Shortfall.SQNR)),
}


@pytest.mark.parametrize("case", list(CASES))
def test_each_shortfall_has_its_cause(case: str) -> None:
    of, choices, expected = CASES[case]
    found = verdict(of, **choices)
    assert found.shortfalls == expected
    assert found.good == (not expected)


def test_the_worst_output_counts_for_noise_and_for_decisions() -> None:
    found = verdict(output(), output(name="z", sqnr_db=5.0, agreement=0.1))
    assert found.shortfalls == (Shortfall.AGREEMENT, Shortfall.SQNR)
    assert (found.sqnr_db, found.agreement) == (5.0, 0.1)


def test_the_second_check_set_has_a_code_of_its_own_and_changes_no_figure() -> None:
    first = verdict(output())
    found = first.contradicted()
    assert (found.good, found.shortfalls) == (False, (Shortfall.SECOND_CHECK,))
    assert (found.sqnr_db, found.agreement) == (first.sqnr_db, first.agreement)


@pytest.mark.parametrize(
    ("weights", "problem", "good"), [("int8", None, False), ("int4", None, True), ("int4", "NaN", False)]
)
def test_fewer_bits_are_the_users_wish_but_nothing_broken_is(weights: str, problem: str | None, good: bool) -> None:
    assert as_asked(verdict(output(agreement=0.5, problem=problem)), Config(weights=weights)).good is good


def test_of_two_the_good_one_then_decisions_then_noise() -> None:
    good, agreeing, clean, poor = (
        verdict(output(sqnr_db=12.0)),
        verdict(output(agreement=0.9)),
        verdict(output(agreement=0.8, sqnr_db=29.0)),
        verdict(output(agreement=0.8, sqnr_db=12.0)),
    )
    ordered = [poor, clean, agreeing, good]
    assert sorted([good, poor, agreeing, clean], key=lambda v: v.standing) == ordered
    assert promising(good, clean)  # though it has more noise
    assert promising(clean, poor)
    assert not promising(poor, clean)
    assert not less_noise(poor, poor)


def test_few_fallbacks_are_a_share_of_the_layers() -> None:
    good = verdict(output())
    most = int(FEW_FALLBACKS * 100)
    assert good_enough(good, most, 100)
    assert not good_enough(good, most + 1, 100)
    assert not good_enough(good.contradicted(), 0, 100)


def test_faster_with_all_numbers_of_threads() -> None:
    assert faster_with_all(0.999, [0.9, 1.0])
    assert not faster_with_all(1.0, [0.9])
    assert not faster_with_all(0.9, [0.8, 1.001])


def test_never_larger_and_never_slower_at_their_boundaries() -> None:
    assert smaller_file(99, 100)
    assert not smaller_file(100, 100)

    def report(low: float) -> LatencyReport:
        first = Latency("a", 1, 20, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
        return LatencyReport((first, Latency("b", 1, 20, low, low, low, low, low, low, low)), (), False, 0)

    assert not slower(None)
    assert not slower(report(NOTICEABLE))
    assert slower(report(NOTICEABLE * 1.001))


def test_how_much_data_judges_models_of_any_size() -> None:
    fewest, most = RANKED_FEEDS
    assert [ranked_feeds(e) for e in (0.0, RANKED_ELEMENTS / 4, RANKED_ELEMENTS)] == [most, 4, fewest]
    assert [second_check_samples(e) for e in (0.0, SECOND_CHECK_ELEMENTS / 100, SECOND_CHECK_ELEMENTS * 2)] == [
        SECOND_CHECK_SAMPLES,
        100,
        1,
    ]
