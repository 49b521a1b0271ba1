"""Labels for quantization-aware training: what they say of a model's outputs, and as targets of its training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxq.adapt.samples import Samples
from onnxq.errors import DataError
from onnxq.measure.accuracy import Scorer, classes_output, require_fit

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Labels:
    """Class indices, ``[N]`` or ``[N, T]``, of the samples that are trained on and of those kept aside; negative: none.

    Raises ``DataError`` where they are no integers.
    """

    fit: Array
    check: Array

    def __post_init__(self) -> None:
        for labels in (self.fit, self.check):
            if labels.dtype.kind not in "iu":
                raise DataError(f"labels must be integers (class indices), not {labels.dtype}")


def cross_entropy(answers: Iterable[Mapping[str, Array]], labels: Array) -> float:
    """Nats a label: minus the logarithm of the probability that outputs, logits or probabilities, give to it.

    ``answers``: the outputs of batches, in the order of ``labels``. Raises ``DataError`` where they do not fit.
    """
    scorer = Scorer(labels, None)
    for answer in answers:
        names, arrays = list(answer), list(answer.values())
        scorer.add(names, arrays, arrays)
    return scorer.result().float_model.bits * math.log(2)


def labelled(parts: Sequence[tuple[Samples, Array]]) -> Samples:
    """All samples, with the labels of the output that holds classes, one-hot, as what it ought to be.

    Raises ``DataError`` where labels and outputs do not fit.
    """
    first = parts[0][0]
    name = classes_output(list(first.outputs), list(first.outputs.values()))
    targets = [_one_hot(labels, samples.outputs[name], name) for samples, labels in parts]
    inputs = {n: np.concatenate([samples.inputs[n] for samples, _ in parts]) for n in first.inputs}
    distributions = all(_distributions(samples.outputs[name]) for samples, _ in parts)
    kind: Literal["logits", "probabilities"] = "probabilities" if distributions else "logits"
    return Samples(inputs, {name: np.concatenate(targets)}, first.rows, labels=kind)


def _one_hot(labels: Array, like: Array, name: str) -> Array:
    """``labels`` as rows of ``like``'s shape; a row of zeros where there is none."""
    require_fit(labels, like.shape, name, given=labels.shape)
    targets = np.zeros(like.shape, np.float32)
    np.put_along_axis(targets, np.maximum(labels, 0)[..., None], (labels >= 0)[..., None].astype(np.float32), axis=-1)
    return targets


def _distributions(outputs: Array) -> bool:
    return bool((outputs >= 0).all() and (np.abs(outputs.sum(axis=-1) - 1) < 1e-3).all())
