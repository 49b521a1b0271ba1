"""Blocks of 4-bit weights against brute force over scales of both signs, and inputs that calibration never saw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.ranges import Moments
from onnxq.ranges.blocks import InBlocks, in_blocks
from onnxq.ranges.samples import F64

SIZE = 16
F32 = npt.NDArray[np.float32]


def seen(squares: F64) -> Moments:
    """Moments of inputs with the mean squares ``[n]``, mean 0, which nothing is known of but those."""
    return Moments(1000, np.zeros((1, squares.size)), 1000 * squares[None])


def blocks(weight: F32, moments: Moments | None, *, offset: bool) -> InBlocks:
    return in_blocks(weight, moments, size=SIZE, offset=offset, method="mse", rounding="nearest", centred=False)


def real(found: InBlocks) -> F64:
    zero, scale = (np.repeat(x.astype(np.float64), SIZE, axis=1) for x in (found.zero, found.scale))
    return (found.codes - zero) * scale


def least_of_both_signs(weight: F64, importance: F64) -> F64:
    """``[C, blocks]`` the least error over a fine ladder of scales, above and below 0, of codes from -8 to 7."""
    x, w = weight.reshape(-1, 1, SIZE), importance.reshape(-1, SIZE)
    every = x.reshape(weight.shape[0], -1, 1, SIZE)
    most = np.abs(every).max(axis=3, keepdims=True)
    ladder = np.linspace(0.25, 1.2, 2000)
    scales = most * np.concatenate([ladder, -ladder])[:, None] / 8
    codes = np.clip(np.rint(every / scales), -8, 7)
    least: F64 = (w[:, None] * np.square(codes * scales - every)).sum(axis=3).min(axis=2)
    return least


@pytest.mark.parametrize("known", [False, True])
def test_each_block_has_the_better_of_the_two_signs(known: bool) -> None:
    rng = np.random.default_rng(21)
    weight = rng.standard_normal((40, 3 * SIZE)).astype(np.float32)
    squares = rng.uniform(0.1, 4.0, 3 * SIZE)
    found = blocks(weight, seen(squares) if known else None, offset=False)
    importance = squares if known else np.ones_like(squares)
    lost = importance * np.square(real(found) - weight)
    # What the floor of the importance moves is far less than a thousandth.
    limit = least_of_both_signs(weight.astype(np.float64), importance) * 1.003
    assert (lost.reshape(40, 3, SIZE).sum(axis=2) <= limit).all()


def test_the_longer_side_holds_the_largest_weight() -> None:
    """-8 is a code and 8 is not: a block that ends at 8 steps above 0 is exact with a scale below 0 alone."""
    codes = np.random.default_rng(22).integers(-7, 8, (6, SIZE))
    codes[:, 0] = [8, -8] * 3
    weight = (codes * 0.5).astype(np.float32)
    found = blocks(weight, None, offset=False)
    np.testing.assert_array_equal(real(found), weight)
    np.testing.assert_array_equal(np.sign(found.scale[:, 0]), [-1, 1] * 3)


@pytest.mark.parametrize("offset", [False, True])
def test_weights_of_inputs_never_seen_are_worth_something(offset: bool) -> None:
    """One input of each block was ever other than 0, and many scales are exact for its weight: the others decide."""
    weight = np.random.default_rng(23).uniform(-0.9, 0.9, (50, 4 * SIZE)).astype(np.float32)
    used = np.zeros(4 * SIZE, bool)
    used[::SIZE] = True
    weight[:, used] = 0.25
    found = blocks(weight, seen(used.astype(np.float64)), offset=offset)
    plain = blocks(weight, None, offset=offset)
    lost, usual = (np.square(real(f) - weight) for f in (found, plain))
    assert lost[:, used].sum() < 0.1 * usual[:, used].sum()
    assert lost[:, ~used].sum() < 2.0 * usual[:, ~used].sum()


@pytest.mark.parametrize("offset", [False, True])
def test_a_block_of_inputs_never_seen_is_as_one_that_nothing_is_known_of(offset: bool) -> None:
    weight = np.random.default_rng(24).standard_normal((8, 2 * SIZE)).astype(np.float32)
    found = blocks(weight, seen(np.repeat([1.0, 0.0], SIZE)), offset=offset)
    plain = blocks(weight, None, offset=offset)
    np.testing.assert_allclose(real(found)[:, SIZE:], real(plain)[:, SIZE:], rtol=1e-5)
