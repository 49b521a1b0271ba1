"""The codebook of least squared error: exact one-dimensional k-means by dynamic programming.

In one dimension clusters are intervals of the sorted points. With ``D_k(j)`` the least error of the first j points in k
clusters and ``c(i, j)`` the error of points i to j - 1 around their mean,

    D_k(j) = min_i D_{k-1}(i) + c(i, j),

and the best i never falls as j grows (c has the Monge property: Wu, Optimal Quantization by Matrix Searching, Journal
of Algorithms 1991; Groenlund et al., Fast Exact k-Means in 1D, 2017). So one layer of the programme is solved by
halving: the best i of the middle j bounds those of both halves, O(n log n) a layer. All middles of one depth, of all
rows, are worked off at once.

Rows of more points than ``POINTS`` are first joined to that many groups of neighbours, whose own spread no choice of
clusters changes, and the result is then improved on all points until it stands still (Lloyd's steps, which never raise
the error): exact up to ``POINTS``, within 1e-6 of that in tests beyond.
"""

from __future__ import annotations

import numpy as np

from onnxq.ranges.folded import expand
from onnxq.ranges.samples import F64, Index, Samples, cell_ends, sums_below

POINTS = 1 << 13
# Numbers that one step of the halving holds at once.
BATCH = 1 << 18
_LLOYD_STEPS = 100


def optimal_levels(samples: Samples, *, levels: int) -> F64:
    """``[R, levels]`` ascending: the codebook of least weighted squared error for each row.

    Rows with fewer distinct points than levels repeat their last level.
    """
    rows, n = samples.values.shape
    if n > POINTS:
        coarse = [optimal_levels(_joined(samples.row(r)), levels=levels) for r in range(rows)]
        return improved(samples, np.concatenate(coarse))
    step = max(1, BATCH // n)
    parts = [
        _Programme(samples.values[r : r + step], samples.weights[r : r + step]).solve(min(levels, n))
        for r in range(0, rows, step)
    ]
    found = np.concatenate(parts)
    return np.concatenate([found, np.repeat(found[:, -1:], levels - found.shape[1], axis=1)], axis=1)


class _Programme:
    """Sums of some rows, measured from each row's mean so that little cancels."""

    def __init__(self, values: F64, weights: F64) -> None:
        self.rows, self.n = values.shape
        self.middle = (values * weights).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
        x = values - self.middle
        self.w, self.wx = sums_below(weights), sums_below(weights * x)

    def solve(self, levels: int) -> F64:
        """``[R, levels]`` the means of the best clusters."""
        # least[r, j]: D_k(j), without the sum of w x^2 that every clustering has in common.
        least = -_ratio(np.square(self.wx), self.w)
        chosen = []
        for _ in range(1, levels):
            least, best = self._layer(least)
            chosen.append(best)
        ends = np.full((self.rows, levels + 1), self.n)
        row = np.arange(self.rows)
        for k in range(levels - 1, 0, -1):
            ends[:, k] = chosen[k - 1][row, ends[:, k + 1]]
        ends[:, 0] = 0
        w, wx = (np.diff(np.take_along_axis(sums, ends, axis=1), axis=1) for sums in (self.w, self.wx))
        # A cluster without points takes the level before it, or behind it where it is the first.
        means = np.maximum.accumulate(np.where(w > 0, _ratio(wx, w), -np.inf), axis=1)
        lowest = np.where(np.isinf(means), np.inf, means).min(axis=1, keepdims=True)
        result: F64 = np.maximum(means, lowest) + self.middle
        return result

    def _layer(self, before: F64) -> tuple[F64, Index]:
        """D_k from D_{k-1}, ``[R, n + 1]``, and the i that each j took."""
        n = self.n
        least, best = before.copy(), np.zeros(before.shape, np.intp)
        # What is known so far: best[low_j] for the border j - 1 and j + 1 of each gap; borders outside bound nothing.
        gaps = np.asarray([[1, n]])
        while gaps.size:
            middle = gaps.sum(axis=1) // 2
            low = np.where(gaps[:, 0] > 1, best[:, gaps[:, 0] - 1], 0)
            high = np.where(gaps[:, 1] < n, best[:, np.minimum(gaps[:, 1] + 1, n)], n)
            high = np.minimum(high, middle - 1)
            low = np.minimum(low, high)
            self._search(before, middle, low, high, least, best)
            halves = np.concatenate(
                [np.stack([gaps[:, 0], middle - 1], axis=1), np.stack([middle + 1, gaps[:, 1]], axis=1)]
            )
            gaps = halves[halves[:, 0] <= halves[:, 1]]
        return least, best

    def _search(self, before: F64, middle: Index, low: Index, high: Index, least: F64, best: Index) -> None:
        """Fill ``least`` and ``best: [R, n + 1]`` at ``middle: [G]`` from candidates ``low .. high: [R, G]``."""
        width = (high - low + 1).ravel()
        task, nth = expand(width)
        row = task // middle.size
        j = middle[task % middle.size] + row * (self.n + 1)
        i = low.ravel()[task] + nth + row * (self.n + 1)
        w, wx = self.w.ravel(), self.wx.ravel()
        cost = before.ravel()[i] - _ratio(np.square(wx[j] - wx[i]), w[j] - w[i])
        starts = np.cumsum(width) - width
        lowest = np.minimum.reduceat(cost, starts)
        hits = np.flatnonzero(cost == lowest[task])
        first = np.full(width.size, cost.size)
        np.minimum.at(first, task[hits], hits)
        shape = low.shape
        least[:, middle] = lowest.reshape(shape)
        best[:, middle] = (low.ravel() + nth[first]).reshape(shape)


def improved(samples: Samples, levels: F64) -> F64:
    """``levels: [R, K]`` after Lloyd's steps on all points: each lowers the error, until no level moves."""
    result: F64 = levels.copy()
    for r in range(samples.values.shape[0]):
        x, w = samples.values[r], samples.weights[r]
        w_below, wx_below = sums_below(w), sums_below(w * x)
        for _ in range(_LLOYD_STEPS):
            ends = cell_ends(x, result[r])
            weight, total = np.diff(w_below[ends]), np.diff(wx_below[ends])
            moved = np.where(weight > 0, _ratio(total, weight), result[r])
            if np.array_equal(moved, result[r]):
                break
            result[r] = moved
    return result


def _joined(samples: Samples) -> Samples:
    """One row as at most ``POINTS`` groups of neighbours, each at its mean.

    Groups are as wide as levels of a fine quantizer are best spaced (Panter and Dite 1951: density to the power -1/3).
    """
    x, w = samples.values[0], samples.weights[0]
    share = np.cumsum(np.cbrt(w[1:] * np.square(np.diff(x))))
    if not share.size or share[-1] == 0:
        return Samples(x[:1][None], w.sum()[None, None], samples.low, samples.high)
    group = np.concatenate([[0], np.minimum(share / share[-1] * POINTS, POINTS - 1).astype(np.intp)])
    starts = np.flatnonzero(np.concatenate([[1], np.diff(group)]))
    weights = np.add.reduceat(w, starts)
    return Samples((np.add.reduceat(w * x, starts) / weights)[None], weights[None], samples.low, samples.high)


def _ratio(a: F64, b: F64) -> F64:
    result: F64 = np.divide(a, b, out=np.zeros_like(a), where=b > 0)
    return result
