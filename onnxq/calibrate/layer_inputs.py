"""Moments of what layers read, from a few positions of every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.files.scratch import Scratch
from onnxq.graph.geometry import Product
from onnxq.ranges.moments import Moments, MomentSums

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
    layer: Product
    full: bool


class LayerInputs:
    """Collects the ``Moments`` of one layer's inputs."""

    def __init__(self, read: LayerInput, scratch: Scratch) -> None:
        self._read = read
        self._waiting: list[Array] = []
        self._sums = MomentSums(full=read.full, zeros=lambda shape: scratch.zeros(shape, np.dtype(np.float64)))
        self._samplers: dict[tuple[int, ...], Callable[[Array], Array]] = {}

    def add(self, array: npt.NDArray[Any]) -> None:
        """Take in ``array``, one value of the tensor that the layer reads; not empty."""
        shape = array.shape
        if shape not in self._samplers:
            self._samplers[shape] = self._read.layer.sampler(shape, limit=ROWS_OF_A_SAMPLE * shape[0])
        # A missing value adds nothing.
        self._waiting.append(np.nan_to_num(self._samplers[shape](array), nan=0.0, posinf=np.inf, neginf=-np.inf))
        if not self._read.full or sum(rows.shape[1] for rows in self._waiting) >= ROWS_AT_ONCE:
            self._multiply()

    def moments(self) -> Moments:
        """Those of all that was added, at least one array."""
        if self._waiting:
            self._multiply()
        return self._sums.moments()

    def _multiply(self) -> None:
        self._sums.add(np.concatenate(self._waiting, axis=1))
        self._waiting.clear()
