"""4-bit weights in blocks with float32 scales of their own: what MatMulNBits computes with.

``real = scale * (code - zero)``, codes from 0 to 15. Without zero points every block has the zero 8 and a scale of
either sign: of the sixteen levels one side has one more, and the side of the block's largest weight should have it
(ggml, ``q4_0``). With zero points, several zeros are tried for each block, and the scale follows by alternating least
squares: given codes the scale that fits them.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.numerics import INT4, UINT4, PerBlock, round_half_even
from onnxq.ranges.choose import checked_weight, weight_params
from onnxq.ranges.method import usable
from onnxq.ranges.moments import Moments
from onnxq.ranges.rounding import Blocks, Grid, Metric
from onnxq.ranges.samples import F64

# Zeros tried around that of the full range, shares of that range at which the search for a scale begins, its steps.
_MOVES = (0, -1, 1, -2, 2)
_STARTS = (1.0, 0.88, 0.76)
_STEPS = 4
# Weights searched at once: bounds the memory.
_CHUNK = 1 << 20
_MIDDLE = 1 << (UINT4.bits - 1)


class InBlocks(NamedTuple):
    """``codes: [C, n] uint8``, ``scale: [C, blocks] float32``, ``zero: [C, blocks] uint8``."""

    codes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    zero: npt.NDArray[np.uint8]


def in_blocks(
    weight: npt.NDArray[np.float32],
    moments: Moments | None,
    *,
    size: int,
    offset: bool,
    method: str,
    rounding: str,
    centred: bool,
) -> InBlocks:
    """``weight: [C, n]`` in blocks of ``size`` inputs, with zero points if ``offset``.

    ``moments``: of the layer's inputs, one group of n, or None; ``centred``: whether a bias takes care of means;
    ``rounding``: ``nearest`` or ``compensated`` (``rounding``), which needs all second moments.

    Raises ``ConfigError`` for an unknown method, ``NumericsError`` where the weight holds NaN or infinity.
    """
    rows = checked_weight(weight)
    importance = None
    if moments is not None:
        # Never quite 0: a weight that no calibration sample used is not worth nothing.
        squares = moments.squares(centred=centred)[0]
        importance = (squares + 1e-3 * squares.mean() + np.finfo(np.float32).tiny).astype(np.float32)
    parts = [
        (_with_zeros if offset else _signed)(rows[c : c + step], importance, size, method)
        for step in (max(1, _CHUNK // rows.shape[1]),)
        for c in range(0, rows.shape[0], step)
    ]
    scale, zero = (np.concatenate(x) for x in zip(*parts, strict=True))
    scale = scale.astype(np.float32).astype(np.float64)
    grid = Grid(
        np.ones((1, rows.shape[0])),
        np.arange(UINT4.qmin, UINT4.qmax + 1, dtype=np.float64),
        Blocks(size, scale[None], zero[None]),
    )
    if rounding == "compensated" and moments is not None and moments.full:
        levels = Metric.of_moments(moments, centred=centred).rounded(rows[None], grid)[0]
    else:
        levels = grid.nearest(rows[None])[0]
    levels += np.repeat(zero.astype(np.int16), size, axis=1)[:, : rows.shape[1]]
    return InBlocks(levels.astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8))


def _signed(
    rows: npt.NDArray[np.float32], importance: npt.NDArray[np.float32] | None, size: int, method: str
) -> tuple[F64, F64]:
    """Scales of either sign for codes from -8 to 7."""
    weights = None if importance is None else np.broadcast_to(importance, rows.shape)
    found: list[tuple[F64, F64]] = []
    for sign in (1.0, -1.0):
        flipped = (sign * rows).astype(np.float32)
        chosen = weight_params(flipped, qtype=INT4, granularity=PerBlock(1, size), method=method, importance=weights)
        error = np.square(chosen.fake_quantize(flipped) - flipped, dtype=np.float64)
        if weights is not None:
            error *= weights
        starts = np.arange(0, rows.shape[1], size)
        found.append((sign * chosen.scale.astype(np.float64), np.add.reduceat(error, starts, axis=1)))
    (plus, plus_error), (minus, minus_error) = found
    scale = np.where(plus_error <= minus_error, plus, minus)
    return scale, np.full(scale.shape, float(_MIDDLE))


def _with_zeros(
    rows: npt.NDArray[np.float32], importance: npt.NDArray[np.float32] | None, size: int, method: str
) -> tuple[F64, F64]:
    """Scales above 0 and zeros. ``method`` has no say: the literature's methods know no zero points of weights."""
    channels, n = rows.shape
    count = -(-n // size)
    x, weights = np.zeros((channels, count * size)), np.zeros(count * size)
    x[:, :n] = rows
    weights[:n] = 1.0 if importance is None else importance
    x, w = x.reshape(-1, size), np.tile(weights.reshape(-1, size), (channels, 1))
    low, high = np.minimum(x.min(axis=1), 0.0), np.maximum(x.max(axis=1), 0.0)
    best_scale, best_zero = np.ones(low.size), np.full(low.size, float(_MIDDLE))
    least = np.full(low.size, np.inf)
    middle = round_half_even(np.divide(-low, high - low, out=np.zeros_like(low), where=high > low) * UINT4.qmax)
    for move, share in product(_MOVES, _STARTS):
        zero = np.clip(middle + move, UINT4.qmin, UINT4.qmax)
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.fmax(high / (UINT4.qmax - zero), -low / zero)  # 0 / 0 where that side is empty
        scale = np.where(np.isfinite(ends) & (ends > 0), usable(share * ends), usable((high - low) / UINT4.qmax))
        for _ in range(_STEPS):
            level = np.clip(round_half_even(x / scale[:, None]), UINT4.qmin - zero[:, None], UINT4.qmax - zero[:, None])
            error = (w * np.square(x - level * scale[:, None])).sum(axis=1)
            better = error < least
            least = np.where(better, error, least)
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
            own = (w * np.square(level)).sum(axis=1)
            fitted = np.divide((w * level * x).sum(axis=1), own, out=scale.copy(), where=own > 0)
            scale = np.where(fitted > 0, usable(fitted), scale)
    return best_scale.reshape(channels, count), best_zero.reshape(channels, count)
