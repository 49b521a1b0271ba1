"""Accuracy of two models against labels: top-1, top-5 and cross-entropy in bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Score:
    """Of one model: shares in [0, 1] and mean bits per label; ``top5`` is None for 5 classes or fewer."""

    top1: float
    top5: float | None
    bits: float


@dataclass(frozen=True)
class Accuracy:
    """Of output ``output`` over ``rows`` labels (those below 0 are not counted)."""

    output: str
    rows: int
    float_model: Score
    quantized_model: Score


class Scorer:
    """Sums over batches; ``labels`` run along with the first axis of the outputs."""

    def __init__(self, labels: npt.ArrayLike, output: str | None) -> None:
        self.labels = class_indices(labels)
        self.output = output
        self.seen = self.rows = self.classes = 0
        self.sums = np.zeros((2, 3))  # float, quantized; top-1, top-5, bits

    def add(self, names: Sequence[str], references: Sequence[Array], tests: Sequence[Array]) -> None:
        """Score one batch of outputs. Raises ``DataError`` where labels do not fit them."""
        if self.output is None:
            self.output = classes_output(names, references)
        if self.output not in names:
            raise DataError(f"the labels are for output {self.output}, but the outputs are {', '.join(names)}")
        i = names.index(self.output)
        shape, self.classes = references[i].shape[:-1], references[i].shape[-1]
        chunk = self.labels[self.seen : self.seen + shape[0]]
        self.seen += shape[0]
        require_fit(chunk, references[i].shape, self.output, given=self.labels.shape)
        used = chunk >= 0
        self.rows += int(np.count_nonzero(used))
        for model, output in enumerate((references[i], tests[i])):
            if output.shape != (*shape, self.classes):
                raise DataError(f"output {self.output} has other shapes in the two models: labels cannot be used")
            self.sums[model] += _score(output[used], chunk[used])

    def result(self) -> Accuracy:
        """The ``Accuracy`` so far. Raises ``DataError`` where labels are left over or all were ignored."""
        if self.seen != len(self.labels):
            raise DataError(
                f"there are {len(self.labels)} labels but {self.seen} samples", hint="give one for each sample"
            )
        if not self.rows:
            raise DataError("every label is negative, which means ignored: nothing can be scored")
        scores = [
            Score(top1 / self.rows, top5 / self.rows if self.classes > 5 else None, bits / self.rows)
            for top1, top5, bits in self.sums.tolist()
        ]
        return Accuracy(self.output or "", self.rows, scores[0], scores[1])


def class_indices(labels: npt.ArrayLike) -> Array:
    """``labels`` as an array. Raises ``DataError`` where they are no integers."""
    array: Array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise DataError(f"labels must be integers (class indices), not {array.dtype}")
    return array


def distributions(outputs: Array) -> bool:
    """Whether all rows of ``outputs: [.., C]`` are probabilities already: entries at least 0, sum 1."""
    return bool((outputs >= 0).all() and (np.abs(outputs.sum(axis=-1) - 1) < 1e-3).all())


def require_fit(labels: Array, scores: Sequence[int], output: str, *, given: Sequence[int]) -> None:
    """Raises ``DataError`` unless ``labels``, of those ``given``, say of each row of ``scores: [.., C]`` what it is."""
    *rows, classes = scores
    if list(labels.shape) != rows:
        raise DataError(
            f"labels of shape {list(given)} do not fit the rows {rows} of output {output}",
            hint="give one label for each row, in the order of the samples",
        )
    if labels.size and labels.max() >= classes:
        raise DataError(f"label {labels.max()} is out of range: output {output} has {classes} classes")


def classes_output(names: Sequence[str], outputs: Sequence[Array]) -> str:
    """The first of ``outputs`` that holds float scores of classes. Raises ``DataError`` where none does."""
    for name, output in zip(names, outputs, strict=True):
        if output.dtype.kind == "f" and output.ndim >= 2 and output.shape[-1] >= 2:
            return name
    raise DataError(
        "no output holds float scores for at least 2 classes, so labels cannot be used", hint="leave them out"
    )


def _score(outputs: Array, labels: Array) -> tuple[int, int, float]:
    """(top-1 hits, top-5 hits, bits) of ``outputs: [R, C] float`` for ``labels: [R] int``.

    Ties go to the lower index, as in arg-max. Rows that are distributions already (entries at least 0, sum 1) are taken
    as probabilities, all others as logits.
    """
    x = outputs.astype(np.float64)
    if not len(x):
        return 0, 0, 0.0
    own = np.take_along_axis(x, labels[:, None], axis=1)
    before = np.arange(x.shape[1]) < labels[:, None]
    rank = np.count_nonzero((x > own) | ((x == own) & before), axis=1)
    rank[np.isnan(x).any(axis=1)] = x.shape[1]  # a row with NaN predicts nothing
    with np.errstate(all="ignore"):
        if distributions(x):
            nats = -np.log(own[:, 0])
        else:
            peak = x.max(axis=1, keepdims=True)
            nats = np.log(np.exp(x - peak).sum(axis=1)) + (peak - own)[:, 0]
    return int((rank == 0).sum()), int((rank < 5).sum()), float(nats.sum() / np.log(2))
