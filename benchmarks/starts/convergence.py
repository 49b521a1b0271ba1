"""Part 3: how fast and how surely learned quantizers converge from each starting point.

A task is one trained layer of `models/`: its weight ``W``, inputs ``X`` seen in calibration (those that it is trained
on, and others that it is judged on), and the outputs ``Y = X W^T`` that it must give with few bits. Weights and the
parameters of both quantizers are learned together by Adam from the mean squared error, the same steps for every start;
loss is relative to the variance of ``Y``, on inputs that were not trained on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np

from onnxq.calibrate.observers import observe
from onnxq.graph.instrument import expose
from onnxq.graph.io import load
from onnxq.graph.linear import geometry_of
from onnxq.graph.prepare import prepare
from onnxq.graph.runtime_model import to_runtime
from onnxq.kernels.targets import USUAL
from onnxq.numerics import PerAxis, QType
from onnxq.query import array, nodes
from onnxq.ranges import METHODS, activation_params, optimal_companding, weight_params
from onnxq.runtime.session import open_session, run
from starts.learned import CompandedWeights, LsqActivations, LsqWeights

Array = np.ndarray

SAMPLES = 256
ROWS = 16384
BATCH = 256
STEPS = 600
CHECKED_EVERY = 10
# Adam's step: of weights relative to their size, of quantizers relative to the exact optimum's parameters, so that
# every start takes steps of the same size; times the one of ``FACTORS`` with the lowest median end over all starts,
# found for each task with a seed that is not measured.
WEIGHT_RATE = 2e-3
QUANTIZER_RATE = 5e-3
FACTORS = (1.0, 0.3, 0.1)
PILOT_SEED = 1000
# A run that ends above its own beginning, or is not a number, has diverged; so has one that never comes below this
# share of the signal: it has learned nothing.
LOST = 0.5

# Model, layer (the n-th linear node of the prepared graph), and what stands before it.
LAYERS = (
    ("resnet", 4, "3x3 convolution behind a ReLU"),
    ("mobilenet_v2", 10, "1x1 convolution behind a ReLU6"),
    ("efficientnet", 8, "convolution behind a SiLU"),
    ("vit", -2, "linear layer of a transformer"),
)


@dataclass(frozen=True)
class Task:
    """``w: [C, n]``, ``x: [R, n]`` to train on, ``x_held: [H, n]`` to be judged on; float64, inputs of variance 1."""

    name: str
    w: Array
    x: Array
    x_held: Array


def task_of(model_name: str, index: int, title: str) -> Task:
    """The layer as a least-squares task; of grouped convolutions the first group."""
    task = harness.TASKS[model_name]
    model = prepare(load(task.path), target=USUAL).model
    found = [(n, layer) for n in nodes(model) if (layer := geometry_of(n)) is not None and layer.inputs >= 16]
    node, layer = found[index]
    tensor = node.inputs[0].name
    with tempfile.TemporaryDirectory() as folder:
        shown, output_of = expose(model, [tensor])
        session = open_session(to_runtime(shown, Path(folder)))
        feeds = harness.feeds(harness.cast(task.inputs("calib", SAMPLES), task.path), 16)
        rows = [
            layer.rows(run(session, feed, outputs=[output_of[tensor]])[0], limit=2 * ROWS * 16 // SAMPLES)[0]
            for feed in feeds
        ]
    x = np.concatenate(rows).astype(np.float64)
    x = x[np.random.default_rng(0).permutation(len(x))[:ROWS]]
    held = len(x) // 4
    w = layer.matrix(array(node.inputs[1]))[0].astype(np.float64)
    return Task(f"{model_name}, {title}", w, x[held:] / x.std(), x[:held] / x.std())


def uniform_start(task: Task, method: str, bits: int) -> tuple[Array, Array]:
    """([C, 1] steps, (step, offset) of the activation) by a range method."""
    weight = weight_params(task.w, qtype=QType(bits, signed=True), granularity=PerAxis(0), method=method)
    histogram = observe(task.x.astype(np.float32), tensor="x", limit=1 << 18)
    activation = activation_params(histogram, qtype=QType(bits, signed=False), method=method)
    scale = float(activation.scale)
    return weight.scale[:, None].astype(np.float64), np.asarray([scale, -scale * int(activation.zero_point)])


def companding_starts(task: Task, bits: int, segments: int) -> dict[str, Array]:
    """[C, segments + 1] knots: straight lines over the range of every method, and the fitted compressor."""
    qtype, share = QType(bits, signed=True), np.linspace(0, 1, segments + 1)
    starts = {}
    for method in METHODS:
        scale = weight_params(task.w, qtype=qtype, granularity=PerAxis(0), method=method).scale[:, None]
        starts[method] = scale.astype(np.float64) * (qtype.qmin + (qtype.qmax - qtype.qmin) * share)
    fitted = optimal_companding(task.w, bits=bits, segments=segments, granularity=PerAxis(0))
    starts["fitted compressor"] = fitted.knots.astype(np.float64)
    return starts


def train(
    task: Task,
    weights: Any,
    activations: LsqActivations | None,
    reference: tuple[Array, Array],
    seed: int,
    factor: float,
) -> list[float]:
    """Held-out loss at the start and every ``CHECKED_EVERY`` steps; ``reference`` and ``factor`` scale Adam's steps."""
    rng = np.random.default_rng(seed)
    w = task.w.copy()
    adam = [
        Adam(w, WEIGHT_RATE * float(np.sqrt(np.mean(np.square(w))))),
        Adam(weights.parameters, QUANTIZER_RATE * np.abs(reference[0]).mean(axis=1, keepdims=True)),
    ]
    if activations is not None:
        adam.append(Adam(activations.parameters, QUANTIZER_RATE * float(reference[1][0])))
    y_held = task.x_held @ task.w.T
    power = float(np.mean(np.square(y_held - y_held.mean(axis=0))))

    def held_out() -> float:
        x = task.x_held if activations is None else activations.forward(task.x_held)[0]
        return float(np.mean(np.square(x @ weights.forward(w)[0].T - y_held))) / power

    losses = [held_out()]
    for step in range(STEPS):
        x = task.x[rng.integers(0, len(task.x), BATCH)]
        x_q, saved_x = (x, None) if activations is None else activations.forward(x)
        w_q, saved_w = weights.forward(w)
        error = 2 * (x_q @ w_q.T - x @ task.w.T) / (BATCH * power * len(w))
        of_weights, of_w = weights.backward(error.T @ x_q, saved_w)
        rate = factor * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        adam[0].step(of_w, rate)
        adam[1].step(of_weights, rate)
        if activations is not None:
            adam[2].step(activations.backward(error @ w_q, saved_x), rate)
        if (step + 1) % CHECKED_EVERY == 0:
            losses.append(held_out())
    return losses


class Adam:
    """Kingma and Ba, Adam, ICLR 2015, in place."""

    def __init__(self, values: Array, rate: Any) -> None:
        self.values, self.rate = values, rate
        self.mean, self.square, self.count = np.zeros_like(values), np.zeros_like(values), 0

    def step(self, gradient: Array, factor: float) -> None:
        """One step against ``gradient``, its size times ``factor``."""
        self.count += 1
        self.mean += 0.1 * (gradient - self.mean)
        self.square += 0.001 * (np.square(gradient) - self.square)
        mean = self.mean / (1 - 0.9**self.count)
        square = self.square / (1 - 0.999**self.count)
        self.values -= factor * self.rate * mean / (np.sqrt(square) + 1e-30)


def measure(seeds: int, bits: tuple[int, ...] = (4, 2)) -> dict[str, Any]:
    """`{quantizer: {bits: {task: {start: {"curve", "first", "last", ...}}}}}`; a process for each core."""
    cells = [(q, b, i, seeds) for q in ("LSQ", "LSQ+", "companding") for b in bits for i in range(len(LAYERS))]
    found: dict[str, Any] = {}
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for (quantizer, b, _, _), (name, figures) in zip(
            cells, pool.map(_cell, *zip(*cells, strict=True)), strict=True
        ):
            found.setdefault(quantizer, {}).setdefault(b, {})[name] = figures
            print(f"convergence: {quantizer}, {b} bits, {name}", flush=True)
    return found


def _cell(quantizer: str, bits: int, index: int, seeds: int) -> tuple[str, dict[str, Any]]:
    """The name of a task and the figures of every start."""
    task = task_of(*LAYERS[index])
    starts = runs(task, quantizer, bits)
    pilots = {f: [train(task, *make(), PILOT_SEED, f)[-1] for make in starts.values()] for f in FACTORS}
    factor = min(FACTORS, key=lambda f: float(np.median(np.nan_to_num(pilots[f], nan=np.inf))))
    curves = {name: [train(task, *make(), seed, factor) for seed in range(seeds)] for name, make in starts.items()}
    return task.name, {name: {**f, "rate_factor": factor} for name, f in compared(curves).items()}


def runs(task: Task, quantizer: str, bits: int) -> dict[str, Callable[[], tuple[Any, Any, Any]]]:
    """By start: what makes fresh quantizers for ``train`` (they learn in place), and the reference of their steps."""
    qtype, unsigned = QType(bits, signed=True), QType(bits, signed=False)
    reference = uniform_start(task, "mse", bits)
    if quantizer == "companding":
        segments = {2: 3, 3: 7, 4: 5}[bits]
        return {
            name: lambda knots=knots: (CompandedWeights(2**bits, knots.copy()), None, reference)
            for name, knots in companding_starts(task, bits, segments).items()
        }
    # LSQ has no offset: an unsigned range from 0 for data that is never negative, a signed one for the rest.
    one_sided = bool((task.x >= 0).all())
    symmetric = quantizer == "LSQ" and not one_sided
    activation_type = qtype if symmetric else unsigned
    histogram = observe(task.x.astype(np.float32), tensor="x", limit=1 << 18)

    def signed_pair(method: str) -> Array:
        return np.asarray([float(activation_params(histogram, qtype=qtype, method=method).scale), 0.0])

    if symmetric:
        reference = (reference[0], signed_pair("mse"))
    made = {}
    for method in METHODS:
        steps, pair = uniform_start(task, method, bits)
        if symmetric:
            pair = signed_pair(method)
        made[method] = lambda steps=steps, pair=pair: (
            LsqWeights(qtype, steps.copy()),
            LsqActivations(activation_type, pair.copy(), quantizer == "LSQ+"),
            reference,
        )
    return made


def compared(curves: dict[str, list[list[float]]]) -> dict[str, Any]:
    """The figures of each start; steps are counted to the levels where the worst start and min-max end, on average."""
    means = {name: np.mean([c for c in runs if not diverged(c)] or runs, axis=0) for name, runs in curves.items()}
    worst = max(float(mean[-1]) for mean in means.values() if np.isfinite(mean[-1]))
    levels = {"steps_to_worst": worst, "steps_to_minmax": float(means["minmax"][-1])}
    figures = {}
    for name, all_runs in curves.items():
        ends = np.asarray([c[-1] for c in all_runs])
        figures[name] = {
            "first": float(means[name][0]),
            "last": float(np.median(ends)),
            "spread_db": float(np.std(10 * np.log10(np.maximum(ends, 1e-30)))),
            "diverged": sum(map(diverged, all_runs)),
            "runs": len(all_runs),
            **{key: float(np.median([steps_to(level, c) for c in all_runs])) for key, level in levels.items()},
            "curve": " ".join(f"{v:.4g}" for v in means[name]),  # one line of the JSON
        }
    return figures


def steps_to(level: float, curve: list[float]) -> int:
    """The first checked step at which the loss is at most ``level``; all steps where it never is."""
    return next((i * CHECKED_EVERY for i, loss in enumerate(curve) if loss <= level), STEPS)


def diverged(curve: list[float]) -> bool:
    """Whether the run ended above its beginning or never left the signal's own size."""
    return not np.isfinite(curve[-1]) or curve[-1] > curve[0] * 1.001 or curve[-1] > LOST
