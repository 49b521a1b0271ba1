"""Integers of a few bits, times an integer for each block of weights, with one scale for each channel: ``int4:32``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.config.formats import FormatName
from onnxq.numerics import INT4, PerBlock, QType, round_half_even
from onnxq.ranges.choose import weight_params
from onnxq.ranges.fit import Fit, Fitted, importance_of
from onnxq.ranges.method import for_dead_parts
from onnxq.ranges.moments import Moments
from onnxq.ranges.rounding import Blocks, Grid
from onnxq.ranges.samples import F64
from onnxq.weights.format import GridFormat
from onnxq.weights.representation import BlockLevels, Representation, all_levels


@dataclass(frozen=True)
class BlockMultiples(GridFormat):
    """``w = s_c m_b q``: B bits, ``|q| <= Q = 2^(B-1) - 1``, and an integer ``1 <= m_b <= 127 / Q`` for S weights.

    n inputs a channel: ``B + 8 / S + 40 / n`` bits a weight. ``m_b q`` is exact, so that block scales cost no second
    rounding.
    """

    @property
    def suffix(self) -> str:
        return f"w{self.bits}g{self.block}"

    @property
    def in_kernel(self) -> FormatName | None:
        return self.name if self.bits == INT4.bits else None

    def grid(self, weight: F64, moments: Moments | None, *, qtype: QType, how: Fit) -> Grid:
        importance = importance_of(weight, moments, centred=how.centred)
        codes = self.code_type(qtype)
        return block_grid(weight, importance, qtype=codes, computed=qtype, size=self.block, method=how.method)

    def representation(self, found: Fitted) -> Representation:
        """In lowest terms: a factor that all codes of a block have is in its multiple, however they were found."""
        assert found.blocks is not None
        multiples = found.blocks.multiples.astype(np.int64)
        levels = found.codes // np.repeat(multiples, self.block, axis=2)[:, :, : found.codes.shape[2]]
        # Without signs: the greatest divisor of a block of one number would have that number's.
        factor = np.gcd.reduceat(np.abs(levels), np.arange(0, levels.shape[2], self.block), axis=2)
        lowest = np.where(factor > 0, multiples * factor, 1)
        return BlockLevels(self.bits, all_levels(self.bits), self.block, lowest.reshape(-1, lowest.shape[2]))


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
