"""From statistics to parameters for the activations and the constant operands of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.observers import observe
from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.errors import DataError, ModelError
from onnxq.numerics import QType, QuantParams
from onnxq.parameters.cache import ParameterCache
from onnxq.plan.types import Own, Plan, Point
from onnxq.query import array, values_by_name
from onnxq.ranges import activation_params
from onnxq.ranges.histogram import Histogram

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _RangeKey:
    """All that decides the parameters of an activation; ``histogram``: by identity."""

    histogram: Histogram
    qtype: QType
    method: str
    extrapolated: bool
    ceiling: float | None


@dataclass(frozen=True)
class _ConstantKey:
    """All that decides the parameters of a constant operand; ``model``: by identity."""

    model: ir.Model
    tensor: str
    qtype: QType


def tensor_params(
    model: ir.Model,
    plan: Plan,
    statistics: Statistics,
    config: Config,
    *,
    known: Mapping[str, QuantParams],
    extrapolated: bool,
    cache: ParameterCache,
) -> dict[str, QuantParams]:
    """Those of every point of ``plan`` that owns some and of every constant operand; arguments as in ``choose``."""
    found: dict[str, QuantParams] = {}
    for point in plan.points:
        if not isinstance(point.source, Own):
            continue
        if point.tensor in known:
            found[point.tensor] = known[point.tensor]
            continue
        if point.tensor not in statistics.histograms:
            raise DataError(
                f"tensor '{point.tensor}' was never computed on the calibration data", hint="exclude its nodes"
            )
        seen = statistics.histograms[point.tensor]
        key = _RangeKey(seen, point.qtype, config.activation_range, extrapolated, point.ceiling)
        if key not in cache.tensors:
            cache.tensors[key] = _activation(point, seen, config, extrapolated)
        found[point.tensor] = cache.tensors[key]
    values = values_by_name(model)
    for constant in plan.constants:
        if constant.tensor in found:
            continue
        if constant.tensor in known:
            found[constant.tensor] = known[constant.tensor]
            continue
        of = _ConstantKey(model, constant.tensor, constant.qtype)
        if of not in cache.tensors:
            histogram = _histogram(constant_data(values, constant.tensor), constant.tensor)
            cache.tensors[of] = activation_params(histogram, qtype=constant.qtype, method="minmax")
        found[constant.tensor] = cache.tensors[of]
    return found


def _activation(point: Point, seen: Histogram, config: Config, extrapolated: bool) -> QuantParams:
    chosen = activation_params(seen, qtype=point.qtype, method=config.activation_range, extrapolated=extrapolated)
    if point.ceiling is None:
        return chosen
    # The runtime drops a Clip only if no code lies above it.
    steps = chosen.qtype.qmax - int(chosen.zero_point)
    scale = chosen.scale
    while float(scale) * steps > point.ceiling:
        scale = np.minimum(np.nextafter(scale, np.float32(0)), np.float32(point.ceiling / steps))
    return replace(chosen, scale=np.asarray(scale, np.float32))


def _histogram(data: F32, name: str) -> Histogram:
    seen = observe(data, tensor=name)
    if seen is None:
        raise ModelError(f"constant '{name}' is empty")
    return seen


def constant_data(values: Mapping[str, ir.Value], tensor: str) -> F32:
    """The constant ``tensor`` as float32. Raises ``ModelError`` where it is none."""
    data = array(values.get(tensor))
    if data is None:
        raise ModelError(f"tensor '{tensor}' is not a constant of this model")
    return data.astype(np.float32, copy=False)
