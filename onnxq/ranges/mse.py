"""``mse``: the range of least mean squared error, exactly. The searches and their proofs: ``optimum``, ``optimum_asymmetric``."""

from __future__ import annotations

import numpy as np

from onnxq.numerics import QType, QuantParams, params
from onnxq.ranges.method import RangeMethod, symmetric, usable
from onnxq.ranges.optimum import optimal_scales
from onnxq.ranges.optimum_asymmetric import optimal_pair
from onnxq.ranges.samples import F64, Samples


def scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` the scales of least weighted squared error; 0 for rows of zeros."""
    return optimal_scales(samples, qmin=qtype.qmin, qmax=qtype.qmax)


def tensor(samples: Samples, qtype: QType) -> QuantParams:
    """The scale, for unsigned types with the zero point, of least weighted squared error."""
    if qtype.signed:
        return symmetric(qtype, float(scales(samples, qtype)[0]))
    pair = optimal_pair(samples, steps=qtype.qmax - qtype.qmin)
    scale = usable(np.float64(pair.scale)) if pair.scale > 0 else 1.0
    return params(qtype, scale, qtype.qmin + pair.negative)


METHOD = RangeMethod("mse", scales, tensor)
