"""Part 2: whole networks, nothing learned: output SQNR and accuracy by range method, and by what weights minimise."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import onnx_ir as ir

from onnxq.build.statistics import fitted_layers
from onnxq.calibrate.runner import Statistics, run_observers
from onnxq.config import Config
from onnxq.emit import emit
from onnxq.graph.io import load, save
from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL, Target, resolve_target
from onnxq.numerics import QType, agreement, centred, sqnr_db
from onnxq.parameters.choose import choose
from onnxq.plan import make_plan
from onnxq.ranges import METHODS

PLAIN = {"objective": "tensor", "restore": "none", "rounding": "nearest"}
# Ranges alone: one side by each method, the other at 8 bits with exact ranges.
WEIGHTS_BY_METHOD = {m: Config(weight_range=m, **PLAIN) for m in METHODS}  # type: ignore[arg-type]
ACTIVATIONS_BY_METHOD = {m: Config(activation_range=m, **PLAIN) for m in METHODS}  # type: ignore[arg-type]
METHOD_BITS = (8, 6, 4)
# What weights minimise and what is restored after it; activations have 8 bits and exact ranges throughout.
BY_OBJECTIVE = {
    "minmax": Config(weight_range="minmax", restore="none", rounding="nearest"),
    "minmax, restored": Config(weight_range="minmax", rounding="nearest"),
    "tensor": Config(objective="tensor", restore="none", rounding="nearest"),
    "tensor, mean": Config(objective="tensor", restore="mean", rounding="nearest"),
    "tensor, mean+gain": Config(objective="tensor", rounding="nearest"),
    "diagonal, mean+gain": Config(objective="diagonal", rounding="nearest"),
    "output": Config(objective="output", restore="none", rounding="nearest"),
    "output, mean+gain": Config(objective="output", rounding="nearest"),
}
OBJECTIVE_BITS = (8, 6, 4, 3)


def target(weights: int, activations: int) -> Target:
    """The x86 target with other types: narrow signed weights, unsigned activations."""
    return replace(
        resolve_target("x86-vnni"),
        weights=QType(weights, signed=True, narrow=True),
        activations=QType(activations, signed=False),
    )


class Network:
    """One model of `models/` with all statistics, and what its float version answers to the test set."""

    def __init__(self, task: harness.Task, samples: int, tests: int) -> None:
        self.task = task
        self.model = prepare(load(task.path), target=USUAL).model
        inputs = task.arrays("test")
        self.labels = inputs.pop("labels")[:tests]
        self.inputs = harness.cast({task.array: inputs[task.array][:tests]}, task.path)
        self.reference = harness.outputs(task.path, self.inputs)
        self.statistics = self._observed(samples)

    def _observed(self, samples: int) -> Statistics:
        """Of every tensor and, with all second moments, of every layer that any of the configurations asks for."""
        config = Config(objective="output")
        plan = make_plan(self.model, config, target(4, 8))
        tensors = list(dict.fromkeys(p.tensor for p in plan.points))
        feeds = harness.feeds(harness.cast(self.task.inputs("calib", samples), self.task.path))
        return run_observers(self.model, tensors, feeds, layers=fitted_layers(self.model, plan, config))

    def quantized(self, config: Config, types: Target) -> ir.Model:
        """The emitted model."""
        plan = make_plan(self.model, config, types)
        return emit(self.model, plan, **vars(choose(self.model, plan, self.statistics, config)))

    def judged(self, config: Config, types: Target, folder: Path) -> dict[str, float]:
        """SQNR of the centred logits, agreement and score on the test set; seconds of choosing and emitting."""
        start = time.perf_counter()
        model = self.quantized(config, types)
        seconds = time.perf_counter() - start
        save(model, folder / "model.onnx")
        logits = harness.outputs(folder / "model.onnx", self.inputs)
        same, rows = agreement(self.reference, logits)
        return {
            "sqnr_db": sqnr_db(centred(self.reference), centred(logits)),
            "agreement": same / rows,
            "score": harness.score(self.task.metric, logits, self.labels),
            "seconds": seconds,
        }


def measure(samples: int, tests: int, models: list[str]) -> dict[str, Any]:
    """`{model: {"metric", "float", part: {bits: {name: figures}}}}`; parts `weights`, `activations`, `objective`."""
    found: dict[str, Any] = {}
    for name in models:
        task = harness.TASKS[name]
        # A window of the language model is 128 decisions: fewer of them say as much.
        network = Network(task, samples, tests if task.metric == "top-1" else tests // 8)
        with tempfile.TemporaryDirectory(prefix="onnxq-starts-") as folder:
            found[name] = {
                "metric": task.metric,
                "float": harness.score(task.metric, network.reference, network.labels),
                "weights": _all(network, WEIGHTS_BY_METHOD, {b: target(b, 8) for b in METHOD_BITS}, Path(folder)),
                "activations": _all(
                    network, ACTIVATIONS_BY_METHOD, {b: target(8, b) for b in METHOD_BITS}, Path(folder)
                ),
                "objective": _all(network, BY_OBJECTIVE, {b: target(b, 8) for b in OBJECTIVE_BITS}, Path(folder)),
            }
        print(f"whole networks: {name}", flush=True)
    return found


def _all(
    network: Network, configs: Mapping[str, Config], types: Mapping[int, Target], folder: Path
) -> dict[int, dict[str, dict[str, float]]]:
    return {
        bits: {name: network.judged(config, chosen, folder) for name, config in configs.items()}
        for bits, chosen in types.items()
    }
