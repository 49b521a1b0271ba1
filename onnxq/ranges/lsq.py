"""``lsq`` and ``lsq+``: the starting points of learned step sizes."""

from __future__ import annotations

import numpy as np

from onnxq.numerics import QType, QuantParams, from_range, params
from onnxq.ranges import minmax
from onnxq.ranges.method import RangeMethod, activations, symmetric, usable
from onnxq.ranges.samples import F64, Samples


def lsq_scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` ``2 mean|x| / sqrt(qmax)`` (Esser et al., Learned Step Size Quantization, ICLR 2020, section 2.1)."""
    result: F64 = 2 * samples.mean(np.abs(samples.values)) / np.sqrt(qtype.qmax)
    return result


def lsq_tensor(samples: Samples, qtype: QType) -> QuantParams:
    """LSQ's step. LSQ has no zero point: data on both sides of 0 in an unsigned type gets that of ``minmax``."""
    scale = float(lsq_scales(samples, qtype)[0])
    if qtype.signed:
        return symmetric(qtype, scale)
    plain = from_range(qtype, *minmax.ends(samples, qtype))
    return params(qtype, usable(np.float64(scale)), plain.zero_point) if scale > 0 else plain


def lsq_plus_scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` ``max(|mean - 3 sigma|, |mean + 3 sigma|) / 2^(bits - 1)`` (Bhalgat et al., LSQ+, CVPRW 2020, 3.2.1)."""
    mean = samples.mean(samples.values)
    sigma = np.sqrt(samples.mean(np.square(samples.values - mean[:, None])))
    result: F64 = (np.abs(mean) + 3 * sigma) / 2 ** (qtype.bits - 1)
    return result


LSQ = RangeMethod("lsq", lsq_scales, lsq_tensor)
# LSQ+ starts activations from min-max (section 3.2.2).
LSQ_PLUS = RangeMethod("lsq+", lsq_plus_scales, activations(signed=minmax.scales, ends=minmax.ends))
