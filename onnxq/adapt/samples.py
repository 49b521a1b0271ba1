"""Calibration samples as arrays, with the float model's outputs: what training takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxq.numerics import centred

Array = npt.NDArray[Any]
AnswerKind: TypeAlias = Literal["logits", "probabilities"]  # what a model says of classes


# The largest share of an axis that a sample is shifted by, and of both axes that a patch takes.
_SHIFT, _PATCH = 1 / 8, 0.6
# Least and most that another sample is mixed in with; spread of the gain, the offset and the noise.
_MIX = (0.1, 0.5)
_GAIN, _OFFSET, _NOISE = 0.2, 0.2, 0.05


@dataclass(frozen=True, eq=False)
class Samples:
    """``inputs`` and ``outputs`` by name, samples along the first axis.

    Outputs are float32, whatever the model's are. ``rows``: what the model takes at a time, no more and no fewer; None
    where that is open. ``labels``: None, or ``outputs`` are one-hot labels, and what the model answers is of that kind.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rows: int | None = None
    labels: AnswerKind | None = None

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(next(iter(self.inputs.values())))

    def batch(self, which: Iterable[int]) -> dict[str, Array]:
        """The inputs of some samples."""
        chosen = list(which)
        return {name: array[chosen] for name, array in self.inputs.items()}

    def score(self, output: str) -> float:
        """The mean square that errors of ``output`` are measured by: of rows less their means.

        Of labels, one by the entries of a row: the mean over all of them becomes one over rows.
        """
        array = self.outputs[output]
        if self.labels is not None:
            return 1.0 / float(array.shape[-1])
        rows = centred(array) if array.ndim > 1 else array
        return max(float(np.square(rows, dtype=np.float64).mean()), 1e-12)


@dataclass(frozen=True, eq=False)
class Split:
    """``samples``, and which of them are trained on (``fit``) and which are held out (``check``)."""

    samples: Samples
    fit: Sequence[int]
    check: Sequence[int]


def joined(parts: Sequence[Samples]) -> Samples:
    """All samples of ``parts``, which are alike, in order."""
    first = parts[0]
    return replace(
        first,
        inputs={name: np.concatenate([p.inputs[name] for p in parts]) for name in first.inputs},
        outputs={name: np.concatenate([p.outputs[name] for p in parts]) for name in first.outputs},
    )


def stacked(
    feeds: Iterable[Mapping[str, Array]], outputs: Iterable[Mapping[str, Array]], *, rows: int | None = None
) -> Samples | None:
    """The ``Samples`` of feeds and what the model answered; None where they are not rows of one shape."""
    inputs: dict[str, list[Array]] = {}
    answers: dict[str, list[Array]] = {}
    for feed, answer in zip(feeds, outputs, strict=True):
        counts = {array.shape[0] if array.ndim else 0 for array in (*feed.values(), *answer.values())}
        if len(counts) != 1 or 0 in counts:
            return None
        for into, arrays in ((inputs, feed), (answers, answer)):
            for name, array in arrays.items():
                into.setdefault(name, []).append(array)
    every = [*inputs.values(), *answers.values()]
    if not inputs or not answers or any(len({a.shape[1:] for a in arrays}) != 1 for arrays in every):
        return None
    joined = [{name: np.concatenate(arrays) for name, arrays in of.items()} for of in (inputs, answers)]
    answered = {n: np.asarray(a, np.float32) for n, a in joined[1].items() if np.issubdtype(a.dtype, np.floating)}
    return Samples(joined[0], answered, rows)


def generated(inputs: Mapping[str, Array], times: int, *, seed: int = 0) -> dict[str, Array]:
    """``times`` as many new inputs, made of ``inputs``.

    A few hundred samples are soon learned by heart, and the float model can label any input. Each is one of: shifted
    along one of its last axes; mixed with another sample (Zhang et al., mixup, ICLR 2018); with a patch of another
    sample (Yun et al., CutMix, ICCV 2019); with another gain, offset and noise. All inputs of a sample are made alike.
    Integers (tokens) only take patches.
    """
    random = np.random.default_rng(seed)
    count = len(next(iter(inputs.values())))
    parts: dict[str, list[Array]] = {name: [] for name in inputs}
    for _ in range(times):
        others = random.permutation(count)
        kinds = random.integers(4, size=count)
        seeds = random.integers(1 << 31, size=count)
        for name, array in inputs.items():
            spread = float(array.std(dtype=np.float64)) if np.issubdtype(array.dtype, np.floating) else 0.0
            made = np.empty_like(array)
            for i, (other, kind, own) in enumerate(zip(others, kinds, seeds, strict=True)):
                made[i] = _variant(
                    np.asarray(array[i]), np.asarray(array[other]), int(kind), spread, np.random.default_rng(own)
                )
            parts[name].append(made)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _variant(one: Array, other: Array, kind: int, spread: float, random: np.random.Generator) -> Array:
    real = np.issubdtype(one.dtype, np.floating)
    axes = range(max(0, one.ndim - 2), one.ndim)
    if not real or kind == 2:
        made: Array = one.copy()
        window: list[slice] = [slice(None)] * one.ndim
        for axis in axes:
            size = one.shape[axis]
            width = int(random.integers(1, max(2, int(size * _PATCH) + 1)))
            start = int(random.integers(0, size - width + 1)) if size else 0
            window[axis] = slice(start, start + width)
        made[tuple(window)] = other[tuple(window)]
        return made
    if kind == 0 and one.ndim:
        axis = int(random.choice(list(axes)))
        most = max(1, int(one.shape[axis] * _SHIFT))
        moved: Array = np.roll(one, int(random.integers(1, most + 1)) * int(random.choice([-1, 1])), axis=axis)
        return moved
    if kind == 1:
        share = random.uniform(*_MIX)
        mixed: Array = ((1 - share) * one + share * other).astype(one.dtype)
        return mixed
    noise = _NOISE * random.standard_normal(one.shape) + random.uniform(-_OFFSET, _OFFSET)
    rough: Array = (one * random.uniform(1 - _GAIN, 1 + _GAIN) + spread * noise).astype(one.dtype)
    return rough
