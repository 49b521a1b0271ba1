"""95 % intervals of paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.numerics.interval import paired_interval, student_t


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (9, 2.262), (30, 2.042), (10**6, 1.960)])
def test_student_t(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=1e-3)


def test_of_numbers_it_is_that_of_student() -> None:
    before = np.array([1.0, 2.0, 3.0, 4.0])
    change = np.array([0.1, -0.2, 0.3, 0.4])
    wide = student_t(3) * change.std(ddof=1) / 2
    assert paired_interval(before, before + change) == pytest.approx((0.15 - wide, 0.15 + wide))


def test_samples_that_are_all_the_same_prove_no_more_than_they_are() -> None:
    """64 of 64 are at least 94.4 %: a right answer more in 18 may be lost, or won."""
    hits = np.array([1.0] * 50 + [0.0] * 14)
    assert paired_interval(hits, hits) == pytest.approx((-0.056, 0.056), abs=1e-3)
    assert paired_interval(np.full(64, 0.7), np.full(64, 0.7)) == (0.0, 0.0)  # of what never differs


def test_one_sample_says_nothing() -> None:
    assert paired_interval(np.array([1.0]), np.array([1.0])) == (-math.inf, math.inf)


@pytest.mark.parametrize(("flips", "count"), [(0.02, 64), (0.1, 64), (0.01, 300), (0.3, 40)])
def test_it_covers_what_is_true(flips: float, count: int) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        before = (rng.random(count) < 0.8).astype(float)
        after = np.where(rng.random(count) < flips, 1 - before, before)
        low, high = paired_interval(before, after)
        covered += low <= flips * (0.2 - 0.8) <= high
    assert covered >= 0.93 * 400


def test_it_narrows_with_samples() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (50, 500, 5000):
        before = (rng.random(count) < 0.8).astype(float)
        low, high = paired_interval(before, np.where(rng.random(count) < 0.02, 1 - before, before))
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
