"""Statistics of a tensor that stream: a histogram of one array, and the merge of two histograms.

Together they form a monoid: however the data is cut into arrays, merging gives the same histogram, because the bins
lie on a dyadic grid whose width follows from the largest magnitude alone (see ``ranges.Histogram``). What tells of the
arrays, and not of their elements, are the ends of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import DataError
from onnxq.numerics import spread_step
from onnxq.ranges.histogram import Histogram

# The largest magnitude falls between bins 2**11 and 2**12: eight to sixteen bins for each code of an unsigned 8-bit
# range, so that treating a bin as its centre changes the error of a candidate range by less than two percent.
RESOLUTION_BITS = 12

# Elements counted of one array: over a few dozen samples they add up to a million. The exact ends come from all of it.
SAMPLE_LIMIT = 1 << 14

_SMALLEST_EXPONENT = -120


# Numbers at and below this are no values: like minus infinity they hide what they are added to. No activation of a
# network is as low, and no range that reaches there leaves the others a single code.
MASK = -1e9


def ends_of(array: npt.NDArray[Any]) -> tuple[float, float]:
    """The lowest and the highest element of ``array``, which is not empty; NaN where there is one."""
    return float(array.min()), float(array.max())


def is_mask(array: npt.NDArray[Any], ends: tuple[float, float] | None = None) -> bool:
    """Whether ``array`` holds an infinity or a number that stands for one: no range covers it.

    ``ends``: those of ``array``, where they are known.
    """
    if array.size == 0:
        return False
    low, high = ends or ends_of(array)
    if math.isnan(low):  # which says nothing
        low, high = float(np.fmin.reduce(array, axis=None)), float(np.fmax.reduce(array, axis=None))
    return low <= MASK or high == math.inf


def observe(
    array: npt.NDArray[Any],
    *,
    tensor: str,
    limit: int = SAMPLE_LIMIT,
    undefined: Callable[[str], None] | None = None,
    ends: tuple[float, float] | None = None,
) -> Histogram | None:
    """The ``Histogram`` of ``array`` (any shape, float), or None where it is empty.

    Of more than ``limit`` elements an evenly spread, deterministic part is counted. NaN is counted as nothing, after
    ``undefined`` was called, if there is such a function. ``ends`` as in ``is_mask``: to look for them takes longer
    than all the rest. Raises ``DataError`` naming ``tensor`` for infinity.
    """
    if array.size == 0:
        return None
    low, high = ends or ends_of(array)
    if math.isnan(low):
        if undefined is not None:
            undefined(tensor)
        return observe(array[~np.isnan(array)], tensor=tensor, limit=limit)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            f"tensor '{tensor}' holds infinity on calibration data",
            hint="check the input values and the preprocessing, or exclude the nodes that read it with --exclude",
        )
    flat = array.reshape(-1)
    if flat.size > limit:
        flat = flat[:: spread_step(flat.size, limit)]
    exponent = _exponent(max(abs(low), abs(high)))
    # Scaling by a power of two is exact, so that the bin of a value never depends on the batch it came in.
    index = np.floor(flat * np.float32(2.0**-exponent)).astype(np.int32)
    first = int(index.min())
    counts = np.bincount(index - first).astype(np.int64)
    return Histogram(counts, first, exponent, low, high, np.asarray([[low, high]], np.float32))


def merge(a: Histogram | None, b: Histogram | None) -> Histogram | None:
    """The histogram of the data of both; None is the histogram of no data."""
    if a is None or b is None:
        return b if a is None else a
    exponent = max(a.exponent, b.exponent)
    (ca, fa), (cb, fb) = _coarsened(a, exponent), _coarsened(b, exponent)
    first = min(fa, fb)
    counts = np.zeros(max(fa + ca.size, fb + cb.size) - first, np.int64)
    counts[fa - first : fa - first + ca.size] += ca
    counts[fb - first : fb - first + cb.size] += cb
    ends = np.concatenate([a.ends, b.ends])
    return Histogram(counts, first, exponent, min(a.low, b.low), max(a.high, b.high), ends)


def _exponent(magnitude: float) -> int:
    if magnitude == 0.0:
        return _SMALLEST_EXPONENT
    return max(math.frexp(magnitude)[1] - RESOLUTION_BITS, _SMALLEST_EXPONENT)


def _coarsened(h: Histogram, exponent: int) -> tuple[npt.NDArray[np.int64], int]:
    """Counts and first bin of ``h`` on the wider grid of ``exponent``: whole bins are joined."""
    shift = exponent - h.exponent
    if shift == 0:
        return h.counts, h.first
    if shift >= 31:  # all of it lies in the bins next to zero
        negative = int(h.counts[: max(0, -h.first)].sum())
        positive = int(h.counts.sum()) - negative
        return np.array([negative, positive], np.int64), -1
    index = (h.first + np.arange(h.counts.size)) >> shift
    first = int(index[0])
    joined = np.zeros(int(index[-1]) - first + 1, np.int64)
    np.add.at(joined, index - first, h.counts)
    return joined, first
