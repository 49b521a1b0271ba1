"""``grid``: the best of 100 equally spaced clipping ranges, which other tools call MSE.

As in BRECQ (Li et al., ICLR 2021, released code: 80 shrunken ranges), PPQ, AIMET and MQBench; every candidate
quantizes all points. Both ends shrink together, so that neither the shape of the range nor its steps are free.
"""

from __future__ import annotations

import numpy as np

from onnxq.numerics import QType, QuantParams, from_range
from onnxq.ranges import minmax
from onnxq.ranges.error import squared_error, tensor_error
from onnxq.ranges.method import RangeMethod, symmetric
from onnxq.ranges.samples import F64, Samples

CANDIDATES = 100


def scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` the best of ``i / 100`` of the min-max scale."""
    widest = np.where(samples.max_abs > 0, minmax.scales(samples, qtype), 1.0)
    best, least = widest, np.full(widest.shape, np.inf)
    for i in range(1, CANDIDATES + 1):
        candidate = widest * (i / CANDIDATES)
        found = squared_error(samples, candidate, lowest=qtype.qmin, highest=qtype.qmax)
        best, least = np.where(found <= least, candidate, best), np.minimum(found, least)
    return np.where(samples.max_abs > 0, best, 0.0)


def tensor(samples: Samples, qtype: QType) -> QuantParams:
    """The best of ``i / 100`` of both ends."""
    if qtype.signed:
        return symmetric(qtype, float(scales(samples, qtype)[0]))
    low, high = minmax.ends(samples, qtype)
    tried = [from_range(qtype, low * i / CANDIDATES, high * i / CANDIDATES) for i in range(1, CANDIDATES + 1)]
    return min(reversed(tried), key=lambda p: tensor_error(samples, p))


METHOD = RangeMethod("grid", scales, tensor)
