"""Rounding together, against brute force and against what it is defined to be."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onnxq.numerics import INT8_NARROW, QType
from onnxq.ranges import Moments
from onnxq.ranges.blocks import in_blocks
from onnxq.ranges.rounding import Grid, Metric, compensated, coupled
from onnxq.ranges.samples import F64
from onnxq.weights.blocks import block_grid
from onnxq.weights.codebook import codebook_grid
from onnxq.weights.uniform import uniform_grid

RNG = np.random.default_rng(11)
INT3 = QType(3, signed=True, narrow=True)
MANY = 10**9  # rows: next to no damping but the constant share


def correlated(groups: int, n: int, rng: np.random.Generator | None = None) -> F64:
    rng = rng or RNG
    x = rng.standard_normal((groups, 4 * n, n)) @ (rng.standard_normal((groups, n, n)) + 0.5)
    return np.matmul(x.transpose(0, 2, 1), x) / (4 * n)


def damped(h: F64) -> F64:
    """What the codes are judged by."""
    return h + 0.01 * np.trace(h, axis1=1, axis2=2)[:, None, None] / h.shape[1] * np.eye(h.shape[1])


def error(weight: F64, real: F64, h: F64) -> F64:
    return np.einsum("gcn,gnm,gcm->gc", weight - real, h, weight - real)


def real(grid: Grid, levels: F64) -> F64:
    return levels * grid.multiples(levels.shape[2]) * grid.scale[:, :, None]


def test_close_to_the_best_of_all_codes() -> None:
    """Over all 3^6 codes of every channel; nearest rounding misses the optimum by far."""
    grid = Grid(np.full((1, 40), 0.6), np.asarray([-1.0, 0.0, 1.0]))
    weight, h = RNG.normal(0, 0.5, (1, 40, 6)), correlated(1, 6)
    every = np.asarray(list(product(grid.levels, repeat=6))) * 0.6
    best = np.stack([error(np.broadcast_to(w, (1, 729, 6)), every[None], damped(h))[0].min() for w in weight[0]])
    found = error(weight, real(grid, compensated(weight, h, MANY, grid)), damped(h))[0]
    nearest = error(weight, real(grid, grid.nearest(weight)), damped(h))[0]
    assert (found >= best * (1 - 1e-9)).all()
    assert np.median(found / best) < 1.02
    assert found.sum() < 1.4 * best.sum()
    assert nearest.sum() > 2 * best.sum()


@pytest.mark.parametrize("shape", [(1, 5, 200), (3, 4, 70), (16, 1, 9)])
def test_no_channel_gets_worse_and_the_layer_much_better(shape: tuple[int, int, int]) -> None:
    weight, h = RNG.laplace(0, 1.0, shape), correlated(shape[0], shape[2])
    for grid in (
        uniform_grid(np.full(shape[:2], 0.8), INT3),
        block_grid(weight, None, qtype=INT3, computed=INT8_NARROW, size=16, method="mse"),
        codebook_grid(weight, None, bits=3, computed=INT8_NARROW),
    ):
        found = error(weight, real(grid, compensated(weight, h, MANY, grid)), damped(h))
        nearest = error(weight, real(grid, grid.nearest(weight)), damped(h))
        assert (found <= nearest * (1 + 1e-9)).all()
        assert found.sum() < 0.7 * nearest.sum()


def test_each_code_is_the_best_given_those_before_it_if_the_rest_could_still_be_real() -> None:
    """The definition (GPTQ's): decide a code, let the rest move by least squares, decide the next."""
    from onnxq.ranges.rounding import _successive

    n = 12
    h = damped(correlated(1, n))
    weight = RNG.normal(0, 1, (1, 6, n))
    grid = uniform_grid(np.full((1, 6), 0.7), INT3)
    flipped = np.linalg.cholesky(h[:, ::-1, ::-1])[:, ::-1, ::-1].transpose(0, 2, 1)
    ratios = flipped / np.diagonal(flipped, axis1=1, axis2=2)[:, :, None]
    across = weight.transpose(0, 2, 1)
    found = _successive(across, ratios, grid.part(slice(None), np.arange(n)[None]))[0].T
    for row, w in enumerate(weight[0]):
        left = w.copy()
        for i in range(n):
            code = float(np.clip(np.rint(left[i] / 0.7), -3, 3))
            assert code == found[row, i]
            # The weights behind i that make up best for what this code gets wrong.
            rest = slice(i + 1, n)
            left[rest] += np.linalg.solve(h[0][rest, rest], h[0][rest, i] * (left[i] - 0.7 * code)) if i + 1 < n else 0


def test_inputs_that_are_always_zero_and_few_rows_do_no_harm() -> None:
    h = correlated(1, 8)
    h[:, 3], h[:, :, 3] = 0.0, 0.0
    weight = RNG.standard_normal((1, 4, 8))
    grid = uniform_grid(np.full((1, 4), 0.5), INT3)
    found = compensated(weight, h, 1, grid)
    np.testing.assert_array_equal(found[:, :, 3], grid.nearest(weight)[:, :, 3])
    np.testing.assert_array_equal(compensated(weight, np.zeros_like(h), 5, grid), grid.nearest(weight))


def test_many_rows_at_once_are_rounded_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, h = RNG.standard_normal((2, 30, 20)), correlated(2, 20)
    grid = block_grid(weight, None, qtype=INT3, computed=INT8_NARROW, size=16, method="mse")
    whole = compensated(weight, h, MANY, grid)
    monkeypatch.setattr("onnxq.ranges.samples.PART", 100)
    np.testing.assert_array_equal(compensated(weight, h, MANY, grid), whole)


# -- MatMulNBits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("n", [32, 50, 7])
def test_codes_of_blocks(offset: bool, n: int) -> None:
    weight = (RNG.standard_normal((5, n)) + 0.3 * offset).astype(np.float32)
    found = in_blocks(weight, None, size=16, offset=offset, method="mse", rounding="nearest", centred=False)
    assert found.codes.min() >= 0
    assert found.codes.max() <= 15
    zero, scale = (np.repeat(x, 16, axis=1)[:, :n] for x in (found.zero.astype(np.float64), found.scale))
    lost = np.square((found.codes - zero) * scale - weight).sum() / np.square(weight).sum()
    assert lost < 0.012
    if not offset:
        assert (found.zero == 8).all()
        assert n < 16 or {float(np.sign(s)) for s in found.scale.ravel()} == {-1.0, 1.0}


def test_zero_points_pay_where_weights_are_not_centred() -> None:
    weight = RNG.uniform(-0.2, 1.0, (8, 64)).astype(np.float32)
    lost = []
    for offset in (False, True):
        found = in_blocks(weight, None, size=32, offset=offset, method="mse", rounding="nearest", centred=False)
        zero, scale = (np.repeat(x, 32, axis=1) for x in (found.zero.astype(np.float64), found.scale))
        lost.append(np.square((found.codes - zero) * scale - weight).sum())
    assert lost[1] < 0.6 * lost[0]


def test_a_block_with_zero_points_is_near_the_best_of_all() -> None:
    """Brute force over every zero point and a fine ladder of scales."""
    weight = RNG.standard_normal((20, 16)).astype(np.float32)
    found = in_blocks(weight, None, size=16, offset=True, method="mse", rounding="nearest", centred=False)
    real = (found.codes.astype(np.float64) - found.zero) * found.scale
    lost = np.square(real - weight).sum(axis=1)
    scales = np.linspace(0.05, 0.6, 1200)[:, None, None]
    zeros = np.arange(16.0)[None, :, None]
    ratios = []
    for row, mine in zip(weight.astype(np.float64), lost, strict=True):
        codes = np.clip(np.rint(row / scales) + zeros, 0, 15)
        best = np.square((codes - zeros) * scales - row).sum(axis=2).min()
        ratios.append(mine / best)
    assert np.mean(ratios) < 1.05
    assert max(ratios) < 1.6


@pytest.mark.parametrize("offset", [False, True])
def test_blocks_are_rounded_together(offset: bool) -> None:
    weight = RNG.standard_normal((12, 96)).astype(np.float32)
    h = correlated(1, 96)
    moments = Moments(MANY, np.zeros((1, 96)), h * MANY)
    lost = {}
    for rounding in ("nearest", "compensated"):
        found = in_blocks(weight, moments, size=32, offset=offset, method="mse", rounding=rounding, centred=False)
        zero, scale = (np.repeat(x, 32, axis=1) for x in (found.zero.astype(np.float64), found.scale))
        lost[rounding] = error(weight[None].astype(np.float64), ((found.codes - zero) * scale)[None], h).sum()
    assert lost["compensated"] < 0.6 * lost["nearest"]


def test_channels_make_up_for_each_other() -> None:
    """Against all 3^6 codes of two channels of three inputs, under a cost that couples them."""
    grid = Grid(np.full((1, 2), 0.6), np.asarray([-1.0, 0.0, 1.0]))
    every = np.asarray(list(product(grid.levels, repeat=6))).reshape(-1, 2, 3) * 0.6
    ratios, plain, rng = [], [], np.random.default_rng(8)
    for _ in range(400):  # of 60 the mean differs by 0.06 from seed to seed
        weight, h = rng.normal(0, 0.5, (1, 2, 3)), correlated(1, 3, rng)
        outputs = correlated(1, 2, rng)
        metric = Metric.of(h, MANY)
        back = np.argsort(metric.order[0])
        cost, judged = damped_outputs(outputs[0]), metric.h[0][np.ix_(back, back)]

        def lost(real: F64, weight: F64 = weight, cost: F64 = cost, judged: F64 = judged) -> F64:
            e = weight[0] - real
            return np.einsum("...cn,cd,...dm,nm->...", e, cost, e, judged)

        first = metric.rounded(weight, grid)
        found = coupled(weight, metric, grid, outputs, first)
        best = lost(every).min()
        ratios.append(lost(found[0] * 0.6) / best)
        plain.append(lost(first[0] * 0.6) / best)
        assert lost(found[0] * 0.6) <= lost(first[0] * 0.6) * (1 + 1e-9)
    assert min(ratios) > 1 - 1e-9
    assert np.mean(ratios) < 1.2
    assert np.mean(plain) > np.mean(ratios) + 0.1


def damped_outputs(outputs: F64) -> F64:
    mean = np.trace(outputs) / len(outputs)
    return 0.9 * outputs / mean + 0.1 * np.eye(len(outputs))


def test_one_channel_a_group_has_nobody_to_make_up_for_it() -> None:
    weight, h = RNG.standard_normal((8, 1, 9)), correlated(8, 9)
    metric, grid = Metric.of(h, MANY), uniform_grid(np.full((8, 1), 0.5), INT3)
    first = metric.rounded(weight, grid)
    assert coupled(weight, metric, grid, np.ones((8, 1, 1)), first) is first


@pytest.mark.parametrize("size", [1e-120, 1e-40, 1e-16, 1e16, 1e40, 1e120])
def test_inputs_of_any_size_are_rounded_for_as_those_near_one(size: float) -> None:
    """Second moments beyond float32, from deep networks whose values vanish or weights of 1e20; numpy must not warn."""
    weight, h = RNG.normal(0, 0.5, (2, 8, 20)), correlated(2, 20)
    grid = Grid(np.full((2, 8), 0.4), np.arange(-3.0, 4.0))
    power = 2.0 ** round(np.log2(size))
    assert np.array_equal(compensated(weight, h * power, MANY, grid), compensated(weight, h, MANY, grid))


def test_what_float64_has_lost_counts_as_no_inputs_at_all() -> None:
    weight, h = RNG.normal(0, 0.5, (1, 8, 20)), correlated(1, 20) * 1e-318
    grid = Grid(np.full((1, 8), 0.4), np.arange(-3.0, 4.0))
    assert np.array_equal(compensated(weight, h, MANY, grid), grid.nearest(weight))
