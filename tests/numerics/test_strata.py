"""A share over two parts, one of which is weighed otherwise than it was sampled."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.numerics import Share, Strata


def counted(same: int, rows: int) -> Share:
    """So many of as many samples with one decision each."""
    missed = float(rows - same)
    return Share(same, rows, rows, missed, missed, float(rows))


def test_its_value_is_weighed() -> None:
    found = Strata(counted(500, 500), counted(80, 100), counted(90, 100))
    assert found.value == pytest.approx(0.9 + 0.1 * 0.8)
    assert found.lower < found.value


def test_a_part_that_was_not_seen_may_be_anything() -> None:
    assert Strata(counted(500, 500), Share(), counted(90, 100)).lower < 0.91
    assert Strata(Share(), counted(100, 100), counted(90, 100)).lower < 0.11


def test_a_part_that_does_not_occur_does_not_matter() -> None:
    known = Strata(counted(500, 500), counted(0, 100), counted(100_000, 100_000))
    assert known.lower == pytest.approx(counted(500, 500).lower, abs=1e-3)


def test_how_the_parts_were_sampled_does_not_matter() -> None:
    """Twice as many near ties as there are: their share counts no more, it is only known better."""
    few, many = (Strata(counted(500, 500), counted(8 * n, 10 * n), counted(95, 100)) for n in (2, 200))
    assert few.value == many.value
    assert few.lower < many.lower < many.value


def test_parts_add_up() -> None:
    one = Strata(counted(5, 5), counted(3, 4), counted(9, 10))
    assert one + one == Strata(counted(10, 10), counted(6, 8), counted(18, 20))


@pytest.mark.parametrize("near_kept", [0.6, 0.9, 1.0])
def test_its_lower_end_is_one(near_kept: float) -> None:
    """Of 95 % intervals at most one in forty begins above what is true."""
    rng = np.random.default_rng(0)
    weight, sure_kept, above, runs = 0.93, 0.995, 0, 400
    for _ in range(runs):
        found = Strata(
            counted(int(rng.binomial(400, sure_kept)), 400),
            counted(int(rng.binomial(150, near_kept)), 150),
            counted(int(rng.binomial(200, weight)), 200),
        )
        assert 0.0 <= found.lower <= found.value
        above += found.lower > weight * sure_kept + (1 - weight) * near_kept
    assert above <= 0.025 * runs + 3 * math.sqrt(0.025 * runs)
