"""What adaptation asks of whatever computes gradients: a protocol, and the values that go in and come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parameter:
    """A value in training. ``size``: what one unit of the rate moves it by."""

    size: float


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: ``steps`` at most, within ``seconds`` (0: no limit); of several ``rates`` the best.

    ``every``: steps between looks at the held-out samples. ``momentum``: of the gradient and of its square.
    """

    steps: int
    rates: tuple[float, ...]
    probe_steps: int = 60
    batch: int = 32
    every: int = 20
    seconds: float = 0.0
    momentum: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class Trained:
    """The parameters that did best on the held-out samples, the loss there before and ``after``.

    ``finished``: whether the worker came to its end; what it had found by then counts all the same. ``curve``: step,
    loss on the samples trained on, loss on those held out. ``probes``: that loss by rate.
    """

    values: dict[str, F32]
    before: float
    after: float
    rate: float
    finished: bool
    curve: tuple[tuple[int, float, float], ...] = ()
    probes: Mapping[float, float] = field(default_factory=dict)


class Trainer(Protocol):
    """Trains constants of a model, and tells how its outputs hang on inner tensors."""

    def train(
        self,
        model: ir.Model,
        data: Mapping[str, Array],
        parameters: Mapping[str, Parameter],
        schedule: Schedule,
        *,
        fit: Sequence[int],
        check: Sequence[int],
        progress: Callable[[int, int, float], None] | None = None,
    ) -> Trained:
        """Trains ``parameters`` of ``model``, whose only output is the loss, on the samples ``fit`` of ``data``.

        ``data``: for every input of the model, samples along the first axis. ``check`` are the held-out samples.
        ``progress`` is told step, steps and the loss on ``check``.

        Raises ``RuntimeFailure`` with the last line of the worker where it ended without a result.
        """

    def curvature(
        self,
        model: ir.Model,
        data: Mapping[str, Array],
        tensors: Mapping[str, tuple[int, int]],
        outputs: Sequence[tuple[tuple[int, ...], bool]],
        *,
        batch: int,
        repeats: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, F64]:
        """``[g, C, C]`` by constant of ``model``: second moments of its gradients over all but the channels.

        ``tensors``: constants of zeros, of shape ``[batch, ...]``, with the axis of their channels and the number of
        groups. ``outputs``: shapes, without the batch, of the random inputs that come after ``data``, and whether their
        rows have mean 0.

        Raises ``RuntimeFailure`` as ``train`` does.
        """
