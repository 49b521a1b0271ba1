"""Every method gives valid parameters, none beats ``mse``, and each is what its paper says."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import ConfigError
from onnxq.numerics import INT4, INT8, INT8_NARROW, UINT8, PerAxis, PerTensor, QType, params, round_half_even
from onnxq.ranges import METHODS, aciq, activation_params, entropy, find_method, percentile, sawb, weight_params
from onnxq.ranges.error import tensor_error
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.samples import of_histogram, of_rows

RNG = np.random.default_rng(0)
DATA = {
    "gauss": RNG.standard_normal(4000),
    "laplace": RNG.laplace(size=4000) * 1e-3,
    "relu": np.maximum(RNG.standard_normal(4000), 0),
    "negative": -np.abs(RNG.standard_normal(4000)),
    "silu": (lambda x: x / (1 + np.exp(-x)))(RNG.standard_normal(4000) * 2),
    "heavy": RNG.standard_t(2, 4000) * 50,
    "uniform": RNG.uniform(-1, 3, 4000),
    "constant": np.full(100, 0.3),
    "two values": RNG.choice([-1.0, 2.0], 500),
    "mostly zero": np.where(RNG.random(4000) < 0.001, RNG.standard_normal(4000), 0),
}
NAMES = [*METHODS, "percentile:99"]


def histogram(data: np.ndarray, bins: int = 2048) -> Histogram:
    low, high = float(data.min()), float(data.max())
    span = max(high - low, abs(high), 1e-3)
    exponent = int(np.ceil(np.log2(span / bins)))
    index = np.floor(data / 2.0**exponent).astype(np.int64)
    return Histogram(np.bincount(index - index.min()), int(index.min()), exponent, low, high)


HISTOGRAMS = {name: histogram(data) for name, data in DATA.items()}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", DATA)
def test_weights_valid_and_mse_is_best(name, bits) -> None:
    weight = DATA[name][: len(DATA[name]) // 4 * 4].reshape(4, -1)[:, :500].astype(np.float32)
    for qtype in (QType(bits, signed=True), QType(bits, signed=True, narrow=True)):
        errors = {}
        for method in NAMES:
            chosen = weight_params(weight, qtype=qtype, granularity=PerAxis(0), method=method)
            assert chosen.scale.shape == (4,)
            assert chosen.symmetric
            difference = chosen.fake_quantize(weight).astype(np.float64) - weight
            errors[method] = np.square(difference).sum(axis=1)
        energy = np.square(weight.astype(np.float64)).sum(axis=1)
        for method, other in errors.items():
            # float32 codes and products: 1e-14 of the energy
            assert (errors["mse"] <= other * (1 + 1e-6) + 1e-14 * energy).all(), method


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", DATA)
def test_activations_valid_and_mse_is_best(name, bits) -> None:
    data, hist = DATA[name], HISTOGRAMS[name]
    samples = of_histogram(hist)
    energy = float((samples.weights * np.square(samples.values)).sum())
    for qtype in (QType(bits, signed=False), QType(bits, signed=True)):
        errors = {}
        for method in NAMES:
            chosen = activation_params(hist, qtype=qtype, method=method)
            errors[method] = tensor_error(samples, chosen)
            if qtype.signed:
                assert chosen.symmetric
            elif data.min() >= 0:
                assert chosen.zero_point == qtype.qmin
            elif data.max() <= 0:
                assert chosen.zero_point == qtype.qmax
            assert chosen.fake_quantize(np.zeros(1, np.float32))[0] == 0
        for method, other in errors.items():
            assert errors["mse"] <= other * (1 + 2e-5) + 1e-12 * energy, method


@pytest.mark.parametrize("qtype", [UINT8, INT8, QType(4, signed=False)])
@pytest.mark.parametrize("name", ["gauss", "relu", "negative", "silu", "heavy", "uniform"])
def test_histogram_is_nearly_as_good_as_the_data(name, qtype) -> None:
    data = DATA[name].astype(np.float32)
    exact = find_method("mse").activations(of_rows(data[None], None), qtype)
    binned = activation_params(HISTOGRAMS[name], qtype=qtype)
    error = [np.square(p.fake_quantize(data).astype(np.float64) - data).sum() for p in (exact, binned)]
    # 4,000 elements: their exact optimum also fits their noise, which bins smooth away.
    assert error[1] <= error[0] * 1.05


def test_unknown_method_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"no range method 'mes'; choose one of mse, minmax.*grid.*percentile:P"):
        weight_params(np.ones((2, 2), np.float32), qtype=INT8, granularity=PerTensor(), method="mes")
    for text in ("percentile:", "percentile:x", "percentile:0", "percentile:101", "percentile:nan", "mse:3"):
        with pytest.raises(ConfigError):
            find_method(text)


def test_percentile() -> None:
    data = np.arange(-1000, 1001, dtype=np.float32)
    samples = of_rows(data[None], None)
    assert find_method("percentile:90").weights(samples, INT8)[0] * 127 == pytest.approx(900, abs=1)
    assert find_method("percentile:100").weights(samples, INT8)[0] * 127 == pytest.approx(1000)
    low, high = percentile.method(90).activations(samples, UINT8).bounds()
    assert (float(low), float(high)) == pytest.approx((-900, 900), abs=8)
    assert find_method("percentile:99.9").name == "percentile:99.9"


def test_lsq_formulas() -> None:
    x = np.asarray([[1.0, -2.0, 3.0, -6.0]], np.float32)
    samples = of_rows(x, None)
    assert METHODS["lsq"].weights(samples, INT8)[0] == pytest.approx(2 * 3 / np.sqrt(127))
    assert METHODS["lsq+"].weights(samples, INT4)[0] == pytest.approx((1 + 3 * np.std(x)) / 8)
    minmax = METHODS["minmax"].activations(samples, UINT8)
    assert METHODS["lsq+"].activations(samples, UINT8) == minmax
    assert minmax == params(UINT8, 9 / 255, 170)


def test_aciq_solves_the_published_constants() -> None:
    laplace = [2.83068299, 3.89722946, 5.02864014, 6.20476633, 7.41312622, 8.64561995, 9.89675982]
    gauss = [1.71063519, 2.15159277, 2.55913646, 2.93620062, 3.28691474, 3.6151146, 3.92403714]
    assert [aciq.best_laplace(b) for b in range(2, 9)] == pytest.approx(laplace, rel=1e-4)
    assert [aciq.best_gauss(b) for b in range(2, 9)] == pytest.approx(gauss, rel=1e-4)
    for bits, (a, b) in enumerate(zip(laplace, gauss, strict=True), start=2):
        assert aciq.laplace_error(a, bits) <= min(aciq.laplace_error(a * f, bits) for f in (0.97, 1.03))
        assert aciq.gauss_error(b, bits) <= min(aciq.gauss_error(b * f, bits) for f in (0.97, 1.03))


def test_sawb_coefficients_are_near_the_optimum_of_a_gauss() -> None:
    samples = of_rows(RNG.standard_normal((1, 20000)).astype(np.float32), None)
    for bits in (2, 3, 4, 5, 8):
        alpha = sawb.clipping(samples, bits)[0]
        best = float(METHODS["mse"].weights(samples, QType(bits, signed=True, narrow=True))[0])
        assert alpha == pytest.approx(best * (2 ** (bits - 1) - 1), rel=0.25)


def test_entropy_matches_the_definition() -> None:
    counts = RNG.integers(0, 20, 64).astype(np.float64)
    levels = 16
    found = entropy.divergences(counts, levels)
    for kept in range(levels, 65):
        p = counts[:kept].copy()
        p[-1] += counts[kept:].sum()
        q = np.zeros(kept)
        for g in range(levels):
            part = slice(g * kept // levels, (g + 1) * kept // levels)
            filled = counts[part] > 0
            q[part] = filled * counts[part].sum() / max(1, filled.sum())
        p, q = p / p.sum(), q / q.sum()
        with np.errstate(divide="ignore"):
            expected = np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))
        assert found[kept - levels] == pytest.approx(expected, abs=1e-9)


def test_grid_is_within_a_percent_of_its_steps() -> None:
    weight = DATA["gauss"].astype(np.float32).reshape(4, -1)
    chosen = weight_params(weight, qtype=INT8_NARROW, granularity=PerAxis(0), method="grid")
    fraction = chosen.scale / (np.abs(weight).max(axis=1) / 127) * 100
    assert fraction == pytest.approx(round_half_even(fraction), abs=1e-3)
