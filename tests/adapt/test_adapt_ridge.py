"""Ridge regression against numpy on the rows themselves: all of them, with a ridge by the mean energy of an input."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.adapt.closed_form import RIDGES, pairs, refitted
from onnxq.ranges.samples import F64

GROUPS, CHANNELS, INPUTS = 2, 3, 8


def data(count: int) -> tuple[F64, F64, F64]:
    """A weight, noisy inputs of very different energy, and what the weight makes of the inputs without noise."""
    rng = np.random.default_rng(51)
    size = np.geomspace(0.2, 4.0, INPUTS)
    weight = rng.standard_normal((GROUPS, CHANNELS, INPUTS))
    x = (rng.standard_normal((GROUPS, count, INPUTS)) + 0.5) * size
    noisy = x + 0.6 * size * rng.standard_normal(x.shape)
    return weight, noisy.astype(np.float32), (np.matmul(x, weight.transpose(0, 2, 1)) + 1.0).astype(np.float32)


def regression(weight: F64, x: F64, t: F64, ridge: float, *, centred: bool) -> F64:
    """The minimum of ``E|x w - t|^2 + ridge energy |w - weight|^2``, as least squares with rows added for the ridge."""
    found = []
    for w, a, b in zip(weight, x.astype(np.float64), t.astype(np.float64), strict=True):
        if centred:
            a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        energy = np.square(a).mean()  # over rows and inputs
        extra = np.sqrt(ridge * energy * len(a)) * np.eye(INPUTS)
        found.append(np.linalg.lstsq(np.vstack([a, extra]), np.vstack([b, extra @ w.T]), rcond=None)[0].T)
    return np.stack(found)


@pytest.mark.parametrize("centred", [False, True])
def test_what_is_refitted_is_the_ridge_regression_on_all_rows(centred: bool) -> None:
    """Those kept aside too, once they have chosen the ridge; few rows, so that leaving some out would show."""
    weight, x, t = data(160)
    part, rest = slice(0, 100), slice(100, 160)
    found, ridge, _ = refitted(weight, pairs(x[:, part], t[:, part]), pairs(x[:, rest], t[:, rest]), centred=centred)
    assert ridge in RIDGES
    np.testing.assert_allclose(found, regression(weight, x, t, ridge, centred=centred), atol=2e-4)
    without = regression(weight, x[:, part], t[:, part], ridge, centred=centred)
    assert np.abs(found - without).max() > 0.02


@pytest.mark.parametrize("centred", [False, True])
def test_the_ridge_is_the_one_that_does_best_on_the_rows_kept_aside(centred: bool) -> None:
    weight, x, t = data(60)
    part, rest = slice(0, 15), slice(15, 60)

    def lost(ridge: float) -> float:
        w = regression(weight, x[:, part], t[:, part], ridge, centred=centred)
        off = t[:, rest] - np.matmul(x[:, rest], w.transpose(0, 2, 1))
        return float((off.var(axis=1) if centred else np.square(off).mean(axis=1)).sum())

    _, ridge, _ = refitted(weight, pairs(x[:, part], t[:, part]), pairs(x[:, rest], t[:, rest]), centred=centred)
    assert ridge == min(RIDGES, key=lost)
