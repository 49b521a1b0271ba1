"""Second moments of any size, brought to where float32 can hold them and their products."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = TypeVar("Floats", npt.NDArray[np.float64], npt.NDArray[np.float32])

# Products of two second moments, and sums of thousands of them, stay within float32 between these.
_LEAST_ENERGY, _MOST_ENERGY = 1e-15, 1e15
# Sums of squares below have lost so many bits that they may be no moments at all.
_NO_ENERGY = 1e-290


def in_reach(second: Floats) -> Floats:
    """``second: [g, n, n]`` or ``[g, n]``, times a power of two for each group that float32 would lose.

    Only how second moments compare within a group matters to rounding. Behind a hundred layers that each make values
    smaller they are below 1e-38, with weights of 1e20 above 1e38. Those that float64 has lost as well become 0.
    """
    energy = second if second.ndim == 2 else np.diagonal(second, axis1=1, axis2=2)
    if within_reach(energy):
        return second
    mean = energy.mean(axis=1)
    far = _far(mean)
    power = np.where(far, -np.frexp(mean)[1], 0)
    power = np.where(mean < _NO_ENERGY, -2000, power)  # too few bits are left of it
    return np.ldexp(second, power.reshape(-1, *[1] * (second.ndim - 1)))


def within_reach(energy: Floats) -> bool:
    """Whether float32 holds second moments whose diagonals are ``energy: [g, n]``, and their products."""
    return not _far(energy.mean(axis=1)).any()


def _far(mean: Floats) -> npt.NDArray[np.bool_]:
    far: npt.NDArray[np.bool_] = (mean != 0.0) & ((mean < _LEAST_ENERGY) | (mean > _MOST_ENERGY))
    return far
