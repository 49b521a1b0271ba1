"""The exact minimum-MSE scale of sorted rows with zero point 0: a search with certified bounds, vectorised over rows.

For one row the objective is, over real ``s > 0`` and integer codes ``q_i`` in ``[qmin, qmax]``,

    f(s) = min_q sum_i w_i (x_i - s q_i)^2 = min_q  X - 2 s B_q + s^2 A_q,
    X = sum w x^2,  B_q = sum w x q,  A_q = sum w q^2:

the lower envelope of parabolas, one for each assignment of codes. Four facts make its global minimum cheap.

**Upper bound.** Whatever the assignment q, the scale ``B_q / A_q`` has ``f <= X - B_q^2 / A_q``. So every evaluation,
at any s, also gives the best scale of its cell, and the minimum of f is ``X - max_q B_q^2 / A_q``.

**Lower bound.** Let ``A(s)`` belong to the codes that are nearest at s. As s grows codes only move towards 0 (they
change where ``|x| = (k + 1/2) s``), so A never grows. Take ``0 <= a < b``. On ``[a, b]`` the function ``g(s) = f(s) -
A(a) s^2`` is continuous; inside a cell ``g'' = 2 A(s) - 2 A(a) <= 0``; at a border between cells f is the smaller of
two parabolas, so its slope falls. Hence g is concave and lies above its chord, which says, for t in [0, 1],

    f(a + t (b - a)) >= (1 - t) f(a) + t f(b) - A(a) (b - a)^2 t (1 - t).

The right side is a parabola in t, its minimum has a closed form, and it equals f where no border lies inside. (For a =
0 take the limit: f(0) = X and A(0) = codes saturated.) The gap to f shrinks with the square of ``b - a``.

**Few borders.** An interval holding few borders is solved exactly by sweeping over them (sort, running sums).

**No large scales.** Dividing s by an integer m only adds codes: ``s q = (s / m) (m q)``. So if s is so large that s / m
still has a code for every point, ``f(s / m) <= f(s)``. Every ``s > 2 s0`` has an m with ``s0 <= s / m <= 2 s0``; with
``s0 = max|x| / (codes on the smaller side + 1/2)`` nothing is clipped there, and the minimum lies in ``(0, 2 s0]``.

The search keeps intervals that may still beat the best value found, halves those with many borders, sweeps those with
few. What it returns is the global minimum up to ``TOLERANCE``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from onnxq.ranges.folded import Folded, fold
from onnxq.ranges.samples import F64, Index, Samples

# An interval is dropped when its bound leaves less than this to gain, relative to the error and to the energy of the
# row: the first is below what any measurement sees, the second is what float64 sums of 10^6 terms resolve.
TOLERANCE = 2.5e-7
ROUNDOFF = 1e-13
# Numbers that an evaluation may hold at once: bounds the memory, and what fits the cache is faster.
BATCH = 1 << 16


def lower_bound(width: F64, f_a: F64, f_b: F64, a_a: F64) -> F64:
    """The least that f can be on intervals of ``width`` with end values ``f_a, f_b`` and ``A(a) = a_a``."""
    bend = a_a * width * width
    rise = f_b - f_a
    inner = np.abs(rise) < bend
    dip = np.divide(np.square(bend - rise), 4 * bend, out=np.zeros_like(bend), where=inner)
    result: F64 = np.where(inner, f_a - dip, np.minimum(f_a, f_b))
    return result


class _Best:
    """The best scale of each row so far, by ``gain = B^2 / A`` (the error is energy - gain)."""

    def __init__(self, rows: int) -> None:
        self.gain = np.zeros(rows)
        self.scale = np.zeros(rows)

    def offer(self, row: Index, a: F64, b: F64) -> None:
        gain = np.divide(b * b, a, out=np.zeros_like(a), where=a > 0)
        before = self.gain.copy()
        np.maximum.at(self.gain, row, gain)
        won = (gain == self.gain[row]) & (gain > before[row])
        self.scale[row[won]] = b[won] / a[won]


@dataclass(frozen=True)
class _Intervals:
    """``[I]`` each: row, ends, f at both ends, A at the lower end, borders from either end to infinity."""

    row: Index
    a: F64
    b: F64
    f_a: F64
    f_b: F64
    a_a: F64
    borders_a: Index
    borders_b: Index

    def only(self, kept: npt.NDArray[np.bool_] | slice) -> _Intervals:
        return _Intervals(*(getattr(self, f.name)[kept] for f in fields(self)))

    @staticmethod
    def join(parts: list[_Intervals]) -> _Intervals:
        return _Intervals(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(_Intervals)))


def optimal_scales(samples: Samples, *, qmin: int, qmax: int) -> F64:
    """``[R]`` the scale of least weighted squared error for codes ``qmin <= 0`` to ``qmax >= 0``; 0 where none helps.

    None helps where the points are all zero or all on a side that has no codes.
    """
    data = fold(samples, qmin=qmin, qmax=qmax)
    search = _Search(data, _Best(samples.values.shape[0]), batch=max(1, BATCH // data.width))
    waiting = search.cover(min(-qmin, qmax) or max(-qmin, qmax))
    few = []
    while waiting.row.size:
        waiting = search.still_open(waiting)
        many = waiting.borders_a - waiting.borders_b > data.cost
        few.append(waiting.only(~many))
        waiting = search.halve(waiting.only(many))
    rest = search.still_open(_Intervals.join(few))
    for start in range(0, rest.row.size, search.batch):
        search.sweep(search.still_open(rest.only(slice(start, start + search.batch))))
    return search.best.scale * data.unit


@dataclass(frozen=True)
class _Search:
    data: Folded
    best: _Best
    batch: int

    def cover(self, codes: int) -> _Intervals:
        """Intervals that cover ``(0, 2 max|x| / (codes + 1/2)]`` of all rows, for ``codes`` on the smaller side."""
        rows, count = self.data.energy.size, 6 + codes // 4
        # Equally spaced in 1/s, as the bound's gap asks for, to just below the scale that clips nothing.
        inverse = np.linspace(1.2 * codes + 0.5, 0.5 * (codes + 0.5), count)
        # Largest magnitudes are in [0.5, 1], or 0 where nothing is to be found.
        s = np.divide.outer(np.maximum(self.data.top, 0.25), inverse)
        s = np.concatenate([np.zeros((rows, 1)), s], axis=1)
        row = np.broadcast_to(np.arange(rows)[:, None], s.shape)
        found = self.evaluate(row.ravel(), s.ravel())
        f, a, borders = found[0].reshape(s.shape), found[1].reshape(s.shape), found[2].reshape(s.shape)
        low, high = slice(None, -1), slice(1, None)
        return _Intervals(
            row=row[:, low].ravel(),
            a=s[:, low].ravel(),
            b=s[:, high].ravel(),
            f_a=f[:, low].ravel(),
            f_b=f[:, high].ravel(),
            a_a=a[:, low].ravel(),
            borders_a=borders[:, low].ravel(),
            borders_b=borders[:, high].ravel(),
        )

    def evaluate(self, row: Index, s: F64) -> tuple[F64, F64, Index]:
        """(f, A, borders) at ``s: [I]``; offers every cell that it meets."""
        parts = []
        for start in range(0, max(1, s.size), self.batch):
            part = slice(start, start + self.batch)
            parts.append(self.data.assign(row[part], s[part]))
        a, b = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        self.best.offer(row, a, b)
        return self.data.energy[row] - 2 * s * b + s * s * a, a, np.concatenate([p[2] for p in parts])

    def still_open(self, intervals: _Intervals) -> _Intervals:
        """Those that may hold a scale that is better than the best by more than the tolerances."""
        bound = lower_bound(intervals.b - intervals.a, intervals.f_a, intervals.f_b, intervals.a_a)
        energy = self.data.energy
        wanted = (energy - self.best.gain) * (1 - TOLERANCE) - ROUNDOFF * energy
        return intervals.only(bound < wanted[intervals.row])

    def halve(self, whole: _Intervals) -> _Intervals:
        """Both halves of each."""
        s = 0.5 * (whole.a + whole.b)
        f, a, borders = self.evaluate(whole.row, s)
        left = _Intervals(whole.row, whole.a, s, whole.f_a, f, whole.a_a, whole.borders_a, borders)
        right = _Intervals(whole.row, s, whole.b, f, whole.f_b, a, borders, whole.borders_b)
        return _Intervals.join([left, right])

    def sweep(self, intervals: _Intervals) -> None:
        """Offer every cell of every interval: its borders in order, A and B by running sums."""
        found = self.data.crossings(intervals.row, intervals.a, intervals.b)
        if not found.interval.size:
            return
        place = found.x / (found.code + 0.5) / intervals.b[found.interval]
        order = np.argsort(found.interval + 0.5 * place)
        interval, w, x = found.interval[order], found.w[order], found.x[order]
        a = _running(w * (2 * found.code[order] + 1), interval, found.a)
        b = _running(w * x, interval, found.b)
        # What is left of A after the last border may be rounding noise, and so would be the gain.
        sound = a > ROUNDOFF * found.a[interval]
        self.best.offer(intervals.row[interval[sound]], a[sound], b[sound])


def _running(steps: F64, group: Index, start: F64) -> F64:
    """``start[group]`` less the sum of ``steps`` so far within the group; ``group`` ascending."""
    total = np.cumsum(steps)
    before = np.concatenate([[0.0], total])[np.searchsorted(group, np.arange(start.size))]
    result: F64 = start[group] - (total - before[group])
    return result
