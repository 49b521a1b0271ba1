"""Moments of what layers read, from a few positions of every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.files.scratch import Scratch, let_go
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
    """Collects the ``Moments`` of one layer's inputs; where those are large, from rows that wait in a file."""

    def __init__(self, read: LayerInput, scratch: Scratch) -> None:
        self._read = read
        self._waiting: list[Array] = []
        self._sums = MomentSums(full=read.full, zeros=lambda shape: scratch.zeros(shape, np.dtype(np.float64)))
        self._samplers: dict[tuple[int, ...], Callable[[Array], Array]] = {}
        self._matrix_bytes = read.layer.groups * read.layer.inputs**2 * 8
        self._rows = scratch.file() if read.full and scratch.mapped(self._matrix_bytes) else None

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
        self._add_up()
        found = self._sums.moments()
        let_go(found.second)
        return found

    def _multiply(self) -> None:
        rows = np.concatenate(self._waiting, axis=1)
        self._waiting.clear()
        if self._rows is None:
            self._sums.add(rows)
            return
        self._rows.append(rows)
        if self._rows.nbytes > self._matrix_bytes:
            self._add_up()

    def _add_up(self) -> None:
        """Adds the rows in the file to the sums."""
        if self._rows is not None and len(self._rows):
            for index in range(len(self._rows)):
                self._sums.add(self._rows[index])
            self._rows.clear()
            self._sums.let_go()
