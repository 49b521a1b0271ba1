"""Part 5: what ranges from few samples lose on samples of the test set, against the best range for that set itself."""

from __future__ import annotations

from typing import Any

import harness
import numpy as np

from onnxq.calibrate.runner import run_observers
from onnxq.numerics import QType
from onnxq.ranges import activation_params
from onnxq.ranges.error import tensor_error
from onnxq.ranges.samples import of_histogram
from starts.errors import planned

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
        model, _, tensors = planned(task)
        calibration = harness.cast(task.inputs("calib", max(COUNTS)), task.path)
        test = harness.feeds(harness.cast(task.inputs("test", TESTS), task.path))
        truth = run_observers(model, tensors, test).histograms
        samples = {tensor: of_histogram(histogram) for tensor, histogram in truth.items()}
        least = {
            (tensor, bits): tensor_error(samples[tensor], activation_params(truth[tensor], qtype=_codes(bits)))
            for tensor in truth
            for bits in BITS
        }
        lost: dict[int, Any] = {bits: {what: {count: [] for count in COUNTS} for what in RANGES} for bits in BITS}
        for count in COUNTS:
            some = {key: array[:: len(array) // count][:count] for key, array in calibration.items()}
            seen = run_observers(model, tensors, harness.feeds(some)).histograms
            for (tensor, bits), best in least.items():
                for what, (method, ahead) in RANGES.items() if best > 0 else ():
                    params = activation_params(seen[tensor], qtype=_codes(bits), method=method, unseen=ahead)
                    lost[bits][what][count].append(10 * np.log10(tensor_error(samples[tensor], params) / best))
        found[name] = {
            bits: {what: {count: float(np.mean(dbs)) for count, dbs in row.items()} for what, row in rows.items()}
            for bits, rows in lost.items()
        }
        print(f"unseen: {name}, {len(truth)} activations", flush=True)
    return found


def _codes(bits: int) -> QType:
    return QType(bits, signed=False)
