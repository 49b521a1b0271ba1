"""Ranges for samples that are yet to come: the kernel estimate, and that it pays on samples never seen."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.calibrate.observers import merge, observe
from onnxq.numerics import UINT8, QType
from onnxq.ranges import METHODS, Histogram, activation_params
from onnxq.ranges.extrapolated import bandwidth, extrapolated_range
from onnxq.ranges.samples import of_histogram


def seen(arrays: list[np.ndarray]) -> Histogram:
    total = None
    for array in arrays:
        total = merge(total, observe(array.astype(np.float32), tensor="t"))
    assert total is not None
    return total


def loud(rng: np.random.Generator, count: int, spread: float) -> list[np.ndarray]:
    """Samples of Laplace numbers whose scale differs by a log-normal factor."""
    return [rng.laplace(size=2000) * np.exp(spread * rng.standard_normal()) for _ in range(count)]


def test_the_bandwidth_is_silvermans() -> None:
    ends = np.exp(np.asarray([0.1, 0.5, 0.2, 0.9, 0.4]))
    logs = np.log(ends)
    spread = min(np.std(logs, ddof=1), (np.quantile(logs, 0.75) - np.quantile(logs, 0.25)) / 1.34)
    assert bandwidth(ends) == pytest.approx(0.9 * spread * 5**-0.2)
    assert bandwidth(np.append(ends, [0.0, -3.0])) == pytest.approx(bandwidth(ends))
    assert bandwidth(1000 * ends) == pytest.approx(bandwidth(ends))


@pytest.mark.parametrize("ends", [[], [2.0], [3.0, 3.0, 3.0], [0.0, 0.0], [-1.0, -2.0]])
def test_ends_that_do_not_differ_tell_of_no_others(ends: list[float]) -> None:
    assert bandwidth(np.asarray(ends)) == 0.0


def test_one_wild_sample_does_not_set_the_bandwidth() -> None:
    ends = np.exp(0.05 * np.random.default_rng(0).standard_normal(50))
    wild = np.append(ends, 1e6)
    assert np.std(np.log(wild)) > 20 * np.std(np.log(ends))
    assert bandwidth(wild) < 1.2 * bandwidth(ends)


def test_samples_of_one_scale_are_taken_as_they_are() -> None:
    rng = np.random.default_rng(1)
    arrays = [np.append(rng.uniform(-1, 1, 500), [-1.0, 2.0]) for _ in range(20)]
    a, b = extrapolated_range(seen(arrays)), of_histogram(seen(arrays))
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.weights, b.weights)


def test_the_kernel_has_the_moments_of_a_gaussian_in_the_logarithm() -> None:
    histogram = seen([np.maximum(x, 0) for x in loud(np.random.default_rng(2), 30, 0.4)])
    h = bandwidth(histogram.ends[:, 1])
    blurred, plain = extrapolated_range(histogram), of_histogram(histogram)
    assert 0.05 < h < 0.4
    for power in (1, 2):
        expected = plain.mean(plain.values**power) * np.exp((power * h) ** 2 / 2)
        assert blurred.mean(blurred.values**power) == pytest.approx(expected, rel=1e-3)
    assert blurred.weights.sum() == pytest.approx(plain.weights.sum())
    assert (np.diff(blurred.values) >= 0).all()
    assert blurred.low[0] == 0.0
    assert blurred.high[0] > plain.high[0]


def test_either_side_has_a_bandwidth_of_its_own() -> None:
    rng = np.random.default_rng(3)
    arrays = [np.append(np.abs(x), -1.0) for x in loud(rng, 20, 0.5)]
    blurred = extrapolated_range(seen(arrays))
    assert blurred.low[0] == -1.0
    assert blurred.high[0] > max(x.max() for x in arrays)


@pytest.mark.parametrize("method", METHODS)
def test_only_methods_that_minimise_the_error_look_ahead(method: str) -> None:
    histogram = seen(loud(np.random.default_rng(4), 12, 0.5))
    plain, ahead = (activation_params(histogram, qtype=UINT8, method=method, extrapolated=u) for u in (False, True))
    assert (plain == ahead) == (method != "mse")


@pytest.mark.parametrize(
    ("bits", "rectified", "most"), [(8, False, 0.7), (8, True, 0.5), (6, True, 0.85), (4, True, 1.02)]
)
def test_it_makes_less_noise_on_samples_never_seen(bits: int, rectified: bool, most: float) -> None:
    """Few samples that differ in scale: on new ones, ranges that look ahead err less (at 4 bits: not more)."""
    errors = np.zeros(2)
    for trial in range(20):
        rng = np.random.default_rng(100 + trial)
        arrays, fresh = loud(rng, 12, 0.5), np.concatenate(loud(rng, 300, 0.5)).astype(np.float32)
        if rectified:
            arrays, fresh = [np.maximum(a, 0) for a in arrays], np.maximum(fresh, 0)
        histogram = seen(arrays)
        for ahead in (False, True):
            params = activation_params(histogram, qtype=QType(bits, signed=False), extrapolated=ahead)
            errors[int(ahead)] += np.square(params.fake_quantize(fresh) - fresh).mean()
    assert errors[1] < most * errors[0]
