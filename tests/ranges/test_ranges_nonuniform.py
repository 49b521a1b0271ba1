"""Codebooks against every possible clustering, their grid and their compressors against what they promise."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import NumericsError
from onnxq.numerics import PerAxis, PerBlock, PerTensor, QType
from onnxq.ranges import (
    kmeans,
    optimal_codebook,
    optimal_companding,
    optimal_grid_codebook,
    weight_params,
)
from onnxq.ranges.kmeans import optimal_levels
from onnxq.ranges.samples import F64, of_rows
from onnxq.ranges.snapped import snapped

RNG = np.random.default_rng(11)
DATA = {
    "gauss": RNG.standard_normal((6, 200)),
    "laplace": RNG.laplace(size=(6, 200)),
    "heavy": RNG.standard_t(2, (6, 200)),
    "skewed": np.exp(RNG.standard_normal((6, 200))),
    "half of it zero": np.maximum(RNG.standard_normal((6, 200)), 0),
}

numbers = st.one_of(st.floats(-4, 4, width=32), st.integers(-3, 3).map(float), st.sampled_from([0.0, 1e-5, -2e4, 1e6]))


def error(x: F64, w: F64, levels: F64) -> float:
    return float((w * np.square(x[:, None] - levels).min(axis=1)).sum())


def best_clustering(x: F64, w: F64, k: int) -> float:
    """The least error over all ways to cut the sorted points into ``k`` runs."""
    x, w = x[np.argsort(x)], w[np.argsort(x)]

    def spread(a: int, b: int) -> float:
        mean = np.average(x[a:b], weights=w[a:b])
        return float((w[a:b] * np.square(x[a:b] - mean)).sum())

    cuts = combinations(range(1, x.size), k - 1)
    return min(sum(spread(a, b) for a, b in pairwise((0, *cut, x.size))) for cut in cuts)


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=10), st.integers(1, 5), st.integers(0, 2**31))
def test_levels_are_the_global_optimum(row, k, seed) -> None:
    x = np.asarray(row, np.float32)
    w = (10 ** np.random.default_rng(seed).uniform(-2, 2, x.size)).astype(np.float32)
    found = optimal_levels(of_rows(x[None], w[None]), levels=k)
    assert found.shape == (1, k)
    assert (np.diff(found) >= 0).all()
    x, w = x.astype(np.float64), w.astype(np.float64)
    least = best_clustering(x, w, k) if x.size >= k else 0.0
    assert error(x, w, found[0]) <= least * (1 + 1e-9) + 1e-12 * float((w * x * x).sum())


def test_rows_and_parts_do_not_disturb_each_other(monkeypatch) -> None:
    samples = of_rows(RNG.standard_normal((9, 60)).astype(np.float32), None)
    together = optimal_levels(samples, levels=8)
    alone = np.concatenate([optimal_levels(samples.row(r), levels=8) for r in range(9)])
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    monkeypatch.setattr(kmeans, "BATCH", 1)
    np.testing.assert_allclose(optimal_levels(samples, levels=8), together, rtol=1e-12)


@pytest.mark.parametrize("name", DATA)
def test_joining_many_points_loses_next_to_nothing(name, monkeypatch) -> None:
    data = np.concatenate([DATA[name].ravel(), DATA[name].ravel() * 1.3 + 0.1]).astype(np.float32)
    samples = of_rows(data[None], None)
    x, w = samples.values[0], samples.weights[0]
    exact = error(x, w, optimal_levels(samples, levels=8)[0])
    monkeypatch.setattr(kmeans, "POINTS", 512)
    assert error(x, w, optimal_levels(samples, levels=8)[0]) <= exact * (1 + 1e-4)


def test_joining_at_full_size_stays_within_a_millionth(monkeypatch) -> None:
    samples = of_rows(RNG.laplace(size=(1, 20_000)).astype(np.float32), None)
    joined = optimal_levels(samples, levels=16)[0]
    monkeypatch.setattr(kmeans, "POINTS", 20_000)
    exact = optimal_levels(samples, levels=16)[0]
    errors = [error(samples.values[0], samples.weights[0], levels) for levels in (joined, exact)]
    assert errors[0] <= errors[1] * (1 + 1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", DATA)
def test_the_order_of_errors(name, bits) -> None:
    """Codebook <= compressor <= uniform, and the grid costs next to nothing."""
    weight = DATA[name].astype(np.float32)
    how = {"bits": bits, "granularity": PerAxis(0)}

    def errors(quantizer) -> F64:
        return np.square(quantizer.fake_quantize(weight).astype(np.float64) - weight).sum(axis=1)

    free = errors(optimal_codebook(weight, **how))
    uniform = errors(weight_params(weight, qtype=QType(bits, signed=True), granularity=PerAxis(0)))
    slack = 1e-6 * np.square(weight.astype(np.float64)).sum(axis=1)
    for segments in (s for s in (1, 3, 5, 7, 15) if (2**bits - 1) % s == 0):
        bent = errors(optimal_companding(weight, segments=segments, **how))
        assert (free <= bent + slack).all()
        assert (bent <= uniform + slack).all()
        if segments == 2**bits - 1:
            np.testing.assert_allclose(bent, free, atol=slack.max())
    assert errors(optimal_grid_codebook(weight, **how).codebook()).sum() <= 1.1 * free.sum()


def test_the_best_choice_of_neighbours_on_the_grid_is_found(monkeypatch) -> None:
    """For one step, against all ways to round each level up or down."""
    from onnxq.ranges import snapped as module

    monkeypatch.setattr(module, "STEPS", np.asarray([1.0]))
    for _ in range(20):
        x = np.sort(RNG.standard_normal(50))
        levels = np.sort(RNG.standard_normal(6)) * 4  # coarse against a grid that ends at 4 levels
        limit = QType(int(RNG.integers(3, 6)), signed=True, narrow=True).qmax
        scale = np.abs(levels).max() / limit
        low = np.floor(levels / scale)
        every = np.stack(np.meshgrid(*[[v, v + 1] for v in low], indexing="ij"), axis=-1).reshape(-1, 6)
        every = np.clip(every, -limit, limit)
        every = every[(np.diff(every, axis=1) >= 0).all(axis=1)]
        least = min(error(x, np.ones(50), codes * scale) for codes in every)
        found = snapped(of_rows(x[None].astype(np.float32), None), levels[None], limit=limit)
        assert error(x, np.ones(50), found.codes[0] * found.scale[0]) <= least * (1 + 1e-5)


def test_importance_and_granularity() -> None:
    weight = RNG.standard_normal((4, 10)).astype(np.float32)
    importance = (10 ** RNG.uniform(-3, 3, weight.shape)).astype(np.float32)
    for make in (optimal_codebook, lambda *a, **k: optimal_grid_codebook(*a, **k).codebook()):
        plain, weighted = (make(weight, bits=2, granularity=PerTensor(), importance=i) for i in (None, importance))
        loss = [(importance * np.square(q.fake_quantize(weight) - weight)).sum() for q in (weighted, plain)]
        assert loss[0] < loss[1]
    blocks = optimal_codebook(weight, bits=2, granularity=PerBlock(1, 4))
    assert blocks.levels.shape == (4, 3, 4)
    np.testing.assert_allclose(
        blocks.levels[:, 2], optimal_codebook(weight[:, 8:], bits=2, granularity=PerAxis(0)).levels, rtol=1e-6
    )
    turned = optimal_codebook(weight.T, bits=2, granularity=PerBlock(0, 4))
    np.testing.assert_array_equal(turned.levels, blocks.levels.transpose(1, 0, 2))


def test_degenerate_weights() -> None:
    for weight in (np.zeros((2, 5), np.float32), np.full((2, 5), 0.3, np.float32), np.zeros((2, 0), np.float32)):
        book = optimal_codebook(weight, bits=3, granularity=PerAxis(0))
        assert book.levels.shape == (2, 8)
        np.testing.assert_allclose(book.fake_quantize(weight), weight)
        grid = optimal_grid_codebook(weight, bits=3, granularity=PerAxis(0))
        np.testing.assert_allclose(grid.codebook().fake_quantize(weight), weight, rtol=1e-6)
        bent = optimal_companding(weight, bits=3, segments=7, granularity=PerAxis(0))
        np.testing.assert_allclose(bent.fake_quantize(weight), weight, atol=1e-6)


def test_what_makes_no_sense_is_refused() -> None:
    weight = np.ones((2, 4), np.float32)
    with pytest.raises(NumericsError, match="1 to 8 bits, not 9"):
        optimal_codebook(weight, bits=9, granularity=PerTensor())
    with pytest.raises(NumericsError, match="2 segments do not divide the 15 steps"):
        optimal_companding(weight, bits=4, segments=2, granularity=PerTensor())
    with pytest.raises(NumericsError, match="NaN"):
        optimal_codebook(weight * np.nan, bits=4, granularity=PerTensor())
    with pytest.raises(NumericsError, match="importance has shape"):
        optimal_codebook(weight, bits=4, granularity=PerTensor(), importance=np.ones(3))
