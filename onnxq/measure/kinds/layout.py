"""How the axes of an output are read: which counts samples, which holds classes, and where boxes end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Of boxes whose scores are in another output.
NO_SCORES = (4, 4)


@dataclass(frozen=True)
class Layout:
    """``batch``: the axis that counts samples; None: the output of a feed is one sample.

    ``channels``: the axis of a sample that holds classes or colours. ``scores``: where these are only some of the
    channels, which (the others are boxes, or what else is said of them). ``objectness``: whether the first of the
    scores says that there is anything at all. ``distribution``: whether scores are probabilities that sum to 1;
    ``bounded``: whether all values lie in [0, 1]. ``flat``: whether all numbers of a sample are of one kind, however
    many there are. ``rounded``: whether whole numbers were rounded, so that one more or less is a near tie.
    ``encoded``: whether boxes are relative to places that the output does not say.
    """

    batch: int | None = 0
    channels: int = -1
    scores: tuple[int, int] | None = None
    objectness: bool = False
    distribution: bool = False
    bounded: bool = False
    flat: bool = False
    rounded: bool = False
    encoded: bool = False

    def samples(self, array: Array) -> Array:
        """``[samples, ..., channels]``: a view of ``array``."""
        whole = self.batch is None or array.ndim == 0
        stacked = array[None] if whole else np.moveaxis(array, self.batch or 0, 0)
        if self.flat:
            return stacked.reshape(len(stacked), -1, 1)
        if stacked.ndim == 1:
            return stacked[:, None]
        channels = self.channels if self.channels < 0 else self.channels + 1
        if not -stacked.ndim < channels < stacked.ndim:
            return stacked
        return np.moveaxis(stacked, channels, -1)

    def where(self, feed: int, row: int, rows: int) -> tuple[int, int | None]:
        """Which sample the ``row`` of ``rows`` of a feed is."""
        return feed, None if self.batch is None or rows == 1 else row
