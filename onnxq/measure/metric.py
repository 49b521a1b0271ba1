"""The user's own measure of a model, before and after: a number a sample, or predictions that are scored together.

Higher is better.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxq.errors import ConfigError, DataError
from onnxq.measure.accuracy import class_indices, classes_output, require_fit
from onnxq.measure.user_code import called, number, packed, short, takes
from onnxq.numerics.interval import paired_interval, student_t
from onnxq.numerics.share import lower_end
from onnxq.runtime.plain import plain

Array = npt.NDArray[Any]
Outputs: TypeAlias = "Mapping[str, Any]"
# A feed, and by sample in it the label (None where there are none) and its number in the user's data.
Labelled: TypeAlias = "Iterable[tuple[Mapping[str, Array], Sequence[Any], Sequence[int]]]"

# What may be lost where nothing was said: this share of what the float model reaches.
USUAL_DROP = 0.01
# Parts of the samples that a score is computed without, each in turn, for its uncertainty.
_GROUPS = 20


@dataclass(frozen=True)
class MetricComparison:
    """What a metric says of two models over ``samples``; ``low`` to ``high``: the 95 % interval of the difference.

    ``max_drop``: the most that may be lost, in the metric's own unit. ``truth``: what it was measured against.
    """

    name: str
    samples: int
    truth: str
    before: float
    after: float
    low: float
    high: float
    max_drop: float

    @property
    def difference(self) -> float:
        """After less before: below 0 where the quantized model is worse."""
        return self.after - self.before

    @property
    def good(self) -> bool:
        """Whether no more was lost than may be."""
        # A float's last digits are no loss: 0.9 - 0.895 is a little more than 0.005.
        return self.difference >= -self.max_drop - 1e-9 * max(abs(self.before), abs(self.after))

    @property
    def proven(self) -> bool:
        """Whether the interval says so too."""
        return self.good and self.low >= -self.max_drop

    @property
    def hopeless(self) -> bool:
        """Whether more was lost than may be, beyond chance: no more samples would change that."""
        return self.high < -self.max_drop

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; an interval that is not known has null for its ends."""
        return {**plain(self), "difference": self.difference, "good": self.good, "proven": self.proven}


@dataclass(frozen=True)
class Answering:
    """A model as a metric sees it: ``of`` a feed, its outputs in the order of ``names``; ``who`` it is in words."""

    who: str
    names: Sequence[str]
    of: Callable[[Mapping[str, Array]], Sequence[Any]]


class Metric(Protocol):
    """A measure: what it sees in each sample (``of``), and what that says of two models (``compared``).

    ``takes_truth``: whether ``of`` wants the label of the sample or, where there are none, what the float model says.
    ``against_float``: whether the float model says what is right where there are no labels.
    """

    name: str
    takes_truth: bool
    against_float: bool

    def of(self, outputs: Outputs, truth: Any, *, place: str) -> Any:
        """What ``outputs`` of one sample are worth; ``place`` says which, in words."""

    def compared(self, before: Sequence[Any], after: Sequence[Any], labels: Sequence[Any] | None) -> Compared:
        """The measure of both models, and the interval of the difference."""


@dataclass(frozen=True)
class Compared:
    """``before``, ``after`` over ``samples``, and the interval of the difference."""

    before: float
    after: float
    low: float
    high: float
    samples: int


class SampleMetric:
    """``function`` of a sample's outputs, and of its truth where it takes one: a number; the mean counts."""

    def __init__(self, name: str, function: Callable[..., Any], *, labelled: bool) -> None:
        self.name, self._function = name, function
        self.takes_truth = labelled or not takes(function, 1)
        self.against_float = self.takes_truth
        if not takes(function, 1 + self.takes_truth):
            given = "the outputs and the label" if labelled else "the outputs (and what the float model gives)"
            raise ConfigError(
                f"metric {name} cannot be called with {given} of a sample",
                hint=f"write it as def {short(name)}({'outputs, label' if labelled else 'outputs'})",
            )

    def of(self, outputs: Outputs, truth: Any, *, place: str) -> float | None:
        """The number that is given to one sample."""
        arguments = (outputs, truth) if self.takes_truth else (outputs,)
        return number(called(self._function, arguments, self.name, place), self.name, place)

    def compared(self, before: Sequence[Any], after: Sequence[Any], labels: Sequence[Any] | None) -> Compared:
        """Means, and the interval by Student's t over samples."""
        both = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
        if not both:
            raise DataError(f"{self.name} counts none of the samples", hint="give labels that are not negative")
        first, second = np.asarray(both, np.float64).T
        return Compared(float(first.mean()), float(second.mean()), *paired_interval(first, second), len(both))


class Top1(SampleMetric):
    """The share of a sample's labels that are the largest entry of its row, in the first output that holds classes."""

    name = "top-1"

    def __init__(self) -> None:
        super().__init__(self.name, _top1, labelled=True)

    def of(self, outputs: Outputs, truth: Any, *, place: str) -> float | None:
        return _top1(outputs, truth)


class ScoreMetric:
    """``predict``: from a sample's outputs to a prediction; ``score``: from all of them and the labels to a number.

    Where there are no labels, the float model's predictions are the labels.
    """

    takes_truth = False
    against_float = True

    def __init__(self, name: str, predict: Callable[..., Any], score: Callable[..., Any]) -> None:
        self.name, self._predict, self._score = name, predict, score
        self._names = tuple(part.strip() for part in (*name.split(","), name)[:2])
        if not takes(predict, 1):
            raise ConfigError(
                f"metric {self._names[0]} cannot be called with the outputs of a sample",
                hint=f"write it as def {short(self._names[0])}(outputs), and let it return the prediction",
            )
        if not takes(score, 2):
            raise ConfigError(
                f"metric {self._names[1]} cannot be called with predictions and labels",
                hint=f"write it as def {short(self._names[1])}(predictions, labels)",
            )

    def of(self, outputs: Outputs, truth: Any, *, place: str) -> Any:
        """The prediction for one sample."""
        return called(self._predict, (outputs,), self._names[0], place)

    def compared(self, before: Sequence[Any], after: Sequence[Any], labels: Sequence[Any] | None) -> Compared:
        """Scores, and the interval by the jackknife with groups of samples left out in turn."""
        truth = before if labels is None else labels
        count = len(before)
        everything = range(count)
        first, second = (self._scored(found, truth, everything) for found in (before, after))
        groups = min(_GROUPS, count)
        if groups < 2:
            return Compared(first, second, -math.inf, math.inf, count)
        kept = [[i for i in everything if i % groups != group] for group in range(groups)]
        parts = []
        for found, score in ((before, first), (after, second)):
            try:
                parts.append([groups * score - (groups - 1) * self._scored(found, truth, which) for which in kept])
            except DataError:  # of a part of the samples a score need not be defined
                return Compared(first, second, -math.inf, math.inf, count)
        change = np.subtract(parts[1], parts[0])
        if not change.any():
            # Not one group differs: no more samples do than would show, and each loses at most what a sample is worth.
            wide = (1.0 - lower_end(count, count)) * max(float(np.ptp(parts[0])), abs(first))
        else:
            wide = student_t(groups - 1) * float(change.std(ddof=1)) / math.sqrt(groups)
        return Compared(first, second, second - first - wide, second - first + wide, count)

    def _scored(self, predictions: Sequence[Any], labels: Sequence[Any], which: Sequence[int]) -> float:
        place = f"{len(which)} samples"
        arguments = (packed([predictions[i] for i in which]), packed([labels[i] for i in which]))
        return number(called(self._score, arguments, self._names[1], place), self._names[1], place)


def measured_by(
    metric: Metric, before: Sequence[Any], after: Sequence[Any], labels: Sequence[Any] | None, max_drop: float | None
) -> MetricComparison:
    """The ``MetricComparison`` of what ``metric`` saw of both models; ``max_drop``: None for the usual one."""
    found = metric.compared(before, after, labels)
    most = USUAL_DROP * abs(found.before) if max_drop is None else max_drop
    truth = "labels" if labels is not None else "the float model" if metric.against_float else ""
    return MetricComparison(metric.name, found.samples, truth, found.before, found.after, found.low, found.high, most)


def seen(metric: Metric, model: Answering, feeds: Labelled, truth: Answering | None) -> Iterator[tuple[Any, Any]]:
    """By sample, what ``metric`` sees in what ``model`` answers, and the label.

    ``truth``: what answers take the place of labels where a metric wants some; None: labels do.
    """
    for feed, labels, places in feeds:
        count = len(labels)
        answers = _by_sample(model, feed, count)
        truths = labels if truth is None or not metric.takes_truth else _by_sample(truth, feed, count)
        for outputs, true, label, which in zip(answers, truths, labels, places, strict=True):
            yield metric.of(outputs, true, place=f"sample {which} by {model.who}"), label


def _by_sample(model: Answering, feed: Mapping[str, Array], count: int) -> list[dict[str, Any]]:
    """The outputs of each of ``count`` samples by name, the user's own to change; each with its batch axis."""
    outputs = dict(zip(model.names, model.of(feed), strict=True))
    return [
        {
            name: value[i : i + 1].copy() if _is_rows(value, count) else copy.copy(value)
            for name, value in outputs.items()
        }
        for i in range(count)
    ]


def _is_rows(value: Any, count: int) -> bool:
    return count > 1 and isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == count


def _top1(outputs: Outputs, label: Any) -> float | None:
    """The share of ``label`` that the largest entries are; None where all labels are negative, which means none."""
    names, arrays = list(outputs), list(outputs.values())
    name = classes_output(names, arrays)
    scores: Array = outputs[name]
    labels = class_indices(label).reshape(scores.shape[:-1] if np.size(label) == np.size(scores[..., 0]) else -1)
    require_fit(labels, scores.shape, name, given=np.shape(label))
    counted = labels >= 0
    return float((scores.argmax(axis=-1) == labels)[counted].mean()) if counted.any() else None
