"""From statistics and weights to quantization parameters for everything that a plan names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.config import Config
from onnxq.emit import WeightKey, weight_key
from onnxq.errors import DataError, ModelError, NumericsError, one_line
from onnxq.graph.query import array, values_by_name
from onnxq.numerics import INT32, PerTensor, QuantParams, params
from onnxq.plan.types import Own, Plan, Point, SharedWith, Storage, Weight
from onnxq.ranges import activation_params, weight_params
from onnxq.ranges.histogram import Histogram

# Codes of an int32 bias stay within half the type's range: the kernel adds products to them in the same 32 bits.
_BIAS_CODES = INT32.qmax / 2


@dataclass(frozen=True)
class Parameters:
    """Parameters of every tensor and weight of a plan, as ``emit`` takes them."""

    tensors: dict[str, QuantParams]
    weights: dict[WeightKey, QuantParams]


def choose(
    model: ir.Model, plan: Plan, statistics: Mapping[str, Histogram], config: Config, *, known: Parameters | None = None
) -> Parameters:
    """The ``Parameters`` for ``plan``: activations from ``statistics``, weights and constants from ``model``.

    ``known`` are parameters of an earlier plan of the same model and statistics; what they hold is not computed again.
    Raises ``DataError`` naming a tensor that was never observed, ``ModelError`` for a weight that is not finite.
    """
    values = values_by_name(model)
    tensors = dict(known.tensors) if known else {}
    for point in plan.points:
        if isinstance(point.source, Own) and point.tensor not in tensors:
            tensors[point.tensor] = _activation(point, statistics, config)
    for constant in plan.constants:
        if constant.tensor not in tensors:
            tensors[constant.tensor] = activation_params(
                _histogram(_data(values, constant.tensor), constant.tensor), qtype=constant.qtype, method="minmax"
            )
    weights = dict(known.weights) if known else {}
    missing = {weight_key(w): w for w in plan.weights if weight_key(w) not in weights}
    # The sorting and summing in numpy leaves the interpreter free for other threads; large weights go first.
    ordered = sorted(missing.values(), key=lambda w: -_data(values, w.tensor).size)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = pool.map(lambda w: _weight(w, _data(values, w.tensor), config), ordered)
        weights.update(zip(map(weight_key, ordered), found, strict=True))
    _make_room_for_biases(plan, values, tensors, weights)
    return Parameters(tensors, weights)


def _activation(point: Point, statistics: Mapping[str, Histogram], config: Config) -> QuantParams:
    if point.tensor not in statistics:
        raise DataError(f"tensor '{point.tensor}' was never computed on the calibration data; exclude its nodes")
    chosen = activation_params(statistics[point.tensor], qtype=point.qtype, method=config.activation_range)
    if point.ceiling is None:
        return chosen
    # The runtime drops a Clip only if no code lies above it.
    steps = chosen.qtype.qmax - int(chosen.zero_point)
    scale = chosen.scale
    while float(scale) * steps > point.ceiling:
        scale = np.minimum(np.nextafter(scale, np.float32(0)), np.float32(point.ceiling / steps))
    return replace(chosen, scale=np.asarray(scale, np.float32))


def _histogram(data: npt.NDArray[np.float32], name: str) -> Histogram:
    from onnxq.calibrate.observers import observe

    seen = observe(data, tensor=name)
    if seen is None:
        raise ModelError(f"constant '{name}' is empty")
    return seen


def _weight(weight: Weight, data: npt.NDArray[np.float32], config: Config) -> QuantParams:
    # A packed weight or a table is read in float: its full code range is used, saturation is no concern.
    try:
        return weight_params(data, qtype=weight.qtype, granularity=weight.granularity, method=config.weight_range)
    except NumericsError as error:
        raise ModelError(f"weight '{weight.tensor}': {one_line(error)}") from error


def _make_room_for_biases(
    plan: Plan,
    values: Mapping[str, ir.Value],
    tensors: Mapping[str, QuantParams],
    weights: dict[WeightKey, QuantParams],
) -> None:
    """Widens weight scales of channels whose bias would not fit into int32 (a dead channel beside a large bias)."""
    source = {p.tensor: p.source.tensor for p in plan.points if isinstance(p.source, SharedWith)}
    weight_of = {w.node: w for w in plan.weights if w.storage is Storage.INTEGER}
    for bias in plan.biases:
        root = bias.input
        while root in source:
            root = source[root]
        key = weight_key(weight_of[bias.weight_node])
        old = weights[key]
        needed = np.abs(_data(values, bias.tensor).reshape(-1)) / (_BIAS_CODES * float(tensors[root].scale))
        if isinstance(old.granularity, PerTensor):
            needed = needed.max()
        scale = np.maximum(old.scale, needed.astype(np.float32))
        if not np.array_equal(scale, old.scale):
            weights[key] = params(old.qtype, scale, old.zero_point, granularity=old.granularity)


def _data(values: Mapping[str, ir.Value], tensor: str) -> npt.NDArray[np.float32]:
    data = array(values.get(tensor))
    if data is None:
        raise ModelError(f"tensor '{tensor}' is not a constant of this model")
    return data.astype(np.float32, copy=False)
