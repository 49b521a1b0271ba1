"""Codebooks against the definition, compressors against codebooks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import NumericsError
from onnxq.numerics import (
    INT8_NARROW,
    Codebook,
    Companding,
    GridCodebook,
    PerAxis,
    PerBlock,
    PerTensor,
    params,
    round_half_even,
)
from onnxq.numerics.codebook import hat_functions

RNG = np.random.default_rng(2)

some_levels = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=20).map(
    lambda v: np.sort(np.asarray(v, np.float32))
)


@settings(max_examples=100, deadline=None)
@given(some_levels, st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30))
def test_every_value_goes_to_a_nearest_level(levels, values) -> None:
    book, x = Codebook(levels), np.asarray(values, np.float32)
    distance = np.abs(x[:, None].astype(np.float64) - levels)
    got = np.abs(book.fake_quantize(x).astype(np.float64) - x)
    np.testing.assert_array_equal(got, distance.min(axis=1))


def test_of_two_equally_near_levels_the_lower_is_taken() -> None:
    book = Codebook(np.asarray([-1, 1, 3], np.float32))
    assert book.quantize(np.asarray([0, 2, 2.5, -9, 9], np.float32)).tolist() == [0, 1, 2, 0, 2]


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(1), PerBlock(2, 3)])
def test_parts_have_levels_of_their_own(granularity) -> None:
    x = RNG.standard_normal((3, 4, 5)).astype(np.float32)
    shape = granularity.scale_shape(x.shape)
    levels = np.sort(RNG.standard_normal((*shape, 8)), axis=-1).astype(np.float32)
    got = Codebook(levels, granularity).fake_quantize(x)
    part = np.arange(int(np.prod(shape))).reshape(shape)
    part = np.broadcast_to(granularity.expand(part, x.shape), x.shape)
    rows = levels.reshape(-1, 8)[part]
    nearest = np.abs(rows.astype(np.float64) - x[..., None]).argmin(axis=-1)
    np.testing.assert_array_equal(got, np.take_along_axis(rows, nearest[..., None], axis=-1)[..., 0])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([(4, 1), (4, 3), (8, 1), (8, 7), (16, 3), (16, 5), (16, 15), (256, 51)]), st.integers(0, 2**31))
def test_rounding_the_bent_axis_is_taking_the_nearest_level(sizes, seed) -> None:
    size, segments = sizes
    rng = np.random.default_rng(seed)
    knots = np.cumsum(rng.uniform(0.05, 3, segments + 1)).astype(np.float32) - 4
    compressor = Companding(knots, size)
    x = rng.uniform(knots[0] - 1, knots[-1] + 1, 200).astype(np.float32)
    bent = compressor.compress(x)
    clear = np.abs(bent - np.floor(bent) - 0.5) > 1e-4  # float32 levels: not where a border is all but touched
    np.testing.assert_array_equal(compressor.quantize(x)[clear], round_half_even(bent)[clear])


def test_a_compressor_of_one_segment_is_a_uniform_quantizer() -> None:
    scale = np.float32(0.25)
    uniform = params(INT8_NARROW, scale)
    compressor = Companding(np.asarray([-127, 127], np.float32) * scale, 255)
    x = RNG.standard_normal(1000).astype(np.float32) * 15
    np.testing.assert_array_equal(compressor.fake_quantize(x), uniform.fake_quantize(x))


def test_hat_functions_interpolate_between_knots() -> None:
    hats = hat_functions(7, 3)
    np.testing.assert_allclose(hats @ np.asarray([0, 1, 4, 9.0]), [0, 0.5, 1, 2.5, 4, 6.5, 9])
    np.testing.assert_allclose(hats.sum(axis=1), 1)


def test_a_grid_codebook_is_a_codebook_on_the_grid() -> None:
    codes = np.sort(RNG.choice(np.arange(-127, 128), (5, 16), replace=False), axis=1).astype(np.int8)
    scale = RNG.uniform(0.01, 0.1, 5).astype(np.float32)
    x = RNG.standard_normal((5, 40)).astype(np.float32)
    grid = GridCodebook(codes, scale, PerAxis(0))
    real = grid.codebook().fake_quantize(x)
    # what an int8 tensor of the looked-up codes says when it is dequantized
    looked_up = np.take_along_axis(codes, grid.codebook().quantize(x).astype(np.intp), axis=1)
    np.testing.assert_array_equal(params(INT8_NARROW, scale, granularity=PerAxis(0)).dequantize(looked_up), real)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Codebook(np.zeros(3)), "float32"),
        (lambda: Codebook(np.asarray([2, 1], np.float32)), "ascending"),
        (lambda: Codebook(np.asarray([0, np.inf], np.float32)), "finite"),
        (lambda: Codebook(np.zeros(257, np.float32)), "1 to 256 levels"),
        (lambda: Codebook(np.zeros((2, 3), np.float32)), "one row"),
        (lambda: Codebook(np.zeros(3, np.float32), PerAxis(0)).quantize(np.zeros((2, 2))), "does not fit"),
        (lambda: Companding(np.arange(3, dtype=np.float32), 16), "do not divide"),
        (lambda: Companding(np.zeros((2, 4), np.float32), 16, PerAxis(0)).compress(np.zeros(3)), "per-tensor"),
        (lambda: GridCodebook(np.full(4, -128, np.int8), np.float32(1)), "from -127"),
        (lambda: GridCodebook(np.zeros((2, 4), np.int8), np.zeros(2, np.float32), PerAxis(0)), "positive"),
    ],
)
def test_what_breaks_the_definition_is_refused(make, complaint) -> None:
    with pytest.raises(NumericsError, match=complaint):
        make()
