"""A codebook moved onto an 8-bit grid, where integer kernels can compute with it.

For a given step of the grid every level goes to one of the two grid points beside it; which ones are best together is
found exactly by dynamic programming over the levels (a level interacts with its neighbours only, through the border
halfway between them). The step is the best of a ladder of ``STEPS``, then the least-squares one for the codes found.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.numerics import INT8_NARROW
from onnxq.ranges.samples import F64, Samples, cell_ends, sums_below

# From the grid whose end is the outermost level to one a third coarser: more steps gain less than a thousandth.
STEPS = np.geomspace(1.0, 4 / 3, 24)


class Snapped(NamedTuple):
    """``codes: [R, K] int8`` ascending, and the ``scale: [R]`` of the grid; 1 where all levels are 0."""

    codes: npt.NDArray[np.int8]
    scale: F64


def snapped(samples: Samples, levels: F64, *, limit: int = INT8_NARROW.qmax) -> Snapped:
    """The grid codebook of least error on ``samples`` near ``levels: [R, K]``, codes from ``-limit`` to ``limit``."""
    rows = [_snap_row(samples.values[r], samples.weights[r], levels[r], STEPS, limit) for r in range(levels.shape[0])]
    return Snapped(np.stack([codes for codes, _ in rows]), np.asarray([scale for _, scale in rows]))


def _snap_row(x: F64, w: F64, levels: F64, steps: F64, limit: int) -> tuple[npt.NDArray[np.int8], float]:
    top = float(np.abs(levels).max())
    if top == 0.0:
        return np.zeros(levels.size, np.int8), 1.0
    sums = [sums_below(part) for part in (w, w * x, w * x * x)]
    scale = top / limit * steps[:, None, None]
    # choice[s, k, 0 or 1]: the grid codes below and above level k.
    choice = np.clip(np.floor(levels[:, None] / scale) + np.arange(2), -limit, limit)
    value = choice * scale

    def error(low: F64, high: F64, level: F64) -> F64:
        """Error of the points from ``low`` to ``high`` at ``level``; all broadcast."""
        a, b = np.searchsorted(x, low, side="right"), np.searchsorted(x, high, side="right")
        weight, total, square = (s[b] - s[a] for s in sums)
        result: F64 = square - 2 * level * total + np.square(level) * weight
        return result

    least = error(np.full_like(value[:, 0], -np.inf), value[:, 0], value[:, 0])
    came = []
    for k in range(1, levels.size):
        left, right = value[:, k - 1, :, None], value[:, k, None, :]
        border = (left + right) / 2
        between = error(left, border, left) + error(border, np.broadcast_to(right, border.shape), right)
        reached = np.where(left <= right, least[:, :, None] + between, np.inf)
        came.append(np.argmin(reached, axis=1))
        least = reached.min(axis=1)
    least = least + error(value[:, -1], np.full_like(value[:, -1], np.inf), value[:, -1])
    best, last = (int(i) for i in np.unravel_index(np.argmin(least), least.shape))
    codes = np.empty(levels.size)
    for k in range(levels.size - 1, -1, -1):
        codes[k] = choice[best, k, last]
        last = int(came[k - 1][best, last]) if k else last
    real = float(scale[best, 0, 0])
    ends = cell_ends(x, codes * real)
    weight, total = (np.diff(s[ends]) for s in sums[:2])
    own = float((np.square(codes) * weight).sum())
    refined = float((codes * total).sum()) / own if own > 0 else real
    return codes.astype(np.int8), refined if refined > 0 else real
