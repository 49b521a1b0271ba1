"""``entropy``: the threshold whose quantized histogram is nearest in Kullback-Leibler divergence.

Migacz, 8-bit Inference with TensorRT, GTC 2017, pages 22 to 39: a histogram of ``|x|`` with 2048 bins; for every
number i of bins kept, P is the first i bins with all outliers put in the last one, Q the first i bins merged to as
many as there are codes and spread again over the bins that hold something; the i with the least KL(P || Q) gives the
threshold. The first bin is given the count of the second, as NVIDIA's pytorch-quantization does: the zeros that a ReLU
leaves there would otherwise decide alone, and they cost nothing at any threshold.
"""

from __future__ import annotations

import numpy as np

from onnxq.numerics import QType
from onnxq.ranges.method import RangeMethod, activations, at_threshold
from onnxq.ranges.samples import F64, Samples

BINS = 2048


def divergences(counts: F64, levels: int) -> F64:
    """``[BINS - levels + 1]`` KL(P || Q) for ``levels, levels + 1, .., BINS`` bins kept of ``counts: [BINS]``.

    Infinite where Q is zero and P is not: the last bin is empty but has outliers to take.
    """
    kept = np.arange(levels, counts.size + 1)
    upto = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0.0], np.cumsum(counts > 0)])
    upto_log = np.concatenate([[0.0], np.cumsum(_xlogx(counts))])

    # Group g of candidate i takes the bins from floor(g i / levels) on.
    edges = np.arange(levels + 1) * kept[:, None] // levels
    group = np.diff(upto[edges], axis=1)
    bins = np.maximum(np.diff(filled[edges], axis=1), 1.0)
    level = group / bins

    last = counts[kept - 1]
    outliers: F64 = upto[-1] - upto[kept]
    p_log_p = upto_log[kept - 1] + _xlogx(last + outliers)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_log_q = (group * np.log(np.where(level > 0, level, 1.0))).sum(axis=1) + outliers * np.log(level[:, -1])
    result: F64 = (
        (p_log_p - p_log_q) / upto[-1] - np.log(upto[-1]) + np.log(np.maximum(upto[kept], np.finfo(float).tiny))
    )
    impossible = (outliers > 0) & (last == 0)
    clean: F64 = np.where(impossible | np.isnan(result), np.inf, result)
    return clean


def _xlogx(x: F64) -> F64:
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)), np.float64)


def thresholds(samples: Samples, levels: int) -> F64:
    """``[R]`` the best threshold for ``levels`` codes on one side of 0."""
    result: F64 = samples.max_abs.copy()
    for r in np.flatnonzero(result > 0):
        scaled = np.abs(samples.values[r]) / result[r] * BINS
        bins = np.minimum(scaled.astype(np.intp), BINS - 1)
        counts = np.bincount(bins, samples.weights[r], minlength=BINS).astype(np.float64)
        if counts[1:].any():
            counts[0] = counts[1]
        found = divergences(counts, levels)
        result[r] *= (levels + int(np.argmin(found))) / BINS
    return result


def scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` threshold / qmax."""
    return at_threshold(thresholds(samples, qtype.qmax + 1), samples, qtype)


def ends(samples: Samples, qtype: QType) -> tuple[float, float]:
    """``+-threshold``; data on one side of 0 has all the codes on it."""
    one_sided = samples.low[0] >= 0 or samples.high[0] <= 0
    threshold = float(thresholds(samples, qtype.levels if one_sided else qtype.levels // 2)[0])
    return -threshold, threshold


METHOD = RangeMethod("entropy", scales, activations(signed=scales, ends=ends))
