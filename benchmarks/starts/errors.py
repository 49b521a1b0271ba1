"""Part 1: the squared error of every range method, divided by that of the exact optimum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import harness
import numpy as np
import onnx_ir as ir

from onnxq.calibrate.observers import observe
from onnxq.calibrate.runner import run_observers
from onnxq.config import Config
from onnxq.graph.io import load
from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL, resolve_target
from onnxq.numerics import PerAxis, PerTensor, QType
from onnxq.plan import Plan, make_plan
from onnxq.query import array, values_by_name
from onnxq.ranges import (
    METHODS,
    activation_params,
    optimal_codebook,
    optimal_companding,
    optimal_grid_codebook,
    weight_params,
)
from onnxq.ranges.error import tensor_error
from onnxq.ranges.samples import of_histogram

BITS = (2, 3, 4, 6, 8)
ELEMENTS = 1 << 16
SEED = 12
# With as many levels as a channel has weights a codebook is no quantizer of it any more: few bits, and no depthwise
# convolutions.
CODEBOOK_BITS = (2, 3, 4)
CODEBOOK_INPUTS = 64
# Segments of the compressor: as few as bend at all, and for 4 bits a third of the most.
SEGMENTS = {2: 3, 3: 7, 4: 5}

Array = np.ndarray


def synthetic() -> dict[str, tuple[str, Array]]:
    """By name: whether it is quantized as a weight or as an activation, and the data."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal(ELEMENTS)
    gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    data = {
        "Gauss, weight": ("weight", x),
        "Laplace, weight": ("weight", rng.laplace(size=ELEMENTS)),
        "heavy tails (t, 3 degrees), weight": ("weight", rng.standard_t(3, ELEMENTS)),
        "half-normal (ReLU)": ("activation", np.maximum(x, 0)),
        "SiLU of Gauss": ("activation", x / (1 + np.exp(-x))),
        "GELU of Gauss": ("activation", gelu),
        "Gauss": ("activation", x),
        "heavy tails (t, 3 degrees)": ("activation", rng.standard_t(3, ELEMENTS)),
    }
    return {name: (role, values.astype(np.float32)) for name, (role, values) in data.items()}


def weight_errors(weight: Array, axis: int | None, bits: int) -> dict[str, float]:
    """Squared error of every method, signed types with all their codes; codebooks and compressors at few bits."""
    granularity = PerTensor() if axis is None else PerAxis(axis)
    qtype = QType(bits, signed=True)

    def error(quantizer: Any) -> float:
        return float(np.square(quantizer.fake_quantize(weight).astype(np.float64) - weight).sum())

    found = {m: error(weight_params(weight, qtype=qtype, granularity=granularity, method=m)) for m in METHODS}
    inputs = weight.size if axis is None else weight.size // weight.shape[axis]
    if bits in CODEBOOK_BITS and inputs >= CODEBOOK_INPUTS:
        how: dict[str, Any] = {"bits": bits, "granularity": granularity}
        found["codebook"] = error(optimal_codebook(weight, **how))
        found["codebook on int8 grid"] = error(optimal_grid_codebook(weight, **how).codebook())
        found["companding"] = error(optimal_companding(weight, segments=SEGMENTS[bits], **how))
    return found


def activation_errors(histogram: Any, bits: int) -> dict[str, float]:
    """Squared error of every method on the histogram, unsigned types."""
    samples, qtype = of_histogram(histogram), QType(bits, signed=False)
    return {m: tensor_error(samples, activation_params(histogram, qtype=qtype, method=m)) for m in METHODS}


def planned(task: harness.Task) -> tuple[ir.Model, Plan, list[str]]:
    """A model of `models/` made ready, its plan, and the activations that are quantized."""
    model = prepare(load(task.path), target=USUAL).model
    plan = make_plan(model, Config(), resolve_target("x86-vnni"))
    return model, plan, list(dict.fromkeys(point.tensor for point in plan.points))


def tensors_of(task: harness.Task, samples: int) -> Iterator[tuple[str, str, Any, int | None]]:
    """(role, name, weight or histogram, axis) of everything that is quantized in one model of `models/`."""
    model, plan, tensors = planned(task)
    values = values_by_name(model)
    seen: set[str] = set()
    for weight in plan.weights:
        if weight.tensor not in seen and isinstance(weight.granularity, PerAxis):
            seen.add(weight.tensor)
            yield "weight", weight.tensor, array(values[weight.tensor]).astype(np.float32), weight.granularity.axis
    feeds = harness.feeds(harness.cast(task.inputs("calib", samples), task.path))
    for name, histogram in run_observers(model, tensors, feeds).histograms.items():
        yield "activation", name, histogram, None


def measure(samples: int) -> dict[str, Any]:
    """`{"synthetic": {data: {bits: {method: ratio}}}, "models": {role: {bits: {method: {"mean", "worst"}}}}}`."""
    made: dict[str, Any] = {}
    for name, (role, data) in synthetic().items():
        seen = data[None] if role == "weight" else observe(data, tensor=name, limit=ELEMENTS)
        made[name] = {bits: _relative(_errors(role, seen, None, bits)) for bits in BITS}
        print(f"errors: {name}", flush=True)
    ratios: dict[str, dict[int, list[dict[str, float]]]] = {
        role: {bits: [] for bits in BITS} for role in ("weight", "activation")
    }
    for task in harness.TASKS.values():
        for role, _, data, axis in tensors_of(task, samples):
            for bits in BITS:
                found = _errors(role, data, axis, bits)
                if found["mse"] > 0:  # nothing to compare where the optimum is perfect
                    ratios[role][bits].append(_relative(found))
        print(f"errors: {task.model}", flush=True)
    summary = {role: {bits: _summary(rows) for bits, rows in by_bits.items()} for role, by_bits in ratios.items()}
    return {"synthetic": made, "models": summary}


def _errors(role: str, data: Any, axis: int | None, bits: int) -> dict[str, float]:
    return weight_errors(data, axis, bits) if role == "weight" else activation_errors(data, bits)


def _relative(found: dict[str, float]) -> dict[str, float]:
    return {method: error / found["mse"] for method, error in found.items()}


def _summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Geometric mean, lowest and highest ratio of each method over tensors."""
    methods = dict.fromkeys(method for row in rows for method in row)
    columns = {method: np.asarray([row[method] for row in rows if method in row]) for method in methods}
    return {
        method: {
            "tensors": ratios.size,
            "mean": float(np.exp(np.log(ratios).mean())),
            "lowest": float(ratios.min()),
            "worst": float(ratios.max()),
        }
        for method, ratios in columns.items()
    }
