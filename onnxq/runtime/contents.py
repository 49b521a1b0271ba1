"""What a model answers, as arrays: sequences, maps and optionals too, by what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def contents(value: Any) -> Array:
    """The array that a value of onnxruntime is, or one of what it holds.

    | value                               | array                                                           |
    |-------------------------------------|-----------------------------------------------------------------|
    | nothing (an empty optional)         | of no elements                                                  |
    | a map                               | ``[K]``: its numbers, in the order of the keys                  |
    | a sequence of maps with equal keys  | ``[N, K]``: a row for each, as classifiers give probabilities   |
    | a sequence of tensors of one shape  | ``[N, ...]``: stacked                                           |
    | any other sequence                  | ``[...]``: all of their elements, one behind the other          |
    """
    if value is None:
        return np.zeros(0, np.float32)
    if isinstance(value, Mapping):
        return np.asarray([value[key] for key in sorted(value)])
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        parts = [contents(part) for part in value]
        maps = [part for part in value if isinstance(part, Mapping)]
        alike = all(part.keys() == maps[0].keys() for part in maps) and len(maps) in (0, len(value))
        if parts and alike and len({part.shape for part in parts}) == 1:
            return np.stack(parts)
        flat = [np.ravel(part) for part in parts]
        # Maps of other keys hold something else, whatever the numbers are.
        flat += [] if alike else [np.asarray([repr(sorted(part)) for part in maps], object)]
        return np.concatenate(flat) if flat else np.zeros(0, np.float32)
    return np.asarray(value)
