"""The schedule of training by itself: Adam on a loss known in closed form, with no training runtime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.adapt.worker import Training

F64 = npt.NDArray[np.float64]
RATE, SIZE, STEPS = 0.05, 0.5, 40
FIRST, SECOND = 0.9, 0.99
TARGET = np.asarray([1.0, -2.0, 0.25])


class Value:
    """A parameter as the runtime's module has it: data that can be set, and a gradient."""

    def __init__(self, data: F64) -> None:
        self.data, self.grad = data, np.zeros_like(data)


class Bowl:
    """A module whose loss is ``mean over the batch of x * sum((w - TARGET)^2)``."""

    def __init__(self, value: Value) -> None:
        self.value, self.training = value, True

    def train(self) -> None:
        self.training = True

    def eval(self) -> None:
        self.training = False

    def lazy_reset_grad(self) -> None:
        self.value.grad = np.zeros_like(self.value.data)

    def __call__(self, x: F64) -> float:
        off = self.value.data - TARGET
        if self.training:
            self.value.grad = 2 * x.mean() * off
        return float(x.mean() * np.square(off).sum())


def training(samples: F64, *, batch: int = 4, every: int = 10, seed: int = 3) -> Any:
    """A ``Training`` on ``Bowl`` that has loaded nothing and writes nothing."""
    run: Any = object.__new__(Training)
    run.np, run.data, run.random = np, [samples], np.random.default_rng(seed)
    run.parameters = {"w": Value(np.zeros(3))}
    run.start = {"w": np.zeros(3)}
    run.module = Bowl(run.parameters["w"])
    run.fit, run.check = np.arange(len(samples) - 2), np.arange(len(samples) - 2, len(samples))
    run.job = {"momentum": [FIRST, SECOND], "batch": batch, "every": every, "parameters": {"w": {"size": SIZE}}}
    run.job["probe_steps"] = STEPS
    run.best_loss, run.best = run.held_out(), {"w": np.zeros(3)}
    run.said, run.saved = [], []
    run.save = lambda: run.saved.append(run.best["w"].copy())
    run.tell = lambda **what: run.said.append(what)
    return run


def adam(rate: float, steps: int) -> list[F64]:
    """The values behind each step, by the paper's formulas, on the mean loss of samples that are all alike."""
    w, m, v, found = np.zeros(3), np.zeros(3), np.zeros(3), []
    for t in range(1, steps + 1):
        grad = 2 * (w - TARGET)
        m, v = FIRST * m + (1 - FIRST) * grad, SECOND * v + (1 - SECOND) * grad**2
        now = rate * SIZE * (1 + math.cos(math.pi * (t - 1) / steps)) / 2
        w = w - now * (m / (1 - FIRST**t)) / np.sqrt(v / (1 - SECOND**t))
        found.append(w)
    return found


@pytest.mark.parametrize("steps", [1, 7, STEPS])
def test_the_values_are_adams_with_a_rate_that_falls_as_a_cosine(steps: int) -> None:
    run = training(np.ones(10))
    run.train(RATE, steps, report=False)
    np.testing.assert_allclose(run.parameters["w"].data, adam(RATE, steps)[-1], rtol=1e-9)


def test_the_last_moves_are_small() -> None:
    """Where the loss is a slope all moves would be alike with a rate that stays."""
    run = training(np.ones(10), every=1)
    run.train(1e-3, STEPS, report=True)
    checks = [said["check"] for said in run.said if said["kind"] == "step"]
    drops = -np.diff(checks)
    assert len(checks) == STEPS
    assert (np.diff(drops[2:]) < 0).all()
    assert drops[-1] < 0.02 * drops[0]


def test_the_best_on_the_samples_kept_aside_is_what_is_saved() -> None:
    """A rate that overshoots: the end is worse than what was seen on the way."""
    run = training(np.ones(10), every=1)
    run.train(3.0, STEPS, report=True)
    path = adam(3.0, STEPS)
    losses = [float(np.square(w - TARGET).sum()) for w in path]
    assert run.best_loss == pytest.approx(min(losses))
    np.testing.assert_allclose(run.best["w"], path[int(np.argmin(losses))], rtol=1e-9)
    np.testing.assert_array_equal(run.saved[-1], run.best["w"])


def test_the_loss_of_samples_kept_aside_weighs_a_last_batch_by_its_size() -> None:
    run = training(np.ones(10), batch=4)
    run.data, run.check = [np.asarray([1.0, 2.0, 3.0, 4.0, 50.0])], np.arange(5)
    assert run.held_out() == pytest.approx(12.0 * np.square(TARGET).sum())


def test_the_probe_takes_the_rate_that_ends_lowest_and_begins_again() -> None:
    run = training(np.ones(10))
    rates = [1e-4, 0.2, float("nan")]
    assert run.probe(rates) == 0.2
    np.testing.assert_array_equal(run.parameters["w"].data, np.zeros(3))
    assert [said["rate"] for said in run.said][:2] == rates[:2]
