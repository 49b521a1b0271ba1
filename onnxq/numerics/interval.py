"""95 % confidence intervals of a mean difference between two measures of the same samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.numerics.share import LEVEL, incomplete_beta, lower_end

Array = npt.NDArray[Any]

# From this share of samples on that are the same in both the others are counted, not averaged: an interval by the
# spread of a few differences among zeros is too narrow, and without any it would be a point.
_MOSTLY_ALIKE = 0.5


def student_t(freedom: int) -> float:
    """What a mean may be off by, in standard errors, with so many degrees of freedom: 1.96 of very many."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2.0
        outside = incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + middle * middle))
        low, high = (middle, high) if outside > 1.0 - LEVEL else (low, middle)
    return high


def paired_interval(before: Array, after: Array) -> tuple[float, float]:
    """The interval of the mean of ``after - before``, both ``[samples]``; all numbers of a single sample.

    By Student's t; where most samples are the same in both, no narrower than that of two counted shares (of samples
    that lost and that gained), joined as Zou and Donner do (Construction of confidence limits about effect measures,
    Statistics in Medicine 27, 2008). Where none lost, one that does may lose as much as samples differ.
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    count = len(change)
    if count < 2:
        return -math.inf, math.inf
    mean = float(change.mean())
    wide = student_t(count - 1) * float(change.std(ddof=1)) / math.sqrt(count)
    low, high = mean - wide, mean + wide
    if np.count_nonzero(change) > (1.0 - _MOSTLY_ALIKE) * count:
        return low, high
    spread = float(np.ptp(before))
    up, down = (_contribution(np.maximum(side, 0.0), spread) for side in (change, -change))
    return (
        min(low, mean - math.hypot(down[1] - down[0], up[0] - up[2])),
        max(high, mean + math.hypot(up[1] - up[0], down[0] - down[2])),
    )


def _contribution(side: Array, spread: float) -> tuple[float, float, float]:
    """What samples with a positive entry add to the mean: measured, at most and at least."""
    count, some = len(side), int(np.count_nonzero(side))
    size = float(side[side > 0].mean()) if some else spread
    return some / count * size, (1.0 - lower_end(count - some, count)) * size, lower_end(some, count) * size
