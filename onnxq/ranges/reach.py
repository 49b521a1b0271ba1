"""Second moments of any size, brought to where float32 can hold them and their products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

# Products of two second moments, and sums of thousands of them, stay within float32 between these.
_LEAST_ENERGY, _MOST_ENERGY = 1e-15, 1e15
# Sums of squares below have lost so many bits that they may be no moments at all.
_NO_ENERGY = 1e-290


def in_reach(second: F64) -> F64:
    """``second: [g, n, n]`` or ``[g, n]``, times a power of two for each group that float32 would lose.

    Only how second moments compare within a group matters to rounding. Behind a hundred layers that each make values
    smaller they are below 1e-38, with weights of 1e20 above 1e38. Those that float64 has lost as well become 0.
    """
    energy = second if second.ndim == 2 else np.diagonal(second, axis1=1, axis2=2)
    mean = energy.mean(axis=1)
    far = (mean != 0.0) & ((mean < _LEAST_ENERGY) | (mean > _MOST_ENERGY))
    if not far.any():
        return second
    power = np.where(far, -np.frexp(mean)[1], 0)
    power = np.where(mean < _NO_ENERGY, -2000, power)  # too few bits are left of it
    return np.ldexp(second, power.reshape(-1, *[1] * (second.ndim - 1)))
