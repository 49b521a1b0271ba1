"""The weighted squared error of a given scale, by quantizing every point: for the methods that try a few candidates."""

from __future__ import annotations

import numpy as np

from onnxq.numerics import QuantParams, round_half_even
from onnxq.ranges.samples import F64, Samples


def squared_error(samples: Samples, scale: F64, *, lowest: int, highest: int) -> F64:
    """``[R]`` weighted squared error at ``scale: [R]``, above 0, for codes from ``lowest`` to ``highest`` around 0."""
    s = scale[:, None]
    codes = round_half_even(samples.values / s)
    np.clip(codes, lowest, highest, out=codes)
    codes *= s
    codes -= samples.values
    result: F64 = np.einsum("rn,rn,rn->r", samples.weights, codes, codes)
    return result


def tensor_error(samples: Samples, parameters: QuantParams) -> float:
    """Weighted squared error of per-tensor ``parameters`` on the one row of ``samples``."""
    zero = int(parameters.zero_point)
    lowest, highest = parameters.qtype.qmin - zero, parameters.qtype.qmax - zero
    return float(squared_error(samples, parameters.scale.astype(np.float64)[None], lowest=lowest, highest=highest)[0])
