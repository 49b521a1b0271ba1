"""``minmax``: nothing is clipped (Jacob et al., CVPR 2018, section 3.1; Krishnamoorthi 2018, sections 2.1 and 2.2)."""

from __future__ import annotations

from onnxq.numerics import QType
from onnxq.ranges.method import RangeMethod, activations, at_threshold
from onnxq.ranges.samples import F64, Samples


def scales(samples: Samples, qtype: QType) -> F64:
    """``[R]`` ``max|x| / qmax``."""
    return at_threshold(samples.max_abs, samples, qtype)


def ends(samples: Samples, qtype: QType) -> tuple[float, float]:
    """The data's ends."""
    return float(samples.low[0]), float(samples.high[0])


METHOD = RangeMethod("minmax", scales, activations(signed=scales, ends=ends))
