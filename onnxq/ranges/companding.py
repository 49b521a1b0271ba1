"""The compressor of least squared error: knots fitted to the points, from the best codebook and from the best grid.

Levels are linear in the knots (``numerics.codebook``), so for fixed codes the best knots solve a small least-squares
problem; for fixed knots the nearest codes are best. The two alternate until nothing moves, as in Lloyd's method for
free levels. Two starts, of which the better end is kept: knots fitted to the optimal codebook, and the optimal uniform
quantizer, which is a compressor too: the result is never worse than that one.
"""

from __future__ import annotations

import numpy as np

from onnxq.numerics.codebook import hat_functions
from onnxq.ranges.kmeans import optimal_levels
from onnxq.ranges.optimum import optimal_scales
from onnxq.ranges.samples import F64, Samples, cell_ends, sums_below

_STEPS = 60
# Cells without points leave knots undetermined; this share of the mean weight holds them where they are.
_HOLD = 1e-9


def optimal_knots(samples: Samples, *, size: int, segments: int) -> F64:
    """``[R, segments + 1]`` ascending: knots for ``size`` codes; ``segments`` divides ``size - 1``."""
    hats = hat_functions(size, segments)
    free = optimal_levels(samples, levels=size)
    fitted = np.linalg.lstsq(hats, free.T, rcond=None)[0].T
    low = -(size // 2)
    scale = optimal_scales(samples, qmin=low, qmax=size - 1 + low)
    uniform = scale[:, None] * np.linspace(low, size - 1 + low, segments + 1)
    result: F64 = np.empty_like(fitted)
    for r in range(free.shape[0]):
        row = _Row(samples.values[r], samples.weights[r], hats)
        ends = [row.settled(np.maximum.accumulate(start[r])) for start in (fitted, uniform)]
        result[r] = min(ends, key=lambda end: end[0])[1]
    return result


class _Row:
    """The points of one row, and sums over them."""

    def __init__(self, x: F64, w: F64, hats: F64) -> None:
        self.x, self.hats = x, hats
        self.sums = [sums_below(part) for part in (w, w * x, w * x * x)]

    def settled(self, knots: F64) -> tuple[float, F64]:
        """(error, knots) after alternating until the error stops falling."""
        best, kept = np.inf, knots
        for _ in range(_STEPS):
            levels = self.hats @ knots
            ends = cell_ends(self.x, levels)
            weight, total, square = (np.diff(sums[ends]) for sums in self.sums)
            error = float((square - 2 * levels * total + np.square(levels) * weight).sum())
            if not error < best:
                break
            best, kept = error, knots
            hold = _HOLD * weight.sum()
            matrix = (self.hats.T * weight) @ self.hats + hold * np.eye(knots.size)
            knots = np.maximum.accumulate(np.linalg.solve(matrix, self.hats.T @ total + hold * knots))
        return best, kept
