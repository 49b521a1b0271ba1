"""Grids of the weight formats, and weights fitted to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sums import moments_of

from onnxq.numerics import INT8_NARROW, QType
from onnxq.ranges import Fit, Moments, fitted
from onnxq.ranges.fit import Fitted
from onnxq.ranges.rounding import Floats, Grid
from onnxq.ranges.samples import F64
from onnxq.weights import GridFormat, weight_format
from onnxq.weights.blocks import block_grid

INT3 = QType(3, signed=True, narrow=True)
NEAREST = Fit(method="mse", objective="auto", restore="none", rounding="nearest")


def fit(weight: Floats, moments: Moments | None, text: str, how: Fit = NEAREST, *, least: F64 | None = None) -> Fitted:
    stored = weight_format(text)
    assert isinstance(stored, GridFormat)
    none = np.zeros(())
    return fitted(weight, moments, stored, qtype=INT8_NARROW, how=how, least=none if least is None else least)


def error(weight: F64, real: F64, h: F64) -> F64:
    return np.einsum("gcn,gnm,gcm->gc", weight - real, h, weight - real)


def real(grid: Grid, levels: F64) -> F64:
    return levels * grid.multiples(levels.shape[2]) * grid.scale[:, :, None]


@pytest.mark.parametrize("text", ["int4", "int3:16", "int8"])
@pytest.mark.parametrize("restore", ["none", "mean+gain"])
def test_a_large_layer_is_fitted_some_channels_at_a_time(
    monkeypatch: pytest.MonkeyPatch, text: str, restore: str
) -> None:
    rng = np.random.default_rng(4)
    weight, inputs = rng.standard_normal((2, 30, 20)), rng.standard_normal((2, 300, 20)).astype(np.float32)
    x = rng.standard_normal((2, 80, 20)) @ (rng.standard_normal((2, 20, 20)) + 0.5)
    mix = np.matmul(x.transpose(0, 2, 1), x) / 80
    moments = moments_of(inputs @ mix.astype(np.float32), full=True)
    how = replace(NEAREST, rounding="auto", restore=restore)
    whole = fit(weight, moments, text, how)
    monkeypatch.setattr("onnxq.ranges.samples.PART", 200)
    parts = fit(weight.astype(np.float64), moments, text, how)
    if ":" in text:  # of steps that are equally good for a block of few weights the search may find another one
        lost = [
            error(weight, f.codes * f.scale[:, :, None], moments.matrix(centred=False)).sum() for f in (parts, whole)
        ]
        assert lost[0] == pytest.approx(lost[1], rel=0.05)
        return
    np.testing.assert_array_equal(parts.codes, whole.codes)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-6)


def test_blocks_lose_less_than_channels() -> None:
    """Blocks of very different size: one scale for all of them is the wrong one for most."""
    rng = np.random.default_rng(11)
    weight = rng.standard_normal((1, 16, 256)) * np.repeat(rng.uniform(0.05, 1.0, (1, 16, 8)), 32, axis=2)
    grid = block_grid(weight, None, qtype=INT3, computed=INT8_NARROW, size=32, method="mse")
    assert grid.blocks is not None
    assert grid.blocks.multiples.min() >= 1
    assert grid.blocks.multiples.max() == 127 // 3
    channel = fit(weight, None, "int3")
    per_channel = np.square(weight - channel.codes * channel.scale[:, :, None]).sum()
    assert np.square(weight - real(grid, grid.nearest(weight))).sum() < 0.7 * per_channel


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_shared_codebook_loses_less_than_uniform_codes(bits: int) -> None:
    rng = np.random.default_rng(11)
    weight = rng.laplace(0, rng.uniform(0.1, 2.0, (1, 24, 1)), (1, 24, 300))
    book = fit(weight, None, f"codebook{bits}")
    plain = fit(weight, None, f"int{bits}")
    lost = [np.square(weight - f.codes * f.scale[:, :, None]).sum() for f in (book, plain)]
    assert np.unique(book.codes).size <= 2**bits
    assert np.abs(book.codes).max() <= 127
    assert lost[0] < 0.9 * lost[1]


@pytest.mark.parametrize("text", ["int2", "int3", "int4", "int5", "int6", "int8", "int4:32", "int2:16", "codebook4"])
@pytest.mark.parametrize("known", [True, False])
def test_every_format_keeps_within_its_codes(text: str, known: bool) -> None:
    rng = np.random.default_rng(11)
    weight = rng.standard_normal((2, 6, 40))
    weight[0, 2] = 0.0
    moments = moments_of(rng.standard_normal((2, 500, 40)).astype(np.float32), full=True) if known else None
    stored = weight_format(text)
    found = fit(weight, moments, text, replace(NEAREST, rounding="auto", restore="mean+gain"))
    assert np.array_equal(found.codes, np.rint(found.codes))
    assert np.abs(found.codes).max() <= 127
    assert (found.scale > 0).all()
    assert not found.codes[0, 2].any()
    if stored.uniform:
        assert np.abs(found.codes).max() <= 2 ** (stored.bits - 1) - 1
    residual = np.square(weight - found.codes * found.scale[:, :, None]).sum() / np.square(weight).sum()
    assert residual < {2: 0.6, 3: 0.15, 4: 0.06, 5: 0.02, 6: 0.005, 8: 0.0005}[stored.bits]


def test_the_scale_leaves_room_for_biases() -> None:
    rng = np.random.default_rng(11)
    weight = rng.standard_normal((1, 4, 40))
    least = np.asarray([[0.0, 10.0, 0.0, 10.0]])
    for text in ("int4", "int4:16", "codebook4", "int8"):
        found = fit(weight, None, text, least=least)
        assert (found.scale >= least).all()


@pytest.mark.parametrize("inputs", [1, 33])
@pytest.mark.parametrize("text", ["int4:32", "int3:16"])
def test_a_block_of_one_weight_keeps_its_sign(text: str, inputs: int) -> None:
    """The last block of a channel may hold one number, and it may be negative."""
    weight = np.random.default_rng(0).standard_normal((1, 40, inputs))
    stored = weight_format(text).quantized(
        weight, None, qtype=INT8_NARROW, how=NEAREST, least=np.zeros((1, 40)), outputs=None
    )
    codes = stored.codes[0]
    packed = stored.representation.pack(codes, axis=0)
    np.testing.assert_array_equal(stored.representation.unpack(packed, codes.shape, axis=0), codes)
    assert np.array_equal(np.sign(codes[:, -1]), np.sign(weight[0, :, -1]))
