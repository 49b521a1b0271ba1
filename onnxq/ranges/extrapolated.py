"""What a tensor holds on samples that are yet to come, judged by those that were seen.

Samples differ in scale: speech in loudness, pictures in contrast. A range of least error for a few hundred of them
clips what only the loudest hold, and the next speaker is louder still. So the distribution of scales is estimated,
rather than taken to be the one that was seen: the logarithm of every sample's end gets a Gaussian kernel with the
bandwidth ``0.9 A n^(-1/5)``, ``A = min(standard deviation, interquartile range / 1.34)`` (Silverman, Density Estimation
for Statistics and Data Analysis, 1986, section 3.4.2, equation 3.31), on either side of zero by itself, and the
histogram is blurred by that kernel, in scale. Where all samples reach the same ends, as behind a normalisation or a
bounded activation, nothing changes; the fewer samples and the more they differ, the wider the range of least error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxq.ranges.histogram import Histogram
from onnxq.ranges.samples import F64, POINTS, Samples, of_histogram

# Places of the kernel, and their weights: polynomials up to degree 9 in the logarithm are averaged exactly.
_PLACES, _SHARES = np.polynomial.hermite_e.hermegauss(5)
# Scales of samples that differ beyond a few octaves come from samples of different kinds, not from one distribution.
_WIDEST = 1.0


def bandwidth(ends: npt.NDArray[np.floating]) -> float:
    """Standard deviation of the kernel on the logarithm of ``ends: [n]``, those above 0; 0.0 for fewer than two."""
    logs = np.log(ends[ends > 0], dtype=np.float64)
    if logs.size < 2:
        return 0.0
    low, high = np.quantile(logs, (0.25, 0.75))
    spread = min(float(logs.std(ddof=1)), float(high - low) / 1.34)
    width: float = 0.9 * spread * logs.size**-0.2
    return min(width, _WIDEST)


def extrapolated_range(histogram: Histogram) -> Samples:
    """As ``of_histogram``, for the distribution that samples like those of ``histogram.ends`` come from.

    Raises ``NumericsError`` where an end is NaN or infinite.
    """
    below, above = bandwidth(-histogram.ends[:, 0]), bandwidth(histogram.ends[:, 1])
    if below == above == 0.0:
        return of_histogram(histogram)
    seen = of_histogram(histogram, points=POINTS // _PLACES.size)
    x, w = seen.values[0], seen.weights[0]
    by = np.where(x < 0, np.exp(below * _PLACES)[:, None], np.exp(above * _PLACES)[:, None])
    values, weights = (x * by).reshape(-1), np.multiply.outer(_SHARES / _SHARES.sum(), w).reshape(-1)
    # Runs that ascend one after the other: the stable sort merges them.
    order = np.argsort(values, kind="stable")
    values = values[order][None]
    ends: tuple[F64, F64] = (np.minimum(seen.low, values[:, 0]), np.maximum(seen.high, values[:, -1]))
    return Samples(values, weights[order][None], *ends)
