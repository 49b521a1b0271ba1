"""The exact minimum-MSE scale and integer zero point of weighted points: ``optimum`` for all zero points at once.

With j negative codes (zero point ``qmin + j``, out of ``N = qmax - qmin`` steps) the objective is

    f_j(s) = min_q sum_i w_i (x_i - s q_i)^2,   q_i integer in [-j, N - j].

For fixed j every fact in ``optimum`` holds: f_j is an envelope of parabolas, ``A_j(s)`` never grows with s, the chord
bound is valid. What is shared: the borders ``(k + 1/2) s`` do not depend on j, only which of them count. So one pass
over all borders at s, with running sums over k, gives A, B and f for every j at the price of two. The search halves
intervals of s; an interval stays while any j may still win in it, and only the j that may win somewhere are carried
along.

Nor are large scales needed: at ``s0 = span / (N - 1)``, with the span of the data and 0, some j clips nothing, and the
argument of ``optimum`` shows that the minimum over s and j lies at ``s <= 2 s0``.

Data on one side of 0 needs no search over j: for ``x >= 0`` the codes ``[0, N]`` contain every code nearest to x that
the other choices offer, so j = 0 is optimal whatever s, and likewise j = N for ``x <= 0``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.ranges.optimum import ROUNDOFF, lower_bound, optimal_scales
from onnxq.ranges.places import Places
from onnxq.ranges.samples import F64, Samples

Ints = npt.NDArray[np.int64]

# The search stops when no pair can lower the error by more than this share: a digit below what spreading bins does.
PAIR_TOLERANCE = 1e-5


class Pair(NamedTuple):
    """A scale and how many codes lie below the zero point; scale 0 where no code helps (all points are 0)."""

    scale: float
    negative: int


def optimal_pair(samples: Samples, *, steps: int) -> Pair:
    """The best pair for the one row of ``samples`` and ``steps = qmax - qmin``."""
    if samples.low[0] >= 0:
        return Pair(float(optimal_scales(samples, qmin=0, qmax=steps)[0]), 0)
    if samples.high[0] <= 0:
        return Pair(float(optimal_scales(samples, qmin=-steps, qmax=0)[0]), steps)
    if not samples.values.any():
        return Pair(0.0, 0)
    points = _Points(samples, steps)
    columns = np.arange(steps + 1)
    s = np.concatenate([[0.0], points.cover()])
    f, a = points.evaluate(s, columns)
    low, high, f_a, f_b, a_a = s[:-1], s[1:], f[:-1], f[1:], a[:-1]
    while True:
        wanted = (points.energy - points.gain) * (1 - PAIR_TOLERANCE) - ROUNDOFF * points.energy
        alive = lower_bound((high - low)[:, None], f_a, f_b, a_a) < wanted
        rows, cols = alive.any(axis=1), np.flatnonzero(alive.any(axis=0))
        if not cols.size:
            return Pair(points.scale * points.unit, points.negative)
        hull = slice(cols[0], cols[-1] + 1)
        columns = columns[hull]
        low, high = low[rows], high[rows]
        f_a, f_b, a_a = f_a[rows, hull], f_b[rows, hull], a_a[rows, hull]
        middle = 0.5 * (low + high)
        f, a = points.evaluate(middle, columns)
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
        f_a, f_b, a_a = np.concatenate([f_a, f]), np.concatenate([f, f_b]), np.concatenate([a_a, a])


class _Points:
    """Sorted points in units of a power of two, with running sums, and the best pair met so far."""

    def __init__(self, samples: Samples, steps: int) -> None:
        values = samples.values[0]
        self.unit = float(np.ldexp(1.0, int(np.frexp(max(-values[0], values[-1]))[1])))
        self.x = values / self.unit
        w = samples.weights[0] * (samples.values.shape[1] / samples.weights[0].sum())
        self.w = w
        self.above_w = np.concatenate([np.cumsum(w[::-1])[::-1], [0.0]])
        self.above_wx = np.concatenate([np.cumsum((w * self.x)[::-1])[::-1], [0.0]])
        self.energy = float(w @ np.square(self.x))
        self.places = Places(self.x)
        self.steps = steps
        self.gain, self.scale, self.negative = 0.0, 0.0, 0

    def cover(self) -> F64:
        """Ascending ends of intervals up to ``2 span / (steps - 1)``, equally spaced in 1/s as the bound asks for."""
        unclipped = (self.steps - 1) / (max(float(self.x[-1]), 0.0) - min(float(self.x[0]), 0.0))
        return 1.0 / np.linspace(1.2 * unclipped, 0.5 * unclipped, 6 + self.steps // 32)

    def evaluate(self, s: F64, columns: Ints) -> tuple[F64, F64]:
        """(f, A), each ``[S, J]``, at ``s: [S]`` for the ``columns: [J]``, consecutive counts of negative codes."""
        first, last = int(columns[0]), int(columns[-1])
        k = np.arange(-last, self.steps - first)
        at = self.places(np.multiply.outer(s, k + 0.5))
        # At s = 0 every border is at 0; points below it keep their negative codes.
        if s[0] == 0:
            at[0] = np.where(k < 0, self.x.searchsorted(0.0), self.x.searchsorted(0.0, side="right"))
        a = columns**2 * self.above_w[0] + _windows((2 * k + 1) * self.above_w[at], self.steps)
        b = -columns * self.above_wx[0] + _windows(self.above_wx[at], self.steps)
        gain = np.divide(b * b, a, out=np.zeros_like(a), where=a > ROUNDOFF * self.above_w[0])
        best = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[best] > self.gain:
            self.gain, self.scale, self.negative = float(gain[best]), float(b[best] / a[best]), int(columns[best[1]])
        return self.energy - 2 * s[:, None] * b + np.square(s)[:, None] * a, a


def _windows(terms: F64, width: int) -> F64:
    """``[S, J]`` sums over ``width`` neighbours of ``terms: [S, J + width - 1]``, the last window first."""
    sums = np.zeros((terms.shape[0], terms.shape[1] + 1))
    np.cumsum(terms, axis=1, out=sums[:, 1:])
    return (sums[:, width:] - sums[:, : sums.shape[1] - width])[:, ::-1]
