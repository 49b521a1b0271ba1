"""``sawb``: clipping as a linear function of the first two absolute moments.

Choi et al., Accurate and efficient 2-bit quantized neural networks, MLSys 2019, section 3.1: ``alpha = c1 sqrt(E[x^2])
+ c2 E|x|``, with coefficients regressed on the best clipping of six standard laws.
"""

from __future__ import annotations

import numpy as np

from onnxq.numerics import QType
from onnxq.ranges.method import RangeMethod, activations, at_threshold
from onnxq.ranges.samples import F64, Samples

# Bits that the authors' released code has coefficients for; those between 5 and 8 are interpolated.
COEFFICIENTS = {2: (3.12, -2.064), 3: (7.509, -6.892), 4: (12.68, -12.80), 5: (17.74, -18.64), 8: (31.76, -35.04)}


def clipping(samples: Samples, bits: int) -> F64:
    """``[R]`` alpha."""
    known = sorted(COEFFICIENTS)
    c1, c2 = (float(np.interp(bits, known, [COEFFICIENTS[k][i] for k in known])) for i in range(2))
    result: F64 = c1 * np.sqrt(samples.mean(np.square(samples.values))) + c2 * samples.mean(np.abs(samples.values))
    return result


def scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` alpha / qmax; ``max|x| / qmax`` where the moments are so equal that alpha is negative."""
    return at_threshold(clipping(samples, qtype.bits), samples, qtype)


def ends(samples: Samples, qtype: QType) -> tuple[float, float]:
    """``+-alpha``; SAWB is made for weights, and with these ends it can be asked for everywhere."""
    alpha = float(at_threshold(clipping(samples, qtype.bits), samples, qtype)[0]) * qtype.qmax
    return -alpha, alpha


METHOD = RangeMethod("sawb", scales, activations(signed=scales, ends=ends))
