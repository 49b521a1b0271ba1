"""Rows of points by magnitude, and the two ways to find the codes nearest at a scale: by border and by point.

Symmetric codes act on magnitudes, so that values are folded to ``|x|``: half the borders. The codes 1 .. ``short``
exist on both sides of 0; up to ``long`` only on one side (int4 has -8 but no +8, unsigned types have no negative code
at all).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from onnxq.numerics import round_half_even
from onnxq.ranges.places import Places
from onnxq.ranges.samples import F64, Index, Samples

# Points of a row, for each code, below which rounding every point is faster than searching every border.
BY_POINT_PER_CODE = 16


class Crossings(NamedTuple):
    """The borders between codes inside some intervals of scales, in no order.

    ``interval, w, x, code: [T]`` say for each border which interval holds it and which point (weight, magnitude) goes
    there from ``code + 1`` to ``code``; ``a, b: [I]`` are the sums A and B at the lower ends, with the same codes.
    """

    interval: Index
    w: F64
    x: F64
    code: F64
    a: F64
    b: F64


class Folded(Protocol):
    """What the search needs to know of ``R`` rows; magnitudes are divided by ``unit`` to lie in [0, 1]."""

    energy: F64  # [R] sum of w x^2
    top: F64  # [R] largest magnitude
    unit: F64  # [R] powers of two
    width: int  # numbers that the evaluation of one scale holds
    cost: int  # work of one evaluation, in borders that could be sorted meanwhile

    def assign(self, row: Index, s: F64) -> tuple[F64, F64, Index]:
        """(A, B, borders) at ``s: [I]`` of ``row: [I]``; the last counts the borders from s to infinity."""

    def crossings(self, row: Index, low: F64, high: F64) -> Crossings:
        """The borders in ``(low, high]: [I]`` of ``row: [I]``."""


def fold(samples: Samples, *, qmin: int, qmax: int) -> Folded:
    """``samples`` folded for codes from ``qmin <= 0`` to ``qmax >= 0``."""
    largest = np.maximum(np.abs(samples.values[:, :1]), np.abs(samples.values[:, -1:]))
    unit = np.ldexp(1.0, np.frexp(largest)[1])
    signed = samples.values / unit
    # Weights of mean 1 keep the sums near the values' size, whatever the unit of the importance.
    w = samples.weights * (samples.weights.shape[1] / samples.weights.sum(axis=1, keepdims=True))
    if samples.values.shape[1] < BY_POINT_PER_CODE * max(-qmin, qmax):
        return ByPoint(signed, w, unit[:, 0], qmin=qmin, qmax=qmax)
    return ByBorder(signed, w, unit[:, 0], qmin=qmin, qmax=qmax)


class ByPoint:
    """Rounds every point: O(n) for a scale. For rows with few points for the number of codes."""

    def __init__(self, signed: F64, w: F64, unit: F64, *, qmin: int, qmax: int) -> None:
        self.x, self.w, self.unit = np.abs(signed), w, unit
        self.highest = np.where(signed > 0, float(qmax), float(-qmin))
        # What all points share need not be looked up for each: this is the inner loop, and the usual case.
        self.same_weight, self.same_highest = bool((w == 1).all()), qmax == -qmin
        self.energy = np.einsum("rn,rn,rn->r", w, self.x, self.x)
        self.top = self.x.max(axis=1)
        self.width = signed.shape[1]
        self.cost = max(2, self.width // 16)

    def _codes(self, row: Index, s: F64, x: F64) -> F64:
        inverse = np.divide(1.0, s, out=np.full_like(s, np.inf), where=s > 0)
        with np.errstate(invalid="ignore"):  # infinity times 0, mended below
            codes: F64 = x * inverse[:, None]
            round_half_even(codes, out=codes)
        np.minimum(codes, self.highest[:1, :1] if self.same_highest else self.highest[row], out=codes)
        at_zero = np.flatnonzero(s == 0)
        codes[at_zero] = np.where(x[at_zero] == 0, 0.0, codes[at_zero])
        return codes

    def _sums(self, row: Index, q: F64, x: F64) -> tuple[F64, F64]:
        weighted = q if self.same_weight else q * self.w[row]
        return np.einsum("in,in->i", weighted, q), np.einsum("in,in->i", weighted, x)

    def assign(self, row: Index, s: F64) -> tuple[F64, F64, Index]:
        x = self.x[row]
        q = self._codes(row, s, x)
        return *self._sums(row, q, x), q.sum(axis=1).astype(np.intp)

    def crossings(self, row: Index, low: F64, high: F64) -> Crossings:
        x = self.x[row]
        above, below = self._codes(row, low, x), self._codes(row, high, x)
        which, nth = expand((above - below).astype(np.intp).ravel())
        interval = which // self.width
        w = np.ones(which.size) if self.same_weight else self.w[row].ravel()[which]
        code = below.ravel()[which] + nth
        return Crossings(interval, w, x.ravel()[which], code, *self._sums(row, above, x))


class ByBorder:
    """Finds every border among the sorted points: O(codes log n) for a scale, whatever the number of points.

    All rows lie in one flat array, so that one binary search serves them all: magnitudes of row r are shifted by 2 r.
    The shift costs trailing bits of a position, so a point may be put on the wrong side of a border that it all but
    touches; there both sides have the same error to 1e-11 of the row's largest value. The sums are of the values
    themselves.
    """

    def __init__(self, signed: F64, w: F64, unit: F64, *, qmin: int, qmax: int) -> None:
        # Two sorted runs, one of them backwards: the stable sort merges them in linear time.
        order = np.argsort(np.abs(signed), axis=1, kind="stable")
        signed = np.take_along_axis(signed, order, axis=1)
        w = np.take_along_axis(w, order, axis=1)
        x = np.abs(signed)
        self.rows, self.n = x.shape
        self.short, self.long = min(-qmin, qmax), max(-qmin, qmax)
        self.unit, self.top = unit, x[:, -1]
        self.width, self.cost = self.long, max(2, self.long // 2)
        self.first_above_0 = np.count_nonzero(x == 0, axis=1) + self.n * np.arange(self.rows)
        self.energy = np.einsum("rn,rn,rn->r", w, x, x)
        keys = (x + 2.0 * np.arange(self.rows)[:, None]).ravel()
        self.places: Callable[[F64], Index] = Places(keys) if self.rows == 1 else keys.searchsorted
        self.x, self.w = x.ravel(), w.ravel()
        # Sums over the points from an index to the end of the row, [R * (n + 1)].
        self.sum_w, self.sum_wx = _sums_above(w), _sums_above(w * x)
        self.w_long, self.sum_w_long, self.sum_wx_long = self.w, self.sum_w, self.sum_wx
        if self.short < self.long:  # the codes above ``short`` see only the points of the side that has them
            one_sided = w * ((signed > 0) if qmax > -qmin else (signed < 0))
            self.w_long = one_sided.ravel()
            self.sum_w_long, self.sum_wx_long = _sums_above(one_sided), _sums_above(one_sided * x)

    def _positions(self, row: Index, s: F64) -> Index:
        """``[I, long]`` flat index of the first point above each border ``(k + 1/2) s``; at s = 0 the first above 0."""
        borders = np.multiply.outer(s, np.arange(self.long) + 0.5)
        np.minimum(borders, 1.5, out=borders)
        borders += 2.0 * row[:, None]
        at = self.places(borders)
        at[s == 0] = self.first_above_0[row[s == 0], None]
        return at

    def _sums(self, row: Index, at: Index) -> tuple[F64, F64]:
        at = at + row[:, None]
        odd = 2.0 * np.arange(self.long) + 1.0
        m = self.short
        a = self.sum_w[at[:, :m]] @ odd[:m] + self.sum_w_long[at[:, m:]] @ odd[m:]
        b = self.sum_wx[at[:, :m]].sum(axis=1) + self.sum_wx_long[at[:, m:]].sum(axis=1)
        return a, b

    def assign(self, row: Index, s: F64) -> tuple[F64, F64, Index]:
        at = self._positions(row, s)
        a, b = self._sums(row, at)
        return a, b, (row + 1) * (self.n * self.long) - at.sum(axis=1)

    def crossings(self, row: Index, low: F64, high: F64) -> Crossings:
        first = self._positions(row, low)
        count = (self._positions(row, high) - first).ravel()
        which, nth = expand(count)
        point = first.ravel()[which] + nth
        interval, code = np.divmod(which, self.long)
        w = np.where(code < self.short, self.w[point], self.w_long[point])
        return Crossings(interval, w, self.x[point], code.astype(np.float64), *self._sums(row, first))


def _sums_above(values: F64) -> F64:
    rows, n = values.shape
    sums = np.zeros((rows, n + 1))
    sums[:, :n] = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return sums.ravel()


def expand(count: Index) -> tuple[Index, Index]:
    """Each index i of ``count`` repeated ``count[i]`` times, and which repetition it is."""
    which = np.repeat(np.arange(count.size), count)
    return which, np.arange(which.size) - np.repeat(np.cumsum(count) - count, count)
