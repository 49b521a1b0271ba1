"""Finding values among sorted points."""

from __future__ import annotations

import numpy as np

from onnxq.ranges.samples import F64, Index

# Cells of the table that finds points, and points in one of them up to which it beats halving.
CELLS = 1 << 14
MOST_IN_A_CELL = 3


class Places:
    """``x.searchsorted`` for ascending points that are spread evenly enough, by a table in place of halving.

    The points of a histogram are: a few to each of ``CELLS`` equal cells. Elsewhere the usual search serves. A value
    within rounding of a cell's end may be put on the wrong side of a point that it all but touches, where both sides
    have the same error.
    """

    def __init__(self, x: F64) -> None:
        self.x = np.append(x, np.inf)
        self.start, span = float(x[0]), float(x[-1] - x[0])
        self.per_unit = CELLS / span if span > 0 else 0.0
        self.first = x.searchsorted(self.start + np.arange(CELLS + 1) * (span / CELLS))
        # What equals the last point lies at the end of the last cell, and several may.
        self.most = int(np.diff(np.append(self.first, x.size)).max()) if span > 0 else x.size

    def __call__(self, values: F64) -> Index:
        if self.most > MOST_IN_A_CELL:
            return self.x[:-1].searchsorted(values)
        cells = (values - self.start) * self.per_unit
        np.clip(cells, 0, CELLS, out=cells)
        at: Index = self.first[cells.astype(np.intp)]
        for _ in range(self.most):
            at += self.x[at] < values
        return at
