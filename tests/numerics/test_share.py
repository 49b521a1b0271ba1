"""Counted shares and the lower ends of their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.numerics.share import Share, incomplete_beta, lower_end, rounded_down


def tail(size: int, same: int, p: float) -> float:
    """P(X >= same) of the binomial distribution, by its sum."""
    return math.fsum(math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(same, size + 1))


@pytest.mark.parametrize(("same", "size"), [(1, 1), (31, 32), (32, 32), (0, 5), (3, 10), (396, 400), (50, 100)])
def test_lower_end_is_where_the_binomial_tail_is_a_fortieth(same: int, size: int) -> None:
    low = lower_end(same, size)
    if same == 0:
        assert low == 0.0
    else:
        assert tail(size, same, low) == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize("a", [0.75, 1.0, 7.3, 400.0, 1e5])
@pytest.mark.parametrize("b", [0.5, 1.0, 2.0, 31.0])
@pytest.mark.parametrize("x", [0.01, 0.4, 0.9, 0.9999])
def test_incomplete_beta_is_the_integral(a: float, b: float, x: float) -> None:
    # With t = u ** 2 and 1 - t = v ** 2 neither end of the integrand is infinite.
    def part(low: float, high: float) -> float:
        angle = np.linspace(math.asin(math.sqrt(low)), math.asin(math.sqrt(high)), 400_001)
        with np.errstate(divide="ignore"):
            log = (2 * a - 1) * np.log(np.sin(angle)) + (2 * b - 1) * np.log(np.cos(angle)) + math.log(2)
        beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
        return float(np.trapezoid(np.exp(log - beta), angle))

    assert incomplete_beta(a, b, x) == pytest.approx(part(0.0, x), abs=2e-5)


def test_31_of_32_is_at_least_83_percent() -> None:
    assert str(Share(31, 32, 32, 1.0, 1.0, 32.0)) == "31 of 32, at least 83 %"
    assert rounded_down(0.99999) == "99.99 %"


def test_adding_single_rows_gives_independent_decisions() -> None:
    total = sum((Share.of(int(i != 3), 1) for i in range(32)), Share())
    assert (total.same, total.rows, total.samples, total.design_effect) == (31, 32, 32, 1.0)


def test_misses_of_one_sample_count_as_one() -> None:
    spread = sum((Share.of(39 if i < 30 else 40, 40) for i in range(64)), Share())
    together = sum((Share.of(10 if i == 0 else 40, 40) for i in range(64)), Share())
    assert spread.value == together.value
    assert spread.lower > 0.98 > 0.96 > together.lower


def test_nothing_missed_is_never_less_sure_than_one_missed() -> None:
    none = sum((Share.of(40, 40) for _ in range(64)), Share())
    one = sum((Share.of(39 if i == 0 else 40, 40) for i in range(64)), Share())
    assert one.lower <= none.lower < 1.0
    assert sum((Share.of(1, 1) for _ in range(64)), Share()).lower == lower_end(64, 64)


def test_intervals_hold_what_they_promise() -> None:
    random = np.random.default_rng(0)
    below = above = 0
    for _ in range(400):
        # Sentences that are hard or easy as a whole: 1.4 % of words are missed, most of them in a tenth of sentences.
        hard = random.random(100) < 0.1
        total = Share()
        for one in hard:
            total += Share.of(30 - int(random.binomial(30, 0.1 if one else 0.0045)), 30)
        truth = 1 - (0.1 * 0.1 + 0.9 * 0.0045)
        below, above = below + (total.lower > truth), above + (total.upper < truth)
    assert below <= 20
    assert above <= 20
    assert Share().lower == 0.0
    assert Share().upper == 1.0
    assert Share().value == 1.0
