"""Where a float model is sure of a decision, and where it is as good as tied.

Odds of 3 to 2 are the limit. If the model's probabilities are right, another choice at worse odds costs a fifth of a
right answer at most (0.6 to 0.4) and a tenth in the mean, so that such a flip says little of what quantization cost.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

SURE = math.log(1.5)  # of first to second choice, in logarithms
MARGIN = 0.1  # of probabilities, about a threshold: the same odds about 0.5


def first_two(scores: Array) -> tuple[Array, Floats, Floats]:
    """(index of the first, its score, that of the second) along the last axis, which has two entries or more."""
    index = scores.argmax(axis=-1)
    first = np.take_along_axis(scores, index[..., None], axis=-1)[..., 0]
    others = np.array(scores)
    np.put_along_axis(others, index[..., None], -np.inf, axis=-1)
    return index, first.astype(np.float64), others.max(axis=-1).astype(np.float64)


def is_sure(first: Floats, second: Floats, *, probabilities: bool) -> npt.NDArray[np.bool_]:
    """Where the odds of the first choice to the second are 3 to 2 or better; scores are logarithms otherwise."""
    with np.errstate(all="ignore"):
        if probabilities:
            found: npt.NDArray[np.bool_] = first >= 1.5 * second
        else:
            found = first - second >= SURE
    return found


def far_from(scores: Array, threshold: float, *, probabilities: bool) -> npt.NDArray[np.bool_]:
    """Where scores are so far from a threshold that which side they are on is sure."""
    found: npt.NDArray[np.bool_] = np.abs(scores - threshold) >= (MARGIN if probabilities else SURE)
    return found
