"""The learned quantizers of the convergence study: gradients against their papers and against finite differences."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxq.numerics import PerAxis, QType, params
from onnxq.numerics.codebook import Companding

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from starts.learned import CompandedWeights, LsqActivations, LsqWeights

RNG = np.random.default_rng(3)
INT4, UINT4 = QType(4, signed=True), QType(4, signed=False)


def numeric(of, parameters: np.ndarray, upstream: np.ndarray, *, step: float = 1e-7) -> np.ndarray:
    """d(sum of upstream times of())/d(parameters) by central differences, in place."""
    result = np.zeros_like(parameters)
    for index in np.ndindex(parameters.shape):
        ends = []
        for sign in (1, -1):
            parameters[index] += sign * step
            ends.append(float((upstream * of()).sum()))
            parameters[index] -= sign * step
        result[index] = (ends[0] - ends[1]) / (2 * step)
    return result


def test_lsq_is_what_the_paper_says() -> None:
    """Equation 3: the slope is -v + round(v) inside, -Q_N or Q_P outside; the weight passes only inside."""
    s, w = np.asarray([[0.5]]), np.asarray([[0.6, -0.7, 9.0, -9.0, 3.74]])
    quantizer = LsqWeights(INT4, s)
    out, saved = quantizer.forward(w)
    np.testing.assert_allclose(out, [[0.5, -0.5, 3.5, -4.0, 3.5]])
    ones = [np.zeros_like(w) for _ in range(5)]
    for k, one in enumerate(ones):
        one[0, k] = 1
    slopes = [float(quantizer.backward(one, saved)[0][0, 0]) for one in ones]
    np.testing.assert_allclose(slopes, [1 - 1.2, -1 + 1.4, 7, -8, 7])
    np.testing.assert_array_equal(quantizer.backward(np.ones_like(w), saved)[1], [[1, 1, 0, 0, 0]])


def test_lsq_equals_the_librarys_own_quantizer() -> None:
    w = RNG.standard_normal((3, 50)).astype(np.float32)
    s = np.asarray([[0.1], [0.3], [0.05]], np.float32)
    ours = params(INT4, s[:, 0], granularity=PerAxis(0)).fake_quantize(w)
    np.testing.assert_allclose(LsqWeights(INT4, s.astype(np.float64)).forward(w)[0], ours, rtol=1e-6)


def test_outside_the_range_the_slopes_are_true_derivatives() -> None:
    """Clipped values do not round: there LSQ and LSQ+ have derivatives, and these are they."""
    w = RNG.choice([-1, 1], (2, 20)) * RNG.uniform(9, 20, (2, 20))
    weights = LsqWeights(INT4, np.asarray([[0.5], [0.9]]))
    upstream = RNG.standard_normal(w.shape)
    slope, through = weights.backward(upstream, weights.forward(w)[1])
    np.testing.assert_allclose(slope, numeric(lambda: weights.forward(w)[0], weights.parameters, upstream), rtol=1e-5)
    assert not through.any()
    activations = LsqActivations(UINT4, np.asarray([0.2, -1.0]), True)
    slope = activations.backward(upstream, activations.forward(w)[1])
    want = numeric(lambda: activations.forward(w)[0], activations.parameters, upstream)
    np.testing.assert_allclose(slope, want, rtol=1e-5)


def test_lsq_plus_inside_the_range() -> None:
    """Section 3.1: the offset has no slope inside, since rounding passes it through; LSQ never moves it."""
    x = RNG.uniform(-0.9, 1.9, 200)
    for learned in (True, False):
        quantizer = LsqActivations(UINT4, np.asarray([0.2, -1.0]), learned)
        out, saved = quantizer.forward(x)
        assert np.abs(out - x).max() <= 0.1 + 1e-12
        upstream = RNG.standard_normal(200)
        ds, db = quantizer.backward(upstream, saved)
        v = (x + 1.0) / 0.2
        np.testing.assert_allclose(ds, (upstream * (np.rint(v) - v)).sum())
        assert db == 0
    beyond = LsqActivations(UINT4, np.asarray([0.2, -1.0]), False)
    assert beyond.backward(np.ones(2), beyond.forward(np.asarray([-5.0, 50.0]))[1])[1] == 0


@pytest.mark.parametrize(("size", "segments"), [(4, 3), (16, 5), (16, 1)])
def test_companding_slopes_are_exact_in_the_knots(size, segments) -> None:
    """No rounding touches the knots: as long as no weight changes its level the derivative is the slope."""
    knots = np.sort(RNG.standard_normal((3, segments + 1)), axis=1) * 2
    quantizer = CompandedWeights(size, knots)
    w = RNG.standard_normal((3, 60))
    out, saved = quantizer.forward(w)
    for row in range(3):
        book = Companding(knots[row].astype(np.float32), size)
        np.testing.assert_allclose(out[row], book.fake_quantize(w[row]), atol=1e-5)
    upstream = RNG.standard_normal(w.shape)
    slope, through = quantizer.backward(upstream, saved)
    want = numeric(lambda: quantizer.forward(w)[0], quantizer.parameters, upstream)
    np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-6)
    outside = (w < knots[:, :1]) | (w > knots[:, -1:])
    np.testing.assert_array_equal(through, upstream * ~outside)
