"""What a range method is: two functions of ``Samples`` and a type, one for weights and one for activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxq.numerics import QType, QuantParams, from_range, params
from onnxq.ranges.samples import F64, Samples

# [R] scales for zero point 0. At most 0, or NaN, where the row gives no reason for any scale (it is all zero).
Scales = Callable[[Samples, QType], F64]
# Per-tensor parameters from the one row of the samples; symmetric where the type is signed.
Tensor = Callable[[Samples, QType], QuantParams]


@dataclass(frozen=True)
class RangeMethod:
    """A named way to choose ranges: ``weights`` gives scales of rows, ``activations`` one tensor's parameters.

    ``extrapolated``: whether it seeks what is best for samples that are yet to come, where it is told what those are
    like.
    """

    name: str
    weights: Scales
    activations: Tensor
    extrapolated: bool = False


def activations(*, signed: Scales, ends: Callable[[Samples, QType], tuple[float, float]]) -> Tensor:
    """The usual way to choose activation parameters: ``signed`` for signed types, for unsigned ones the range ``ends``.

    ``ends`` are widened to contain 0 and never exceed the data's own ends.
    """

    def choose(samples: Samples, qtype: QType) -> QuantParams:
        if qtype.signed:
            return symmetric(qtype, float(signed(samples, qtype)[0]))
        return within(samples, qtype, *ends(samples, qtype))

    return choose


def within(samples: Samples, qtype: QType, low: float, high: float) -> QuantParams:
    """Asymmetric parameters for ``[low, high]``, cut to the ends of the one row of ``samples``."""
    return from_range(qtype, max(low, float(samples.low[0])), min(high, float(samples.high[0])))


def symmetric(qtype: QType, scale: float) -> QuantParams:
    """Per-tensor parameters with zero point 0; scale 1 where ``scale`` is not positive (an all-zero tensor)."""
    return params(qtype, usable(np.float64(scale)) if scale > 0 else 1.0)


def usable(scale: F64 | np.float64) -> F64:
    """``scale`` kept where float32 is normal: a denormal scale would be flushed to zero by some runtimes."""
    info = np.finfo(np.float32)
    return np.asarray(np.clip(scale, info.tiny, info.max), np.float64)


def for_dead_parts(scale: F64, qtype: QType) -> F64:
    """``scale`` of the parts of a weight, with those of parts of zeros, which are 0, replaced.

    Their codes are 0 whatever the scale, but the step of an int32 bias is this scale times the input's, and must be
    neither so small that the bias overflows nor much coarser than its neighbours': the largest of the other parts.
    Where all parts are zero, that of values up to 1.
    """
    live = scale > 0
    filled = np.where(live, usable(scale), scale.max(where=live, initial=0.0) if live.any() else 1.0 / qtype.qmax)
    return usable(filled)


def at_threshold(threshold: F64, samples: Samples, qtype: QType) -> F64:
    """``[R]`` the scale that puts the highest code at ``threshold: [R]``, or at ``max|x|`` where that is useless.

    Thresholds from fitted statistics can be 0, negative or NaN, and can lie beyond the data, where they only waste
    codes.
    """
    limit = samples.max_abs
    sound = (threshold > 0) & (threshold < limit)
    result: F64 = np.where(sound, threshold, limit) / qtype.qmax
    return result
