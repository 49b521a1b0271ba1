"""Arithmetic with one constant by other parameters for the same codes.

``s (q - z) + c = s (q - (z - c / s))`` where ``s`` divides ``c``, and ``c s (q - z) = (c s) (q - z)``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxq.numerics.granularity import PerTensor
from onnxq.numerics.params import SMALLEST_SCALE, QuantParams

# How far from a whole number of steps a constant may be: float32 has seven digits.
_WHOLE = 1e-3


def whole_steps(distance: float, step: float) -> int | None:
    """How often ``step`` goes into ``distance``; None where it does not divide it."""
    count = distance / step
    return round(count) if abs(count - round(count)) < _WHOLE else None


def moved(params: QuantParams, shift: float) -> QuantParams | None:
    """The parameters by which codes of ``x`` under ``params`` are those of ``x + shift``; None where there are none."""
    if not isinstance(params.granularity, PerTensor):
        return None
    steps = whole_steps(shift, float(params.scale))
    zero = None if steps is None else int(params.zero_point) - steps
    if zero is None or not params.qtype.qmin <= zero <= params.qtype.qmax:
        return None
    return replace(params, zero_point=np.asarray(zero, params.qtype.storage))


def scaled(params: QuantParams, factor: float) -> QuantParams | None:
    """The parameters by which codes of ``x`` under ``params`` are those of ``x * factor``; None if there are none."""
    scale = np.asarray(params.scale * np.float32(factor), np.float32)
    usable = np.isfinite(scale).all() and (scale >= SMALLEST_SCALE).all()
    return replace(params, scale=scale) if factor > 0 and usable else None
