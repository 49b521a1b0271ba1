"""How many scales a tensor has: one, one per slice of an axis, or one per block along an axis.

| granularity                | tensor shape | scale shape                     | axis means           |
|----------------------------|--------------|---------------------------------|----------------------|
| ``PerTensor()``            | any          | ``[]``                          |                      |
| ``PerAxis(axis=a)``        | ``[.., A, ..]`` | ``[A]``                      | the axis that is kept |
| ``PerBlock(axis=a, size)`` | ``[.., A, ..]`` | ``[.., ceil(A / size), ..]`` | the axis that is split |

These are the three forms of ONNX's QuantizeLinear (operator specification, versions 10, 13 and 21).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.errors import NumericsError


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``[]``."""
        return ()

    def expand(self, values: npt.NDArray[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        """``values`` of the scale's shape, broadcastable to ``shape``."""
        return values

    def __str__(self) -> str:
        return "per-tensor"


@dataclass(frozen=True)
class PerAxis:
    """One scale for every index of ``axis``, which is kept."""

    axis: int

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``[shape[axis]]``; raises ``NumericsError`` where the tensor has no such axis."""
        _check_axis(self.axis, shape)
        return (shape[self.axis],)

    def expand(self, values: npt.NDArray[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        """``values: [A]`` as ``[1, .., A, .., 1]``."""
        _check_axis(self.axis, shape)
        return values.reshape([-1 if i == self.axis % len(shape) else 1 for i in range(len(shape))])

    def __str__(self) -> str:
        return f"per-axis({self.axis})"


@dataclass(frozen=True)
class PerBlock:
    """One scale for every ``size`` neighbours along ``axis``; the last block may be shorter."""

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise NumericsError(f"a block holds at least one element, not {self.size}")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``shape`` with ``shape[axis]`` replaced by the number of blocks."""
        _check_axis(self.axis, shape)
        a = self.axis % len(shape)
        return (*shape[:a], -(-shape[a] // self.size), *shape[a + 1 :])

    def expand(self, values: npt.NDArray[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        """``values`` repeated along the split axis to ``shape``."""
        _check_axis(self.axis, shape)
        a = self.axis % len(shape)
        return np.repeat(values, self.size, axis=a).take(range(shape[a]), axis=a)

    def __str__(self) -> str:
        return f"per-block({self.axis}, {self.size})"


Granularity = PerTensor | PerAxis | PerBlock


def _check_axis(axis: int, shape: tuple[int, ...]) -> None:
    if not -len(shape) <= axis < len(shape):
        raise NumericsError(f"a tensor of shape {list(shape)} has no axis {axis}")
