"""Granularity, equivariance, degenerate data and errors of ``weight_params`` and ``activation_params``."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import NumericsError
from onnxq.numerics import INT4, INT8, INT8_NARROW, SMALLEST_SCALE, UINT8, PerAxis, PerBlock, PerTensor, QType, params
from onnxq.ranges import METHODS, Histogram, activation_params, samples, weight_params

RNG = np.random.default_rng(1)
WEIGHT = RNG.standard_normal((6, 10, 3)).astype(np.float32)


def one(x: np.ndarray, **options: object) -> np.float32:
    return weight_params(x.reshape(1, -1), granularity=PerTensor(), **options).scale[()]


@pytest.mark.parametrize("method", METHODS)
def test_granularity_is_row_by_row(method) -> None:
    options = {"qtype": INT4, "method": method}
    got = weight_params(WEIGHT, granularity=PerAxis(1), **options).scale
    assert got == pytest.approx([one(WEIGHT[:, c], **options) for c in range(10)], rel=1e-6)

    got = weight_params(WEIGHT, granularity=PerBlock(1, 4), **options).scale
    assert got.shape == (6, 3, 3)
    for i in range(6):
        for b, part in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
            for k in range(3):
                assert got[i, b, k] == pytest.approx(one(WEIGHT[i, part, k], **options), rel=1e-6)

    assert weight_params(WEIGHT, granularity=PerTensor(), **options).scale == pytest.approx(one(WEIGHT, **options))
    assert weight_params(WEIGHT, granularity=PerAxis(-1), **options).scale.shape == (3,)


def test_blocks_longer_than_the_axis() -> None:
    got = weight_params(WEIGHT, qtype=INT8, granularity=PerBlock(1, 64))
    assert got.scale.shape == (6, 1, 3)
    assert got.fake_quantize(WEIGHT) == pytest.approx(WEIGHT, abs=0.05)


def test_chunks_do_not_change_the_result(monkeypatch) -> None:
    expected = weight_params(WEIGHT, qtype=INT8, granularity=PerAxis(0)).scale
    monkeypatch.setattr(samples, "CHUNK", 1)
    assert weight_params(WEIGHT, qtype=INT8, granularity=PerAxis(0)).scale == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("qtype", [INT4, INT8_NARROW])
def test_equivariance(method, qtype) -> None:
    options = {"qtype": qtype, "granularity": PerAxis(0), "method": method}
    weight = WEIGHT.reshape(6, 30)
    scale = weight_params(weight, **options).scale
    assert np.array_equal(weight_params(weight * np.float32(2.0**-20), **options).scale, scale * np.float32(2.0**-20))
    assert np.array_equal(weight_params(weight[:, RNG.permutation(30)], **options).scale, scale)
    order = RNG.permutation(6)
    assert weight_params(weight[order], **options).scale == pytest.approx(scale[order], rel=1e-6)


def test_sign_matters_only_for_types_with_an_extra_code() -> None:
    assert one(-WEIGHT, qtype=INT8_NARROW) == one(WEIGHT, qtype=INT8_NARROW)
    # -8 exists and 8 does not: codes -8 .. 7 times 0.5 are exact, their negatives are not
    codes = np.arange(-8, 8, dtype=np.float32) * 0.5
    assert one(codes, qtype=INT4) == 0.5
    assert one(-codes, qtype=INT4) != 0.5


def test_importance_weighs_the_error() -> None:
    importance = np.abs(RNG.standard_normal(WEIGHT.shape)).astype(np.float32) ** 4
    options = {"qtype": INT4, "granularity": PerAxis(0)}
    plain = weight_params(WEIGHT, **options)
    weighted = weight_params(WEIGHT, importance=importance, **options)

    def loss(p) -> np.ndarray:
        return (importance * np.square(p.fake_quantize(WEIGHT) - WEIGHT)).sum(axis=(1, 2))

    assert (loss(weighted) <= loss(plain) * (1 + 1e-6)).all()
    assert loss(weighted).sum() < loss(plain).sum()
    # equal weights of any size say nothing; nor do weights that are all zero
    for w in (np.full_like(WEIGHT, 7e-20), np.zeros_like(WEIGHT)):
        assert weight_params(WEIGHT, importance=w, **options).scale == pytest.approx(plain.scale, rel=1e-6)
    with pytest.raises(NumericsError, match="shape"):
        weight_params(WEIGHT, importance=importance[0], **options)
    with pytest.raises(NumericsError, match="at least 0"):
        weight_params(WEIGHT, importance=-importance, **options)


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_rows(method) -> None:
    weight = np.zeros((4, 8), np.float32)
    options = {"qtype": INT8, "granularity": PerAxis(0), "method": method}
    assert weight_params(weight, **options).scale == pytest.approx(np.full(4, 1 / 127), rel=1e-6)
    weight[1] = RNG.standard_normal(8)
    weight[2] = 1e-42
    weight[3] = 3e38
    got = weight_params(weight, **options).scale
    assert got[0] == got.max()
    assert got[2] >= np.float32(SMALLEST_SCALE)
    assert np.isfinite(got).all()
    assert weight_params(np.zeros((0, 3), np.float32), **options).scale.shape == (0,)
    assert weight_params(np.zeros((3, 0), np.float32), **options).scale.shape == (3,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_weight_says_so(bad) -> None:
    weight = WEIGHT.copy()
    weight[2, 3, 1] = bad
    with pytest.raises(NumericsError, match="NaN or infinity"):
        weight_params(weight, qtype=INT8, granularity=PerTensor())
    with pytest.raises(NumericsError, match="no axis 3"):
        weight_params(WEIGHT, qtype=INT8, granularity=PerAxis(3))


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_histograms(method) -> None:
    empty = Histogram(np.zeros(0, np.int64), 0, 0, 0.0, 0.0)
    zeros = Histogram(np.asarray([5]), 0, -20, 0.0, 0.0)
    for hist in (empty, zeros):
        assert activation_params(hist, qtype=UINT8, method=method) == params(UINT8, 1.0, 0)
        assert activation_params(hist, qtype=INT8, method=method) == params(INT8, 1.0)
    never_seen = Histogram(np.zeros(0, np.int64), 0, 0, np.inf, -np.inf)
    assert activation_params(never_seen, qtype=UINT8, method=method).scale == 1
    constant = Histogram(np.asarray([5]), 3, -1, 1.7, 1.7)
    got = activation_params(constant, qtype=UINT8, method=method)
    assert got.zero_point == 0
    if method not in ("lsq",):  # LSQ's step knows the mean only
        assert got.fake_quantize(np.full(1, 1.7, np.float32))[0] == pytest.approx(1.7, rel=0.01)
    # what was counted is a sample; the ends are not
    sampled = Histogram(np.asarray([5]), 0, -30, -3.0, 4.0)
    assert activation_params(sampled, qtype=UINT8, method=method).scale > 0
    with pytest.raises(NumericsError, match="NaN or infinity"):
        activation_params(Histogram(np.asarray([5]), 0, 0, 0.0, np.inf), qtype=UINT8, method=method)


def test_exact_grid_is_found_exactly() -> None:
    codes = np.arange(-127, 128, dtype=np.float32)
    for scale in (0.25, 2.0**-13, 3.0):
        assert one(codes * np.float32(scale), qtype=INT8_NARROW) == np.float32(scale)
    codes = np.repeat(np.arange(0, 256), 20)
    hist = Histogram(np.bincount(codes * 8 + 4), 0, -3, 0.0, 255.5)
    got = activation_params(hist, qtype=QType(8, signed=False))
    assert float(got.scale) == pytest.approx(1.0, rel=5e-3)
