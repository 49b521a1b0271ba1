"""Indices of levels that the channels of a weight share, with one scale for each channel: ``codebook2`` to ``4``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.numerics import QType
from onnxq.numerics.packing import Packing
from onnxq.ranges.fit import Fit, importance_of
from onnxq.ranges.kmeans import optimal_levels
from onnxq.ranges.method import for_dead_parts, usable
from onnxq.ranges.moments import Moments
from onnxq.ranges.rounding import Grid
from onnxq.ranges.samples import F64, of_rows
from onnxq.ranges.snapped import snapped
from onnxq.weights.format import GridFormat

# Weights that a shared codebook is fitted to: more say nothing new about 16 levels.
_POOL = 1 << 16
_ROUNDS = 4


@dataclass(frozen=True)
class Codebook(GridFormat):
    """``w = s_c L[q]``: B bits q, ``2^B`` levels L, integers from -127 to 127 that are the weight's own.

    n inputs a channel, N weights: ``B + 40 / n + 8 T / N`` bits a weight, T the bytes of the table that unpacks all
    codes of a group at once (``numerics.packing``): 1024, 16384 and 512 for 2, 3 and 4 bits.
    """

    @property
    def shared(self) -> bool:
        return True

    def grid(self, weight: F64, moments: Moments | None, *, qtype: QType, how: Fit) -> Grid:
        importance = importance_of(weight, moments, centred=how.centred)
        return codebook_grid(weight, importance, bits=self.bits, computed=qtype)

    def nbytes(self, channels: int, inputs: int) -> int:
        packing = Packing(self.bits)
        table = packing.group << (self.bits * packing.group)
        return super().nbytes(channels, inputs) + table


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
