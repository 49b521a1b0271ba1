"""The step of least error at a layer's *output*: an exact line search over all cells of all channels at once.

For one output channel with weights ``w: [n]``, codes ``q`` and the second moments ``H: [n, n]`` of its inputs, the mean
squared error of the output is

    f(q, s) = (w - s q)^T H (w - s q) = E - 2 s B + s^2 A,   E = w^T H w,  B = q^T H w,  A = q^T H q.

As in ``optimum``, the codes of a step ``t`` are those nearest to ``w / t`` and change only at borders ``|w_i| / (k +
1/2)``, where one code moves by one. But H couples the weights, so nearest codes no longer minimise f, f jumps at every
border, and no bound lets cells be skipped: the sweep visits them, largest step first, and at each border updates

    B += sigma_i (H w)_i,   A += 2 sigma_i (H q)_i + H_ii.

What is sought depends on the scale that the codes are read with (see ``layer``): the step itself, so that within a
cell the best ``s`` is ``B / A`` kept inside it; or any scale, and then the best of the cell leaves ``E - B^2 / A``.

Borders are worked off in runs: one matrix product gives ``H q`` at the start of a run, and the pairs of borders inside
it give the rest. Up to 4 bits, or for few inputs, every cell is visited, and the result is the global optimum. Else
only the borders nearest to a starting step are (``SWEPT``, ``SWEPT_PER_INPUT``): the best of fewer roundings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnxq.numerics import round_half_even
from onnxq.ranges.folded import expand
from onnxq.ranges.samples import F64, Index

# Codes on one side of 0 up to which every cell is visited. With more, the borders visited for a channel: this many for
# each input, and at least so many.
ALL_CELLS = 8
SWEPT_PER_INPUT = 2
SWEPT = 2048
# Borders of one run, as a share of the inputs: where the product at its start costs as much as its pairs.
RUN_SHARE = 1 / 8
LEAST_RUN = 16
# Pairs of borders held at once: bounds the memory.
PAIRS = 1 << 21
# Cells narrower than this, relative to the step, hold no float32: their codes cannot be asked for by a step.
NARROWEST = 1e-6


def optimal_output_steps(weight: F64, second: F64, *, qmin: int, qmax: int, start: F64, any_scale: bool) -> F64:
    """``[g, C]`` the step of least output error for each channel.

    Args:
        weight: [g, C, n], ``g`` groups of C output channels.
        second: [g, n, n], positive semi-definite, ``E[x x^T]`` or the covariance.
        qmin, qmax: the codes, ``qmin < 0 < qmax``.
        start: [g, C] steps around which to search where not every cell is visited; 0 for channels of zeros.
        any_scale: whether the codes may be read with any scale, or only with the step that rounded them.

    A channel that no step improves (weights of zero, or inputs that are always zero) keeps its ``start``.
    """
    groups, channels, n = weight.shape
    run = min(n, max(LEAST_RUN, int(n * RUN_SHARE)))
    best: F64 = start.copy()
    step = max(1, PAIRS // (run * run * channels))
    some = max(1, PAIRS // (run * run))
    for g in range(0, groups, step):
        part = slice(g, g + step)
        for c in range(0, channels, some):
            rows = slice(c, c + some)
            sweep = _Sweep(weight[part, rows], second[part], qmin, qmax, start[part, rows], run)
            best[part, rows] = sweep.best(any_scale=any_scale)
    return best


class _Borders(NamedTuple):
    """The borders of each row, the largest first, padded at the end; ``[R, T]`` each."""

    point: Index
    sign: F64  # what the code of the point moves by; 0 for padding
    at: F64  # the border
    below: F64  # the next one, or the low end of the search


class _Sweep:
    def __init__(self, weight: F64, second: F64, qmin: int, qmax: int, start: F64, run: int) -> None:
        groups, channels, n = weight.shape
        self.shape, self.second, self.run = weight.shape, second, run
        self.w = weight.reshape(-1, n)
        self.group = np.repeat(np.arange(groups), channels)
        self.start = start.reshape(-1)
        self.most = np.where(self.w > 0, float(qmax), float(-qmin))
        self.target = self._times_second(self.w)
        codes, swept = max(qmax, -qmin), max(SWEPT_PER_INPUT * n, SWEPT)
        everything = codes <= ALL_CELLS or codes * n <= swept
        self.codes, self.borders = self._borders(None if everything else swept)

    def _times_second(self, x: F64) -> F64:
        result: F64 = np.matmul(x.reshape(self.shape), self.second).reshape(x.shape)
        return result

    def _magnitudes(self, s: F64) -> F64:
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = round_half_even(np.abs(self.w) / s[:, None])
        codes[np.isnan(codes)] = 0.0  # 0 / 0
        return np.minimum(codes, self.most)

    def _borders(self, most: int | None) -> tuple[F64, _Borders]:
        """The codes at the high end of the search, and the borders from there to its low end, about ``most`` a row."""
        n = self.w.shape[1]
        low, high = np.zeros_like(self.start), np.full_like(self.start, np.inf)
        if most is not None:
            # Borders are as dense around a step, per relative change of it, as the codes there are large.
            density = self._magnitudes(np.where(self.start > 0, self.start, 1.0)).sum(axis=1)
            reach = np.exp(most / 2 / np.maximum(density, most / 4))
            low, high = self.start / reach, self.start * reach
        first = self._magnitudes(high)
        count = (self._magnitudes(low) - first).astype(np.intp)
        which, nth = expand(count.ravel())
        row = which // n
        border = np.abs(self.w).ravel()[which] / (first.ravel()[which] + nth + 0.5)
        order = np.lexsort((-border, row))
        total = count.sum(axis=1)
        column = np.arange(order.size) - np.repeat(np.cumsum(total) - total, total)
        shape = (total.size, max(int(total.max(initial=0)), 1))
        point, sign, at = np.zeros(shape, np.intp), np.zeros(shape), np.broadcast_to(low[:, None], shape).copy()
        point[row, column] = (which % n)[order]
        at[row, column] = border[order]
        sign[row, column] = np.sign(self.w).ravel()[which[order]]
        below = np.concatenate([at[:, 1:], low[:, None]], axis=1)
        return first * np.sign(self.w), _Borders(point, sign, at, below)

    def best(self, *, any_scale: bool) -> F64:
        """``[g, C]`` the best step."""
        rows = np.arange(self.w.shape[0])
        q, found = self.codes.copy(), self.start.copy()
        gain = np.full(rows.size, -np.inf)  # E - f
        for begin in range(0, self.borders.at.shape[1], self.run):
            part = slice(begin, begin + self.run)
            point, sign = self.borders.point[:, part], self.borders.sign[:, part]
            at, below = self.borders.at[:, part], self.borders.below[:, part]
            a, b = self._sums(q, point, sign)
            np.add.at(q, (rows[:, None], point), sign)
            scale = np.divide(b, a, out=np.zeros_like(a), where=a > 0)
            step = np.where(below > 0, np.sqrt(at * below), 0.5 * at)
            if not any_scale:
                step = scale = np.clip(scale, below + NARROWEST * at, at * (1 - NARROWEST))
            won = 2 * scale * b - np.square(scale) * a
            won[(sign == 0) | (at - below <= 4 * NARROWEST * at) | (b <= 0)] = -np.inf
            column = np.argmax(won, axis=1)
            better = won[rows, column] > gain
            gain[better] = won[rows, column][better]
            found[better] = step[rows, column][better]
        result: F64 = found.reshape(self.shape[:2])
        return result

    def _sums(self, q: F64, point: Index, sign: F64) -> tuple[F64, F64]:
        """(A, B), ``[R, run]``, after each border of a run that starts with the codes ``q``."""
        rows = np.arange(q.shape[0])[:, None]
        product = self._times_second(q)
        a0, b0 = np.einsum("rn,rn->r", product, q), np.einsum("rn,rn->r", self.target, q)
        pairs = self.second[self.group[:, None, None], point[:, :, None], point[:, None, :]]
        earlier = np.matmul(np.tril(pairs, -1), sign[:, :, None])[:, :, 0]
        own = np.einsum("rii->ri", pairs)
        a = a0[:, None] + np.cumsum(2 * sign * (product[rows, point] + earlier) + np.square(sign) * own, axis=1)
        b = b0[:, None] + np.cumsum(sign * self.target[rows, point], axis=1)
        return a, b
