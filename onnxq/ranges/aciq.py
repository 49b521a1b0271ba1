"""``aciq``: the clipping value that is optimal for a fitted Gauss or Laplace law.

Banner et al., Post training 4-bit quantization of convolutional networks for rapid deployment, NeurIPS 2019, section 3
(first as ACIQ, 2018). For M bits the expected error of clipping at +-alpha is

    Laplace(b):    2 b^2 exp(-alpha / b)                                                       + alpha^2 / (3 * 4^M)
    Gauss(sigma):  (alpha^2 + sigma^2) erfc(alpha / (sqrt(2) sigma))
                   - sqrt(2 / pi) alpha sigma exp(-alpha^2 / (2 sigma^2))                      + alpha^2 / (3 * 4^M)

Each law gets its best alpha; the law with the smaller expected error is taken, as in the authors' released code. Data on one
side of 0 is taken as half of a symmetric law, quantized with one bit more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from onnxq.numerics import QType
from onnxq.ranges.method import RangeMethod, activations, at_threshold
from onnxq.ranges.samples import F64, Samples


def laplace_error(alpha: float, bits: int) -> float:
    """Expected squared error at b = 1."""
    return 2 * math.exp(-alpha) + alpha**2 / (3 * 4.0**bits)


def gauss_error(alpha: float, bits: int) -> float:
    """Expected squared error at sigma = 1."""
    tail = (alpha**2 + 1) * math.erfc(alpha / math.sqrt(2))
    return tail - math.sqrt(2 / math.pi) * alpha * math.exp(-(alpha**2) / 2) + alpha**2 / (3 * 4.0**bits)


@cache
def best_laplace(bits: int) -> float:
    """The alpha of least ``laplace_error``."""
    return _root(lambda t: t / (3 * 4.0**bits) - math.exp(-t))


@cache
def best_gauss(bits: int) -> float:
    """The alpha of least ``gauss_error``."""
    return _root(
        lambda t: t * math.erfc(t / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-t * t / 2) + t / (3 * 4.0**bits)
    )


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 64.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return high


def clipping(samples: Samples, centre: F64, bits: int) -> F64:
    """``[R]`` alpha around ``centre: [R]``."""
    apart = np.abs(samples.values - centre[:, None])
    b = samples.mean(apart)
    variance = samples.mean(np.square(apart))
    laplace, gauss = best_laplace(bits), best_gauss(bits)
    pointed = b * b * laplace_error(laplace, bits) < variance * gauss_error(gauss, bits)
    result: F64 = np.where(pointed, b * laplace, np.sqrt(variance) * gauss)
    return result


def scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` alpha / qmax."""
    return at_threshold(clipping(samples, samples.mean(samples.values), qtype.bits), samples, qtype)


def ends(samples: Samples, qtype: QType) -> tuple[float, float]:
    """``mean +- alpha``, or 0 and alpha on one side."""
    one_sided = samples.low[0] >= 0 or samples.high[0] <= 0
    centre = np.zeros(1) if one_sided else samples.mean(samples.values)
    alpha = float(clipping(samples, centre, qtype.bits + int(one_sided))[0])
    return float(centre[0]) - alpha, float(centre[0]) + alpha


METHOD = RangeMethod("aciq", scales, activations(signed=scales, ends=ends))
