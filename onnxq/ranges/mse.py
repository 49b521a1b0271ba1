"""``mse``: the range of least mean squared error, exactly. Searches and proofs: ``optimum``, ``optimum_asymmetric``."""

from __future__ import annotations

import numpy as np

from onnxq.numerics import QType, QuantParams, params
from onnxq.ranges import minmax
from onnxq.ranges.method import RangeMethod, symmetric, usable
from onnxq.ranges.optimum import optimal_scales
from onnxq.ranges.optimum_asymmetric import optimal_pair
from onnxq.ranges.samples import F64, Samples


def scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` the scales of least weighted squared error; 0 for rows of zeros."""
    return optimal_scales(samples, qmin=qtype.qmin, qmax=qtype.qmax)


def tensor(samples: Samples, qtype: QType) -> QuantParams:
    """The scale, for unsigned types with the zero point, of least weighted squared error.

    Where all points are 0 that is any; then the data's ends decide, which may know of elements that were not sampled.
    """
    if not samples.values.any():
        return minmax.METHOD.activations(samples, qtype)
    if qtype.signed:
        return symmetric(qtype, float(scales(samples, qtype)[0]))
    pair = optimal_pair(samples, steps=qtype.qmax - qtype.qmin)
    return params(qtype, usable(np.float64(pair.scale)), qtype.qmin + pair.negative)


METHOD = RangeMethod("mse", scales, tensor, extrapolated=True)
