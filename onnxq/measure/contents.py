"""Outputs that are no tensors, as arrays that can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def contents(value: Any) -> npt.NDArray[Any]:
    """``value`` if it is an array; all elements of a sequence one after another, of a map in the order of its keys.

    An optional that holds nothing has no elements.
    """
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        parts = [contents(part).reshape(-1) for part in value]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return np.zeros(0, np.float32) if value is None else np.asarray(value)
