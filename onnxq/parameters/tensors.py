"""Parameters of the activations and of the constant operands of a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.errors import DataError, ModelError
from onnxq.numerics import QuantParams
from onnxq.plan.types import Own, Plan, Point
from onnxq.query import array
from onnxq.ranges import activation_params
from onnxq.ranges.histogram import Histogram

F32 = npt.NDArray[np.float32]


def tensor_params(
    values: Mapping[str, ir.Value],
    plan: Plan,
    statistics: Statistics,
    config: Config,
    known: Collection[str],
    *,
    ahead: bool,
) -> dict[str, QuantParams]:
    """Parameters of the activations and of the constant operands that are not ``known``."""
    found = {
        point.tensor: _activation(point, statistics.histograms, config, ahead)
        for point in plan.points
        if isinstance(point.source, Own) and point.tensor not in known
    }
    for constant in plan.constants:
        if constant.tensor not in known and constant.tensor not in found:
            histogram = _histogram(constant_data(values, constant.tensor), constant.tensor)
            found[constant.tensor] = activation_params(histogram, qtype=constant.qtype, method="minmax")
    return found


def _activation(point: Point, statistics: Mapping[str, Histogram], config: Config, ahead: bool) -> QuantParams:
    if point.tensor not in statistics:
        raise DataError(f"tensor '{point.tensor}' was never computed on the calibration data; exclude its nodes")
    seen = statistics[point.tensor]
    chosen = activation_params(seen, qtype=point.qtype, method=config.activation_range, extrapolated=ahead)
    if point.ceiling is None:
        return chosen
    # The runtime drops a Clip only if no code lies above it.
    steps = chosen.qtype.qmax - int(chosen.zero_point)
    scale = chosen.scale
    while float(scale) * steps > point.ceiling:
        scale = np.minimum(np.nextafter(scale, np.float32(0)), np.float32(point.ceiling / steps))
    return replace(chosen, scale=np.asarray(scale, np.float32))


def _histogram(data: F32, name: str) -> Histogram:
    from onnxq.calibrate.observers import observe

    seen = observe(data, tensor=name)
    if seen is None:
        raise ModelError(f"constant '{name}' is empty")
    return seen


def constant_data(values: Mapping[str, ir.Value], tensor: str) -> F32:
    """The constant called ``tensor``. Raises ``ModelError`` where there is none."""
    data = array(values.get(tensor))
    if data is None:
        raise ModelError(f"tensor '{tensor}' is not a constant of this model")
    return data.astype(np.float32, copy=False)
