"""Part 4: seconds of every method: all weights of a ResNet-50 (25 M, per channel), and histograms of activations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import numpy as np

from onnxq.numerics import PerAxis, QType
from onnxq.ranges import METHODS, activation_params, optimal_codebook, optimal_grid_codebook, weight_params
from starts.errors import tensors_of

SEED = 4


def resnet50_weights() -> Iterator[np.ndarray]:
    """Weights of the shapes of a ResNet-50, 25 M in all, with a trained layer's kind of tails (Laplace)."""
    rng = np.random.default_rng(SEED)

    def made(*shape: int) -> np.ndarray:
        return (rng.laplace(size=shape) * 0.02).astype(np.float32)

    yield made(64, 3, 7, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield made(width, inputs, 1, 1)
            yield made(width, width, 3, 3)
            yield made(4 * width, width, 1, 1)
            if block == 0:
                yield made(4 * width, inputs, 1, 1)
            inputs = 4 * width
    yield made(1000, 2048)


def measure(repeats: int) -> dict[str, Any]:
    """`{"weights": {bits: {method: seconds}}, "elements", "codebooks": {name: s/M}, "histograms": {bits: {...}}}`."""
    weights = sorted(resnet50_weights(), key=lambda w: -w.size)
    elements = sum(w.size for w in weights)
    found: dict[str, Any] = {"elements": elements, "threads": os.cpu_count(), "weights": {}, "histograms": {}}
    for bits in (4, 8):
        qtype = QType(bits, signed=True, narrow=True)
        found["weights"][bits] = {
            method: _best(repeats, lambda method=method, qtype=qtype: _all(weights, qtype, method))
            for method in METHODS
        }
        print(f"speed: weights at {bits} bits", flush=True)
    one = weights[-10][:64]
    for name, make in (("codebook", optimal_codebook), ("codebook on int8 grid", optimal_grid_codebook)):
        seconds = _best(repeats, lambda make=make: make(one, bits=4, granularity=PerAxis(0)))
        found.setdefault("codebooks", {})[name] = seconds / one.size * 1e6
    histograms = [
        data for task in harness.TASKS.values() for role, _, data, _ in tensors_of(task, 64) if role == "activation"
    ]
    for bits in (4, 8):
        qtype = QType(bits, signed=False)
        rows = {
            method: [
                1000 * _best(repeats, lambda h=h, q=qtype, m=method: activation_params(h, qtype=q, method=m))
                for h in histograms
            ]
            for method in METHODS
        }
        found["histograms"][bits] = {
            method: {"tensors": len(ms), "median_ms": float(np.median(ms)), "worst_ms": max(ms)}
            for method, ms in rows.items()
        }
        print(f"speed: histograms at {bits} bits", flush=True)
    return found


def _all(weights: list[np.ndarray], qtype: QType, method: str) -> None:
    """All weights, on all cores, as `onnxq.parameters.choose` does it."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(lambda w: weight_params(w, qtype=qtype, granularity=PerAxis(0), method=method), weights))


def _best(repeats: int, action: Callable[[], Any]) -> float:
    """The least seconds of some repeats: what else the machine does only ever adds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)
