"""Histograms as points: spread evenly over their bins, of the weight and the moments that uniform data has."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics import UINT8
from onnxq.ranges import Histogram, activation_params
from onnxq.ranges.samples import POINTS, of_histogram


def test_each_bin_becomes_points_at_equal_distances() -> None:
    """Bins 3, 4 and 6 of width 1/2: quarters of each are 1/8 apart, the first 1/16 behind the bin's begin."""
    found = of_histogram(Histogram(np.asarray([8, 4, 0, 2]), 3, -1, 1.5, 3.5), points=12)
    starts = np.asarray([1.5, 2.0, 3.0])
    expected = starts[:, None] + (np.arange(4) + 0.5) / 8
    np.testing.assert_allclose(found.values[0], expected.ravel(), rtol=1e-12)
    np.testing.assert_allclose(found.weights[0], np.repeat([2.0, 1.0, 0.5], 4), rtol=1e-12)
    assert (found.low[0], found.high[0]) == (1.5, 3.5)


def test_points_keep_within_the_exact_ends() -> None:
    found = of_histogram(Histogram(np.asarray([8, 4]), 0, 0, 0.4, 1.7), points=20)
    assert (found.values.min(), found.values.max()) == (0.4, 1.7)
    assert found.weights.sum() == pytest.approx(12.0)


@pytest.mark.parametrize("bins", [1, 2, 7, 100, 5000])
def test_the_moments_are_those_of_uniform_data_in_every_bin(bins: int) -> None:
    rng = np.random.default_rng(bins)
    counts = rng.integers(1, 50, bins)
    found = of_histogram(Histogram(counts, -2, 0, -2.0, bins - 2.0))
    middle, share = np.arange(bins) - 1.5, counts / counts.sum()
    mean = share @ middle
    variance = share @ np.square(middle - mean) + 1 / 12
    assert found.weights.sum() == pytest.approx(counts.sum())
    assert found.mean(found.values)[0] == pytest.approx(mean, rel=1e-9)
    parts = found.values.size / bins
    assert parts >= 0.8 * POINTS / bins
    assert found.mean(np.square(found.values - mean))[0] == pytest.approx(variance - 1 / 12 / parts**2, rel=1e-6)


def test_few_wide_bins_do_not_pass_for_few_values() -> None:
    """Uniform data in three bins is rounded best over its whole range; three values would be met exactly."""
    hist = Histogram(np.asarray([100, 100, 100]), 0, 0, 0.0, 3.0)
    step = float(activation_params(hist, qtype=UINT8).scale)
    assert step == pytest.approx(3 / 255, rel=0.01)
