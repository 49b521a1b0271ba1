"""Labels for quantization-aware training: what they say of a model's outputs, and as targets of its training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.adapt.samples import AnswerKind, Samples, joined
from onnxq.measure.accuracy import Scorer, class_indices, classes_output, distributions, require_fit

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Labels:
    """Class indices, ``[N]`` or ``[N, T]``, of the samples that are trained on and of those held out; negative: none.

    Raises ``DataError`` where they are no integers.
    """

    fit: Array
    check: Array

    def __post_init__(self) -> None:
        for labels in (self.fit, self.check):
            class_indices(labels)


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
    kind: AnswerKind = "probabilities" if all(distributions(s.outputs[name]) for s, _ in parts) else "logits"
    return joined(
        [Samples(s.inputs, {name: _one_hot(labels, s.outputs[name], name)}, s.rows, kind) for s, labels in parts]
    )


def _one_hot(labels: Array, like: Array, name: str) -> Array:
    """``labels`` as rows of ``like``'s shape; a row of zeros where there is none."""
    require_fit(labels, like.shape, name, given=labels.shape)
    targets = np.zeros(like.shape, np.float32)
    np.put_along_axis(targets, np.maximum(labels, 0)[..., None], (labels >= 0)[..., None].astype(np.float32), axis=-1)
    return targets
