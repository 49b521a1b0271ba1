"""Streaming statistics: however the data is cut, the histogram is the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.calibrate.observers import RESOLUTION_BITS, SAMPLE_LIMIT, merge, observe
from onnxq.errors import DataError
from onnxq.ranges.histogram import Histogram

# Ratios stay below 2**149: beyond, a negative value scaled to its bin underflows to -0 and counts as a positive one.
FLOATS = st.one_of(st.just(0.0), st.floats(1e-15, 1e20), st.floats(-1e20, -1e-15)).map(np.float32)
ARRAYS = hnp.arrays(np.float32, st.integers(0, 30), elements=FLOATS)


def seen(*arrays: np.ndarray) -> Histogram | None:
    total = None
    for array in arrays:
        total = merge(total, observe(array, tensor="t"))
    return total


def key(h: Histogram | None) -> object:
    """Everything in ``h``, with empty bins at either end taken away."""
    if h is None:
        return None
    used = np.flatnonzero(h.counts)
    counts = h.counts[used[0] : used[-1] + 1]
    return (tuple(counts.tolist()), h.first + int(used[0]), h.exponent, h.low, h.high)


def ends(h: Histogram | None) -> list[list[float]]:
    return [] if h is None else sorted(h.ends.tolist())


@settings(max_examples=200)
@given(ARRAYS, ARRAYS, ARRAYS)
def test_merging_is_a_commutative_monoid(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    x, y, z = (observe(v, tensor="t") for v in (a, b, c))
    assert key(merge(merge(x, y), z)) == key(merge(x, merge(y, z)))
    assert key(merge(x, y)) == key(merge(y, x))
    assert key(merge(x, None)) == key(merge(None, x)) == key(x)
    assert ends(merge(merge(x, y), z)) == ends(merge(z, merge(y, x)))


@settings(max_examples=200)
@given(hnp.arrays(np.float32, st.integers(2, 60), elements=FLOATS), st.data())
def test_any_cut_gives_the_same_histogram(data: np.ndarray, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, data.size), max_size=4)))
    assert key(seen(*np.split(data, cuts))) == key(seen(data))


def test_magnitudes_that_grow_give_the_same_histogram() -> None:
    """Each array widens the grid: bins are joined again and again."""
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal(500) * 10.0**e).astype(np.float32) for e in range(-6, 7)]
    assert key(seen(*parts)) == key(seen(*parts[::-1])) == key(seen(np.concatenate(parts)))


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS))
def test_ends_are_exact_and_all_elements_are_counted(data: np.ndarray) -> None:
    h = seen(data)
    assert h is not None
    assert (h.low, h.high) == (float(data.min()), float(data.max()))
    assert h.total == data.size


def test_the_ends_of_every_array_are_kept() -> None:
    h = seen(np.array([1.0, -2.0], np.float32), np.zeros(0, np.float32), np.array([3.0], np.float32))
    assert ends(h) == [[-2.0, 1.0], [3.0, 3.0]]


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS))
def test_every_element_lies_in_a_counted_bin(data: np.ndarray) -> None:
    h = seen(data)
    assert h is not None
    expected = np.bincount([math.floor(float(v) / h.width) - h.first for v in data], minlength=h.counts.size)
    np.testing.assert_array_equal(h.counts, expected)


@given(st.floats(1e-30, 1e30).map(np.float32))
def test_the_grid_resolves_the_largest_magnitude(top: np.float32) -> None:
    h = seen(np.array([0.0, top], np.float32))
    assert h is not None
    assert 2 ** (RESOLUTION_BITS - 1) <= float(top) / h.width <= 2**RESOLUTION_BITS


def test_zeros_alone_do_not_widen_later_grids() -> None:
    tiny = np.full(3, 1e-8, np.float32)
    h, alone = seen(np.zeros(5, np.float32), tiny), seen(tiny)
    assert h is not None
    assert alone is not None
    assert h.exponent == alone.exponent
    assert h.total == 8


def test_a_vast_difference_in_magnitude_keeps_the_signs() -> None:
    """What is 2**31 times smaller falls into the bins on either side of zero."""
    h = seen(np.array([-1e-20, 1e-20, 1e-20], np.float32), np.array([1e20], np.float32))
    assert h is not None
    assert h.counts[-1 - h.first] == 1
    assert h.counts[0 - h.first] == 2


def test_negative_zero_is_zero() -> None:
    assert key(seen(np.array([-0.0, 1.0], np.float32))) == key(seen(np.array([0.0, 1.0], np.float32)))


def test_empty_arrays_count_for_nothing() -> None:
    assert observe(np.zeros((0, 3), np.float32), tensor="t") is None
    assert merge(None, None) is None


@pytest.mark.parametrize(
    ("values", "kind"),
    [([np.inf, 1.0], "infinity"), ([-np.inf], "infinity"), ([np.nan, np.inf], "infinity")],
)
def test_infinity_is_an_error_that_names_the_tensor(values: list[float], kind: str) -> None:
    with pytest.raises(DataError, match=f"tensor 'conv3_out' holds {kind}"):
        observe(np.array(values, np.float32), tensor="conv3_out")


def test_nan_is_found_even_where_elements_are_sampled() -> None:
    data = np.zeros(5000, np.float32)
    for place in (0, 1, 2499, 4999):
        spoilt = data.copy()
        spoilt[place] = np.nan
        told: list[str] = []
        seen = observe(spoilt, tensor="t", limit=10, undefined=told.append)
        assert told == ["t"]
        assert seen is not None
        assert (seen.low, seen.high) == (0.0, 0.0)


def test_nan_counts_for_nothing() -> None:
    data = np.array([np.nan, 1.0, -2.0, np.nan, 0.5], np.float32)
    seen, plain = observe(data, tensor="t"), observe(data[[1, 2, 4]], tensor="t")
    assert seen is not None
    assert plain is not None
    assert (seen.low, seen.high, seen.total) == (-2.0, 1.0, 3)
    np.testing.assert_array_equal(seen.counts, plain.counts)
    assert observe(np.full(3, np.nan, np.float32), tensor="t") is None


@pytest.mark.parametrize("size", [SAMPLE_LIMIT, SAMPLE_LIMIT + 1, 3 * SAMPLE_LIMIT, 1_000_000])
def test_large_arrays_are_sampled_but_their_ends_are_exact(size: int) -> None:
    data = np.zeros(size, np.float32)
    data[size // 2 + 1], data[size // 3 + 1] = 7.0, -9.0
    h = observe(data, tensor="t")
    assert h is not None
    assert (h.low, h.high) == (-9.0, 7.0)
    assert SAMPLE_LIMIT // 4 < h.total <= SAMPLE_LIMIT


def test_sampling_looks_at_every_channel() -> None:
    """A stride that divides the row length would see some columns only."""
    data = np.broadcast_to(np.arange(64, dtype=np.float32), (4096, 64)).copy()
    h = observe(data, tensor="t", limit=1024)
    assert h is not None
    assert np.count_nonzero(h.counts) == 64
    assert h.counts[h.counts > 0].min() >= 10


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_counted_too(dtype: type) -> None:
    h = observe(np.array([-1.5, 0.25, 3.0], dtype), tensor="t")
    assert h is not None
    assert (h.low, h.high, h.total) == (-1.5, 3.0, 3)


def test_a_strided_view_is_counted_like_its_copy() -> None:
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    assert key(seen(data)) == key(seen(data.copy()))
