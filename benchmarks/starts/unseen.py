"""Part 5: what ranges from few samples lose on samples of the test set, against the best range for that set itself."""

from __future__ import annotations

from typing import Any

import harness
import numpy as np

from onnxq.calibrate.runner import run_observers
from onnxq.config import Config
from onnxq.graph.io import load
from onnxq.graph.prepare import prepare
from onnxq.numerics import QType
from onnxq.plan import make_plan
from onnxq.ranges import activation_params
from onnxq.ranges.error import tensor_error
from onnxq.ranges.samples import of_histogram
from onnxq.targets import resolve_target

COUNTS = (8, 16, 32, 64, 128, 256, 512)
BITS = (8, 6, 4)
TESTS = 1024
# By name: the method, and whether it looks ahead.
RANGES = {
    "mse": ("mse", True),
    "mse of what was seen": ("mse", False),
    "minmax": ("minmax", False),
    "percentile": ("percentile:99.99", False),
}


def measure(names: list[str]) -> dict[str, Any]:
    """`{model: {bits: {range: {samples: dB}}}}`: squared error above the least, mean of decibels over activations."""
    found: dict[str, Any] = {}
    for name in names:
        task = harness.TASKS[name]
        model = prepare(load(task.path)).model
        plan = make_plan(model, Config(), resolve_target("x86-vnni"))
        tensors = list(dict.fromkeys(point.tensor for point in plan.points))
        calibration = harness.cast(task.inputs("calib", max(COUNTS)), task.path)
        test = harness.feeds(harness.cast(task.inputs("test", TESTS), task.path))
        truth = run_observers(model, tensors, test).histograms
        lost: dict[int, Any] = {bits: {what: {count: [] for count in COUNTS} for what in RANGES} for bits in BITS}
        for count in COUNTS:
            some = {key: array[:: len(array) // count][:count] for key, array in calibration.items()}
            seen = run_observers(model, tensors, harness.feeds(some)).histograms
            for tensor, bits in ((t, b) for t in truth for b in BITS):
                samples, qtype = of_histogram(truth[tensor]), QType(bits, signed=False)
                least = tensor_error(samples, activation_params(truth[tensor], qtype=qtype))
                for what, (method, ahead) in RANGES.items() if least > 0 else ():
                    params = activation_params(seen[tensor], qtype=qtype, method=method, unseen=ahead)
                    lost[bits][what][count].append(10 * np.log10(tensor_error(samples, params) / least))
        found[name] = {
            bits: {what: {count: float(np.mean(dbs)) for count, dbs in row.items()} for what, row in rows.items()}
            for bits, rows in lost.items()
        }
        print(f"unseen: {name}, {len(truth)} activations", flush=True)
    return found
