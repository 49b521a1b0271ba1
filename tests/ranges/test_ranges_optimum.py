"""The exact searches against brute force over every cell, on small and nasty data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnxq.numerics import INT4, INT8, INT8_NARROW, QType, round_half_even
from onnxq.ranges import folded
from onnxq.ranges.optimum import _Best, _Search, lower_bound, optimal_scales
from onnxq.ranges.optimum_asymmetric import optimal_pair
from onnxq.ranges.places import MOST_IN_A_CELL, Places
from onnxq.ranges.samples import F64, Samples, of_rows

# What the search promises (2.5e-7 of the error, 1e-13 of the energy), with room for the sums of the reference itself.
RELATIVE, ENERGY = 5e-7, 1e-12

TYPES = [QType(2, signed=True), QType(2, signed=True, narrow=True), QType(3, signed=True), QType(3, signed=False), INT4]


def cells(x: F64, codes: int) -> F64:
    """One scale in every cell: between all neighbouring borders ``|x| / (k + 1/2)``, below the first, above none."""
    magnitudes = np.abs(x[x != 0])
    borders = np.unique(magnitudes[:, None] / (np.arange(codes) + 0.5))
    return np.concatenate([[borders[0] / 2], (borders[1:] + borders[:-1]) / 2])


def best_of_cells(x: F64, w: F64, lowest: int, highest: int) -> float:
    """The least error over all cells, each with its own best scale."""
    if not x.any():
        return 0.0
    q = np.clip(round_half_even(x / cells(x, max(-lowest, highest))[:, None]), lowest, highest)
    a, b = (w * q * q).sum(axis=1), (w * q * x).sum(axis=1)
    q, s = q[a > 0], (b[a > 0] / a[a > 0])[:, None]
    return float(min((w * np.square(x - s * q)).sum(axis=1), default=(w * x * x).sum()))


def error(x: F64, w: F64, s: float, lowest: int, highest: int) -> float:
    if s <= 0:
        return float((w * x * x).sum())
    return float((w * np.square(x - s * np.clip(round_half_even(x / s), lowest, highest))).sum())


# Plain numbers, ties, duplicates, zeros, values on a grid, and magnitudes far apart.
numbers = st.one_of(
    st.floats(-4, 4, width=32),
    st.integers(-9, 9).map(lambda i: i * 0.25),
    st.sampled_from([0.0, 1.0, -1.0, 0.1, 3e-5, -2e4, 1e6]),
)
rows_of_numbers = st.lists(numbers, min_size=1, max_size=24).map(lambda v: np.asarray(v, np.float32))
weights = st.one_of(st.just(None), st.integers(0, 2**32 - 1))


def weights_for(x: F64, seed: int | None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.ones(x.shape, np.float32) if seed is None else (10 ** rng.uniform(-3, 3, x.shape)).astype(np.float32)


@settings(max_examples=250, deadline=None)
@given(rows_of_numbers, weights, st.sampled_from(TYPES), st.sampled_from([0, 10**6]))
@example(np.asarray([1, 1.25, 1.25, 1.25], np.float32), None, QType(3, signed=False), 0)  # equals at the upper end
def test_scale_is_the_global_optimum(row, seed, qtype, by_point_per_code) -> None:
    w = weights_for(row, seed)
    samples = of_rows(row[None], w[None])
    with pytest.MonkeyPatch.context() as patch:  # both ways to find codes, whatever the size
        patch.setattr(folded, "BY_POINT_PER_CODE", by_point_per_code)
        scale = float(optimal_scales(samples, qmin=qtype.qmin, qmax=qtype.qmax)[0])
    x, w = row.astype(np.float64), w.astype(np.float64)
    least = best_of_cells(x, w, qtype.qmin, qtype.qmax)
    found = error(x, w, scale, qtype.qmin, qtype.qmax)
    assert found <= least * (1 + RELATIVE) + ENERGY * float((w * x * x).sum())


@pytest.mark.parametrize("by_point_per_code", [0, 10**6])
@pytest.mark.parametrize("qtype", [INT8, INT8_NARROW, QType(6, signed=True), QType(7, signed=False)])
def test_many_rows_and_codes_at_once(qtype, by_point_per_code, monkeypatch) -> None:
    monkeypatch.setattr(folded, "BY_POINT_PER_CODE", by_point_per_code)
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((12, 30)) * rng.choice([1, 1, 1, 30], (12, 30)) * 10.0 ** rng.integers(-4, 4, (12, 1))
    rows = rows.astype(np.float32)
    rows[3] = 0
    rows[5] = 0.7
    rows[7] = np.arange(30) * 0.125
    scales = optimal_scales(of_rows(rows, None), qmin=qtype.qmin, qmax=qtype.qmax)
    assert scales[3] == 0
    for row, scale in zip(rows.astype(np.float64), scales, strict=True):
        w = np.ones(row.size)
        least = best_of_cells(row, w, qtype.qmin, qtype.qmax)
        assert error(row, w, scale, qtype.qmin, qtype.qmax) <= least * (1 + RELATIVE) + ENERGY * float(row @ row)


def test_rows_that_share_a_batch_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(4)
    rows = (rng.standard_normal((40, 2100)) * 10.0 ** rng.uniform(-20, 15, (40, 1))).astype(np.float32)
    together = optimal_scales(of_rows(rows, None), qmin=-127, qmax=127)
    for row, scale in zip(rows[:5], together, strict=False):
        alone = optimal_scales(of_rows(row[None], None), qmin=-127, qmax=127)[0]
        x, w = row.astype(np.float64), np.ones(row.size)
        assert error(x, w, scale, -127, 127) == pytest.approx(error(x, w, alone, -127, 127), rel=RELATIVE)


@settings(max_examples=150, deadline=None)
@given(rows_of_numbers, st.just(0.0) | st.floats(1e-6, 3), st.floats(1e-3, 3), st.sampled_from(TYPES))
def test_lower_bound_holds_on_the_whole_interval(row, low, width, qtype) -> None:
    data = folded.fold(of_rows(row[None], None), qmin=qtype.qmin, qmax=qtype.qmax)
    search = _Search(data, _Best(1), batch=1 << 16)
    s = np.linspace(low, low + width, 201)
    f, a, _ = search.evaluate(np.zeros(s.size, np.intp), s)
    bound = lower_bound(np.asarray([width]), f[:1], f[-1:], a[:1])[0]
    assert bound <= f.min() + 1e-12 * data.energy[0]


@settings(max_examples=60, deadline=None)
@given(rows_of_numbers, weights, st.sampled_from([3, 7, 15]))
def test_pair_is_the_global_optimum(row, seed, steps) -> None:
    w = weights_for(row, seed)
    pair = optimal_pair(of_rows(row[None], w[None]), steps=steps)
    x, w = row.astype(np.float64), w.astype(np.float64)
    least = min(best_of_cells(x, w, -j, steps - j) for j in range(steps + 1))
    found = error(x, w, pair.scale, -pair.negative, steps - pair.negative)
    # PAIR_TOLERANCE with room for rounding
    assert found <= least * (1 + 1.1e-5) + ENERGY * float((w * x * x).sum())


def test_pair_at_eight_bits() -> None:
    rng = np.random.default_rng(5)
    for _ in range(3):
        row = (rng.standard_normal(9) + rng.normal()).astype(np.float32)
        pair = optimal_pair(of_rows(row[None], None), steps=255)
        x, w = row.astype(np.float64), np.ones(9)
        least = min(best_of_cells(x, w, -j, 255 - j) for j in range(256))
        assert error(x, w, pair.scale, -pair.negative, 255 - pair.negative) <= least * (1 + 1.1e-5) + ENERGY * float(
            x @ x
        )


@pytest.mark.parametrize("kind", ["even", "few", "duplicates", "crowded", "same", "many the same"])
def test_points_are_found_where_the_search_finds_them(kind) -> None:
    rng = np.random.default_rng(6)
    x = {
        "even": np.sort((rng.choice(3000, 2500, replace=False)[:, None] + [0.25, 0.75]).ravel() / 3000 - 0.4),
        "few": np.sort(rng.standard_normal(12)),
        "duplicates": np.repeat(np.sort(rng.standard_normal(40)), 2),
        "crowded": np.sort(np.concatenate([rng.standard_normal(50), rng.standard_normal(5000) * 1e-6])),
        "same": np.full(2, 0.7),
        "many the same": np.full(9, 0.7),
    }[kind]
    places = Places(x)
    assert (places.most > MOST_IN_A_CELL) == (kind in ("crowded", "many the same"))
    asked = np.concatenate([rng.uniform(-5, 5, 2000), x, np.nextafter(x, 9), np.nextafter(x, -9), [-1e6, 1e6]])
    np.testing.assert_array_equal(places(asked), x.searchsorted(asked))
    square = asked[:100].reshape(4, 25)
    np.testing.assert_array_equal(places(square), x.searchsorted(square))


def test_a_pair_for_a_single_point_between_wider_ends() -> None:
    """The ends may know of elements on both sides of 0 that no point stands for."""
    one = Samples(np.full((1, 1), 0.5), np.ones((1, 1)), np.asarray([-3.0]), np.asarray([4.0]))
    pair = optimal_pair(one, steps=15)
    assert error(np.full(1, 0.5), np.ones(1), pair.scale, -pair.negative, 15 - pair.negative) < 1e-12
