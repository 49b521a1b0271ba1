"""Moments of rows that are all at hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxq.ranges.moments import Moments, MomentSums


def moments_of(rows: npt.NDArray[np.float32], *, full: bool) -> Moments:
    """Those of ``rows: [g, R, n]``, R inputs of each group."""
    sums = MomentSums(full=full)
    sums.add(rows)
    return sums.moments()
