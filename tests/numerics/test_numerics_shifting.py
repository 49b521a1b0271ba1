"""Arithmetic without arithmetic: other parameters for the same codes, against the numbers that the codes stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics import INT8, UINT8, PerAxis, moved, params, scaled, whole_steps

CODES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("count", [-300, -1, 0, 1, 7, 255])
@pytest.mark.parametrize("off", [0.0, 5e-4, -5e-4])
def test_whole_steps_are_counted_within_the_digits_of_float32(count: int, off: float) -> None:
    assert whole_steps((count + off) * 0.125, 0.125) == count


@pytest.mark.parametrize("count", [-3, 0, 12])
@pytest.mark.parametrize("off", [2e-3, -2e-3, 0.01, 0.1, -0.25, 0.4, 0.5])
def test_a_distance_between_two_steps_has_no_count(count: int, off: float) -> None:
    assert whole_steps((count + off) * 0.125, 0.125) is None


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0**-13, 10.0, width=32), st.integers(0, 255), st.integers(-300, 300), st.floats(-0.5, 0.5))
def test_moved_codes_stand_for_the_sum(scale: float, zero: int, steps: int, off: float) -> None:
    """Wherever there is an answer it is the sum, to a thousandth of a step; there is one for whole steps in reach."""
    before = params(UINT8, scale, zero)
    shift = (steps + off) * scale
    after = moved(before, shift)
    if after is None:
        assert abs(off) > 9e-4 or not 0 <= zero - steps <= 255
        return
    lost = after.dequantize(CODES).astype(np.float64) - (before.dequantize(CODES).astype(np.float64) + shift)
    assert np.abs(lost).max() <= 1.1e-3 * scale


def test_a_third_of_a_step_is_not_moved() -> None:
    before = params(INT8, 0.3, 0)
    assert moved(before, 0.1) is None
    after = moved(before, -0.6)
    assert after is not None
    assert int(after.zero_point) == 2


def test_a_zero_point_per_channel_is_not_moved() -> None:
    assert moved(params(INT8, np.full(3, 0.5, np.float32), granularity=PerAxis(0)), 0.5) is None


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_scaled_codes_stand_for_the_product(factor: float) -> None:
    before = params(UINT8, 0.5, 7)
    after = scaled(before, factor)
    assert after is not None
    np.testing.assert_allclose(after.dequantize(CODES), factor * before.dequantize(CODES), rtol=1e-6)


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e-38, float("inf")])
def test_what_no_scale_can_say_has_no_parameters(factor: float) -> None:
    assert scaled(params(UINT8, 0.5, 7), factor) is None
