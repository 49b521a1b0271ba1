"""``aciq``: the clipping value that is optimal for a fitted Gauss or Laplace law.

Banner et al., Post training 4-bit quantization of convolutional networks for rapid deployment, NeurIPS 2019, section 3
(first as ACIQ, 2018). For M bits the expected error of clipping at +-alpha is

    Laplace(b):    2 b^2 exp(-alpha / b)                                                       + alpha^2 / (3 * 4^M)
    Gauss(sigma):  (alpha^2 + sigma^2) erfc(alpha / (sqrt(2) sigma))
                   - sqrt(2 / pi) alpha sigma exp(-alpha^2 / (2 sigma^2))                      + alpha^2 / (3 * 4^M)

Each law gets its best alpha; the one that fits is taken, which the authors' released code decides by the error measured
on the data. Data on one side of 0 is taken as half of a symmetric law, quantized with one bit more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from onnxq.numerics import QType, QuantParams
from onnxq.ranges.error import squared_error, tensor_error
from onnxq.ranges.method import RangeMethod, at_threshold, symmetric, within
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


def clippings(samples: Samples, centre: F64, bits: int) -> tuple[F64, F64]:
    """``[R]`` alpha around ``centre: [R]`` for a Laplace and for a Gauss law."""
    apart = np.abs(samples.values - centre[:, None])
    sigma = np.sqrt(samples.mean(np.square(apart)))
    return samples.mean(apart) * best_laplace(bits), sigma * best_gauss(bits)


def scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` alpha / qmax."""
    laplace, gauss = (
        np.where(samples.max_abs > 0, at_threshold(alpha, samples, qtype), 1.0)
        for alpha in clippings(samples, samples.mean(samples.values), qtype.bits)
    )
    errors = (squared_error(samples, s, lowest=qtype.qmin, highest=qtype.qmax) for s in (laplace, gauss))
    return np.where(samples.max_abs > 0, np.where(np.less(*errors), laplace, gauss), 0.0)


def tensor(samples: Samples, qtype: QType) -> QuantParams:
    """``mean +- alpha``, or 0 to alpha on one side; around 0 for signed types."""
    if qtype.signed:
        return symmetric(qtype, float(scales(samples, qtype)[0]))
    one_sided = samples.low[0] >= 0 or samples.high[0] <= 0
    centre = np.zeros(1) if one_sided else samples.mean(samples.values)
    fits = [
        within(samples, qtype, float((centre - alpha)[0]), float((centre + alpha)[0]))
        for alpha in clippings(samples, centre, qtype.bits + int(one_sided))
    ]
    return min(fits, key=lambda p: tensor_error(samples, p))


METHOD = RangeMethod("aciq", scales, tensor)
