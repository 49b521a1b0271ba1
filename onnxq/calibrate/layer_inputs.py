"""Moments of what layers read, from a few positions of every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.graph.linear_layer import LinearLayer
from onnxq.ranges.moments import Moments, observe_moments
from onnxq.scratch import Scratch

Array = npt.NDArray[np.float32]

# Positions of a convolution, or rows of a matrix, that each sample adds. Over a few dozen samples they add up to
# thousands; neighbours are alike, so that more of one sample would tell little that is new.
ROWS_OF_A_SAMPLE = 32
# Rows that are multiplied out at once: with fewer the adding of matrices costs as much as their making.
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class LayerInput:
    """A layer whose inputs are watched: the tensor it reads, how it reads it, and whether all second moments count."""

    tensor: str
    layer: LinearLayer
    full: bool


class LayerInputs:
    """Collects the ``Moments`` of one layer's inputs."""

    def __init__(self, read: LayerInput, scratch: Scratch) -> None:
        self._read, self._scratch = read, scratch
        self._waiting: list[Array] = []
        self._sum: Moments | None = None
        self._samplers: dict[tuple[int, ...], Callable[[Array], Array]] = {}

    def add(self, array: npt.NDArray[Any]) -> None:
        """Take in ``array``, one value of the tensor that the layer reads; not empty."""
        shape = array.shape
        if shape not in self._samplers:
            self._samplers[shape] = self._read.layer.sampler(shape, limit=ROWS_OF_A_SAMPLE * shape[0])
        self._waiting.append(self._samplers[shape](array))
        if not self._read.full or sum(rows.shape[1] for rows in self._waiting) >= ROWS_AT_ONCE:
            self._multiply()

    def moments(self) -> Moments:
        """Those of all that was added, at least one array."""
        if self._waiting:
            self._multiply()
        assert self._sum is not None
        return self._sum

    def _multiply(self) -> None:
        found = observe_moments(np.concatenate(self._waiting, axis=1), full=self._read.full)
        self._waiting.clear()
        if self._sum is None:
            self._sum = Moments(found.count, found.total, self._scratch.zeros(found.second.shape, found.second.dtype))
            self._sum.second[...] = found.second
        else:
            second = self._sum.second
            second += found.second
            self._sum = Moments(self._sum.count + found.count, self._sum.total + found.total, second)
