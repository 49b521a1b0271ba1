"""Moments of inputs, the step of least output error against brute force, and what is restored after rounding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from sums import moments_of

from onnxq.errors import ConfigError, NumericsError
from onnxq.numerics import INT4, INT8_NARROW, QType, round_half_even
from onnxq.ranges import Moments, layer_steps, mean_shift, optimum_output
from onnxq.ranges.layer import concrete, with_gain
from onnxq.ranges.moments import MomentSums
from onnxq.ranges.optimum_output import optimal_output_steps
from onnxq.ranges.rounding import Grid, compensated
from onnxq.ranges.samples import F64

RNG = np.random.default_rng(7)


def inputs(groups: int, rows: int, n: int) -> np.ndarray:
    """Correlated inputs with means that are not 0, as behind a ReLU."""
    x = RNG.standard_normal((groups, rows, n)) @ RNG.standard_normal((groups, n, n)) / np.sqrt(n)
    return np.maximum(x + 0.5, 0).astype(np.float32)


class Read(NamedTuple):
    step: F64
    scale: F64


def layer_scales(weight: F64, moments: Moments, *, restore: str, **how: Any) -> Read:
    """The step that rounds a weight to nearest, and the scale that its codes are read with."""
    step = layer_steps(weight, moments, restore=restore, **how)
    codes = codes_of(weight, step, how["qtype"])
    if "gain" not in restore:
        return Read(step, step)
    centred = "mean" in restore
    second = moments.matrix(centred=centred) if moments.full else moments.squares(centred=centred)
    return Read(step, with_gain(weight, codes, step, second.astype(np.float32)))


def codes_of(weight: F64, step: F64, qtype: QType) -> F64:
    return np.clip(round_half_even(weight / step[..., None]), qtype.qmin, qtype.qmax)


# -- moments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [True, False])
def test_moments_are_those_of_the_data_however_it_is_cut(full: bool) -> None:
    x = inputs(2, 300, 5)
    cuts = [0, 1, 50, 299, 300]
    parts = [moments_of(x[:, a:b], full=full) for a, b in pairwise(cuts)]
    found = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    other = parts[0] + (parts[1] + (parts[2] + parts[3]))
    assert found.count == other.count == 300
    np.testing.assert_allclose(found.second, other.second, rtol=1e-5)
    sums = MomentSums(full=full)
    for a, b in pairwise(cuts):
        sums.add(x[:, a:b])
    streamed = sums.moments()
    assert streamed.count == 300
    np.testing.assert_allclose(streamed.total, found.total, rtol=1e-12)
    np.testing.assert_allclose(streamed.second, found.second, rtol=1e-5)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.squares(centred=False), np.square(exact).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.squares(centred=True), exact.var(axis=1), rtol=1e-4)
    covariance = np.stack([np.cov(group.T, bias=True) for group in exact])
    if not full:
        covariance *= np.eye(5)
    np.testing.assert_allclose(found.matrix(centred=True), covariance, rtol=1e-4, atol=1e-6)


def test_means_far_larger_than_what_changes_cost_no_digits() -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((1, 600, 8)) @ rng.standard_normal((8, 8)) * 1e-3 - 3.0).astype(np.float32)
    sums = MomentSums(full=True)
    for a, b in pairwise([0, 100, 350, 600]):
        sums.add(x[:, a:b])
    found = sums.moments()
    assert sums.moments() is found
    with pytest.raises(NumericsError, match="take no more rows"):
        sums.add(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.total, exact.sum(axis=1), rtol=1e-12)
    covariance = np.cov(exact[0].T, bias=True)[None]
    np.testing.assert_allclose(found.matrix(centred=True), covariance, atol=1e-3 * covariance.max())
    assert np.linalg.eigvalsh(found.matrix(centred=True)).min() > 0
    np.testing.assert_allclose(found.matrix(centred=False)[0], exact[0].T @ exact[0] / 600, rtol=1e-9)


def test_inputs_that_never_change_leave_no_rounding_in_the_covariance() -> None:
    """What is left of c^2 - c^2 is as often negative as not, and where nothing else is there, all that there is."""
    x = np.broadcast_to(RNG.normal(1.5, 1.0, 24).astype(np.float32), (1, 7, 24)).copy()
    sums = MomentSums(full=True)
    for row in range(7):
        sums.add(x[:, row : row + 1])
    moments = sums.moments()
    assert not moments.matrix(centred=True).any()
    weight, grid = RNG.normal(0, 0.5, (1, 8, 24)), Grid(np.full((1, 8), 0.1), np.arange(-127.0, 128.0))
    assert np.array_equal(compensated(weight, moments.matrix(centred=True), moments.count, grid), grid.nearest(weight))


def test_moments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(NumericsError, match="at least one"):
        Moments(0, np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(NumericsError, match="at least one"):
        MomentSums(full=True).moments()
    with pytest.raises(NumericsError, match="do not fit"):
        Moments(1, np.zeros((1, 2)), np.zeros((1, 3)))
    with pytest.raises(NumericsError, match="do not add up"):
        _ = moments_of(inputs(1, 4, 2), full=True) + moments_of(inputs(1, 4, 2), full=False)


# -- the line search ------------------------------------------------------------------------------------------------


def gain(weight: F64, second: F64, codes: F64, scale: float) -> float:
    """E - f: how much less error than with no output at all."""
    return float(2 * scale * (codes @ second @ weight) - scale**2 * (codes @ second @ codes))


def best_of_cells(weight: F64, second: F64, qtype: QType, *, any_scale: bool) -> float:
    """The largest ``gain`` over all cells wide enough to be asked for in float32."""
    codes = np.arange(max(-qtype.qmin, qtype.qmax))
    borders = np.unique(np.abs(weight[weight != 0])[:, None] / (codes + 0.5))
    best = 0.0
    for low, high in zip([0.0, *borders], borders, strict=False):
        if high - low <= 4 * optimum_output.NARROWEST * high:
            continue
        q = np.clip(round_half_even(weight / ((low + high) / 2)), qtype.qmin, qtype.qmax)
        a, b = q @ second @ q, q @ second @ weight
        if a > 0 and b > 0:
            scale = b / a if any_scale else float(np.clip(b / a, low, high))
            best = max(best, gain(weight, second, q, scale))
    return best


@pytest.mark.parametrize("any_scale", [True, False])
@pytest.mark.parametrize("qtype", [QType(2, signed=True), QType(3, signed=True, narrow=True), INT4])
@pytest.mark.parametrize("shape", [(1, 3, 20), (6, 1, 9), (2, 2, 40)])
def test_every_cell_is_visited_up_to_4_bits(shape, qtype, any_scale) -> None:
    weight = RNG.standard_normal(shape)
    weight[0, 0, :4] = [0.5, -0.5, 0.0, 1.0]  # ties and zeros
    second = moments_of(inputs(shape[0], 60, shape[2]), full=True).matrix(centred=True)
    start = np.abs(weight).max(axis=2) / qtype.qmax
    steps = optimal_output_steps(weight, second, qmin=qtype.qmin, qmax=qtype.qmax, start=start, any_scale=any_scale)
    codes = codes_of(weight, steps, qtype)
    for g, c in np.ndindex(shape[:2]):
        w, h, q = weight[g, c], second[g], codes[g, c]
        scale = (q @ h @ w) / (q @ h @ q) if any_scale else steps[g, c]
        assert gain(w, h, q, scale) >= best_of_cells(w, h, qtype, any_scale=any_scale) * (1 - 1e-5)


def test_runs_and_parts_do_not_change_the_result(monkeypatch) -> None:
    weight = RNG.standard_normal((3, 5, 24))
    second = moments_of(inputs(3, 100, 24), full=True).matrix(centred=False)
    how = {"qmin": -7, "qmax": 7, "start": np.abs(weight).max(axis=2) / 7, "any_scale": True}
    expected = optimal_output_steps(weight, second, **how)
    monkeypatch.setattr(optimum_output, "LEAST_RUN", 1)
    for share, pairs in ((1 / 24, 1 << 20), (1.0, 1), (1 / 3, 200)):
        monkeypatch.setattr(optimum_output, "RUN_SHARE", share)
        monkeypatch.setattr(optimum_output, "PAIRS", pairs)
        np.testing.assert_allclose(optimal_output_steps(weight, second, **how), expected, rtol=1e-9)


def test_at_8_bits_more_cells_only_help(monkeypatch) -> None:
    """The bracket is no bound: it never loses to its start, nor wins against a wider one."""
    weight = RNG.laplace(size=(1, 12, 48))
    second = moments_of(inputs(1, 400, 48), full=True).matrix(centred=True)
    start = np.abs(weight).max(axis=2) / 127 * 0.95
    how = {"qmin": -127, "qmax": 127, "start": start, "any_scale": True}

    def errors(steps: F64) -> F64:
        q = codes_of(weight, steps, INT8_NARROW)
        qh = q @ second
        seen, own = (qh * weight).sum(axis=2), (qh * q).sum(axis=2)
        return ((weight @ second) * weight).sum(axis=2) - seen**2 / own

    swept = {}
    for swept_borders in (200, 1000, 48 * 127):
        monkeypatch.setattr(optimum_output, "SWEPT", swept_borders)
        swept[swept_borders] = errors(optimal_output_steps(weight, second, **how))
    narrow, wide, whole = swept.values()
    assert narrow.sum() < 0.9 * errors(start).sum()
    for fewer, more in ((errors(start), narrow), (narrow, wide), (wide, whole)):
        assert (more <= fewer * (1 + 1e-9)).all()


def test_channels_that_nothing_improves_keep_their_step() -> None:
    weight = RNG.standard_normal((1, 2, 6))
    weight[0, 1] = 0
    start = np.asarray([[0.1, 0.2]])
    how = {"qmin": -7, "qmax": 7, "start": start, "any_scale": True}
    assert np.array_equal(optimal_output_steps(weight, np.zeros((1, 6, 6)), **how), start)
    moved = optimal_output_steps(weight, np.eye(6)[None], **how)
    assert moved[0, 1] == 0.2


# -- scales of a layer ----------------------------------------------------------------------------------------------


def output_error(weight: F64, read: F64, x: np.ndarray, *, mean: bool) -> F64:
    """``[g, C]`` mean squared error of the outputs over ``x``, or their variance where the mean is put right."""
    error = np.matmul(x.astype(np.float64), (weight - read).transpose(0, 2, 1))
    return error.var(axis=1) if mean else np.square(error).mean(axis=1)


@pytest.mark.parametrize("restore", ["none", "mean", "gain", "mean+gain"])
@pytest.mark.parametrize("qtype", [QType(3, signed=True, narrow=True), INT4, INT8_NARROW])
def test_output_beats_tensor_on_what_it_minimises(qtype, restore) -> None:
    x = inputs(2, 2000, 30)
    weight = RNG.laplace(size=(2, 8, 30))
    moments = moments_of(x, full=True)
    errors = {}
    for objective in ("tensor", "output"):
        found = layer_scales(weight, moments, qtype=qtype, method="mse", objective=objective, restore=restore)
        read = codes_of(weight, found.step, qtype) * found.scale[..., None]
        errors[objective] = output_error(weight, read, x, mean="mean" in restore)
    assert errors["output"].sum() < errors["tensor"].sum()


def test_diagonal_is_exact_for_inputs_that_are_not_correlated() -> None:
    """With a diagonal matrix of moments both searches seek the same thing, and find it."""
    weight = RNG.standard_normal((1, 6, 25))
    squares = 10.0 ** RNG.uniform(-2, 2, (1, 25))
    diagonal = Moments(1, np.zeros((1, 25)), squares)
    full = Moments(1, np.zeros((1, 25)), squares[:, :, None] * np.eye(25))
    how = {"qtype": INT4, "method": "mse", "objective": "output", "restore": "none"}

    def errors(moments: Moments) -> F64:
        found = layer_scales(weight, moments, **how)
        difference = codes_of(weight, found.step, INT4) * found.scale[..., None] - weight
        return (squares * np.square(difference)).sum(axis=2)

    np.testing.assert_allclose(errors(diagonal), errors(full), rtol=1e-4)


@pytest.mark.parametrize("full", [True, False])
def test_the_gain_is_restored(full) -> None:
    """The regression of the quantized output on the float one has slope 1 on the data that the moments came from."""
    x = inputs(3, 500, 12)
    if not full:  # a diagonal knows the slope only of inputs that are not correlated
        x = RNG.standard_normal((3, 200_000, 12)).astype(np.float32)
    weight = RNG.laplace(size=(3, 4, 12))
    moments = moments_of(x, full=full)
    found = layer_scales(
        weight, moments, qtype=QType(3, signed=True), method="minmax", objective="tensor", restore="mean+gain"
    )
    codes = codes_of(weight, found.step, QType(3, signed=True))
    y = np.matmul(x.astype(np.float64), weight.transpose(0, 2, 1))
    y_q = np.matmul(x.astype(np.float64), (codes * found.scale[..., None]).transpose(0, 2, 1))
    y, y_q = y - y.mean(axis=1, keepdims=True), y_q - y_q.mean(axis=1, keepdims=True)
    slope = (y * y_q).sum(axis=1) / np.square(y).sum(axis=1)
    np.testing.assert_allclose(slope, 1.0, atol=1e-4 if full else 0.02)


def test_the_mean_is_restored() -> None:
    x = inputs(2, 300, 10)
    weight = RNG.standard_normal((2, 3, 10))
    read = round_half_even(weight)
    shift = mean_shift(weight, read, moments_of(x, full=False))
    before = np.matmul(x.astype(np.float64), weight.transpose(0, 2, 1)).mean(axis=1)
    after = np.matmul(x.astype(np.float64), read.transpose(0, 2, 1)).mean(axis=1)
    np.testing.assert_allclose(after.reshape(-1) + shift, before.reshape(-1), atol=1e-5)


def test_dead_channels_and_silent_inputs() -> None:
    weight = RNG.standard_normal((1, 3, 8))
    weight[0, 1] = 0
    silent = Moments(10, np.zeros((1, 8)), np.zeros((1, 8, 8)))
    for objective in ("tensor", "diagonal", "output", "auto"):
        found = layer_scales(weight, silent, qtype=INT4, method="mse", objective=objective, restore="mean+gain")
        assert np.isfinite(found.step).all()
        assert (found.step > 0).all()
        np.testing.assert_array_equal(found.scale, found.step)  # there is no gain to restore
        assert found.step[0, 1] == found.step.max()


def test_what_makes_no_sense_is_refused() -> None:
    moments = moments_of(inputs(1, 10, 4), full=True)
    how = {"qtype": INT4, "objective": "output", "restore": "none"}
    with pytest.raises(ConfigError, match="no range method"):
        layer_scales(np.ones((1, 2, 4)), moments, method="nosuch", **how)
    with pytest.raises(NumericsError, match="NaN or infinity"):
        layer_scales(np.full((1, 2, 4), np.nan), moments, method="mse", **how)


def test_what_auto_means() -> None:
    assert concrete("auto", 576, INT4) == "output"
    assert concrete("auto", 4608, INT4) == "diagonal"
    assert concrete("auto", 576, INT8_NARROW) == "tensor"
    assert concrete("auto", 9, INT8_NARROW) == "tensor"
    assert concrete("output", 576, INT8_NARROW) == "output"
    assert concrete("output", 4608, INT8_NARROW) == "diagonal"
    assert concrete("tensor", 9, INT4) == "tensor"
    assert concrete("diagonal", 9, INT4) == "diagonal"
