"""``percentile``: the range that a share of the elements lies in (McKinstry et al. 2018, 3.2; Wu et al. 2020, 3.2).

``percentile:P`` keeps P percent, ``percentile`` 99.99. Symmetric types cut the magnitudes, unsigned types half of the
rest at each end of data that has two signs, all of it at the top of data that has one.
"""

from __future__ import annotations

import numpy as np

from onnxq.errors import ConfigError
from onnxq.numerics import QType
from onnxq.ranges.method import RangeMethod, activations, at_threshold
from onnxq.ranges.samples import F64, Samples

DEFAULT_PERCENT = 99.99


def method(percent: float = DEFAULT_PERCENT) -> RangeMethod:
    """The method that keeps ``percent`` of the elements; raises ``ConfigError`` unless ``0 < percent <= 100``."""
    if not 0 < percent <= 100:
        raise ConfigError(f"a percentile lies in (0, 100], not at {percent}")
    share = percent / 100

    def scales(samples: Samples, qtype: QType) -> F64:
        return at_threshold(quantile(samples.magnitudes(), share), samples, qtype)

    def ends(samples: Samples, qtype: QType) -> tuple[float, float]:
        cut = 1 - share
        sides = int(samples.low[0] < 0) + int(samples.high[0] > 0)
        low = quantile(samples, cut / sides)[0] if samples.low[0] < 0 else 0.0
        high = quantile(samples, 1 - cut / sides)[0] if samples.high[0] > 0 else 0.0
        return float(low), float(high)

    name = "percentile" if percent == DEFAULT_PERCENT else f"percentile:{percent:g}"
    return RangeMethod(name, scales, activations(signed=scales, ends=ends))


def quantile(samples: Samples, share: float) -> F64:
    """``[R]`` the smallest value that ``share`` of the weight does not exceed; the exact high end for all of it."""
    sums = np.cumsum(samples.weights, axis=1)
    index = np.count_nonzero(sums < share * sums[:, -1:], axis=1)
    inside = np.take_along_axis(samples.values, np.minimum(index, sums.shape[1] - 1)[:, None], axis=1)[:, 0]
    return samples.high if share >= 1 else inside


METHOD = method()
