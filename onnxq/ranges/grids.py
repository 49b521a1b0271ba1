"""The ``Grid`` of each weight format: a scale a channel, block multiples, or a codebook that a tensor shares."""

from __future__ import annotations

import numpy as np

from onnxq.numerics import PerBlock, QType, round_half_even
from onnxq.ranges.choose import weight_params
from onnxq.ranges.kmeans import optimal_levels
from onnxq.ranges.method import for_dead_parts, usable
from onnxq.ranges.rounding import Blocks, Grid
from onnxq.ranges.samples import F64, of_rows
from onnxq.ranges.snapped import snapped

# Weights that a shared codebook is fitted to: more say nothing new about 16 levels.
_POOL = 1 << 16
_ROUNDS = 4


def uniform_grid(step: F64, qtype: QType) -> Grid:
    """The codes of ``qtype`` times ``step: [g, C]``."""
    return Grid(step, np.arange(qtype.qmin, qtype.qmax + 1, dtype=np.float64))


def block_grid(weight: F64, importance: F64 | None, *, qtype: QType, computed: QType, size: int, method: str) -> Grid:
    """Blocks of ``size`` along the inputs of ``weight: [g, C, n]``, each an integer multiple of its channel's scale.

    Block steps come from ``method``; the channel's scale makes the largest of them the largest multiple that the type
    ``computed`` allows, and each block takes, of the multiples beside its step, the one of least squared error, weighed
    by ``importance: [g, C, n]``.
    """
    groups, channels, n = weight.shape
    rows = weight.reshape(-1, n)
    weights = np.ones_like(rows) if importance is None else importance.reshape(-1, n)
    largest = computed.qmax // qtype.qmax
    found = weight_params(
        rows.astype(np.float32),
        qtype=qtype,
        granularity=PerBlock(1, size),
        method=method,
        importance=None if importance is None else weights.astype(np.float32),
    )
    live = np.add.reduceat(np.abs(rows), np.arange(0, n, size), axis=1) > 0
    step = np.where(live, found.scale.astype(np.float64), 0.0)
    scale = for_dead_parts(step.max(axis=1) / largest, computed)
    wanted = np.clip(round_half_even(step / scale[:, None]), 1, largest)
    best, least = wanted, np.full(wanted.shape, np.inf)
    for move in (0, -1, 1):
        tried = np.clip(wanted + move, 1, largest)
        unit = np.repeat(tried, size, axis=1)[:, :n] * scale[:, None]
        codes = np.clip(round_half_even(rows / unit), qtype.qmin, qtype.qmax)
        error = np.add.reduceat(weights * np.square(rows - codes * unit), np.arange(0, n, size), axis=1)
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    levels = np.arange(qtype.qmin, qtype.qmax + 1, dtype=np.float64)
    multiples = best.reshape(groups, channels, -1)
    return Grid(scale.reshape(groups, channels), levels, Blocks(size, multiples, np.zeros_like(multiples)))


def codebook_grid(weight: F64, importance: F64 | None, *, bits: int, computed: QType) -> Grid:
    """``2^bits`` levels within ``computed`` that the channels of ``weight: [g, C, n]`` share, and a scale for each.

    Alternately the levels are the optimal codebook (``kmeans``) of all weights in units of their channel's scale, and
    each scale the least-squares one for the nearest levels; then the levels move onto the 8-bit grid (``snapped``).
    """
    groups, channels, n = weight.shape
    rows = weight.reshape(-1, n)
    weights = np.ones_like(rows) if importance is None else importance.reshape(-1, n)
    weights = np.where(weights.any(axis=1, keepdims=True), weights, 1.0)
    scale = np.sqrt((weights * np.square(rows)).sum(axis=1) / weights.sum(axis=1))
    live = scale > 0
    if not live.any():
        return Grid(np.ones((groups, channels)), np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.float64))
    every = max(1, -(-int(live.sum()) * n // _POOL))
    levels = np.zeros(2**bits)
    for _ in range(_ROUNDS):
        safe = np.where(live, scale, 1.0)
        unit = (rows / safe[:, None])[live].ravel()[::every].astype(np.float32)
        # What a channel's error weighs: its weights' importance times its squared scale.
        share = (weights * np.square(safe)[:, None])[live].ravel()[::every].astype(np.float32)
        pool = of_rows(unit[None], share[None])
        levels = optimal_levels(pool, levels=2**bits)[0]
        real = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, rows / safe[:, None])]
        own = (weights * np.square(real)).sum(axis=1)
        refitted = np.divide((weights * rows * real).sum(axis=1), own, out=scale.copy(), where=own > 0)
        scale = np.where(live & (refitted > 0), refitted, scale)
    on_grid = snapped(pool, levels[None], limit=computed.qmax)
    codes = on_grid.codes[0].astype(np.float64)
    if (rows == 0).mean() >= 1 / codes.size or not live.all():  # pruned weights stay exactly 0
        codes[np.argmin(np.abs(codes))] = 0.0
    codes = np.unique(codes)
    return Grid(for_dead_parts(scale * float(usable(on_grid.scale[0])), computed).reshape(groups, channels), codes)
