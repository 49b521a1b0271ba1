"""Where a feed comes from, in the user's words, and the error for one that leaves an output undefined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from onnxq.errors import DataError


@runtime_checkable
class Placed(Protocol):
    """Feeds that know which sample of the user's data each is made of."""

    def place(self, number: int, row: int | None = None) -> str:
        """That of feed ``number``, or of its ``row``, in words."""


def place_of(feeds: object, number: int, row: int | None = None) -> str:
    """Where feed ``number`` of ``feeds``, or its ``row``, comes from; its number where nobody knows."""
    if isinstance(feeds, Placed):
        return feeds.place(number, row)
    return f"feed {number}" if row is None else f"row {row} of feed {number}"


def holds_nan(array: npt.NDArray[Any]) -> bool:
    """Whether ``array`` holds NaN."""
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def require_defined(
    output: str, answer: npt.NDArray[Any], feed: Mapping[str, npt.NDArray[Any]], *, place: Callable[[], str]
) -> None:
    """Raises ``DataError`` where what is no number in ``feed`` shows in the float model's ``answer``.

    NaN there is no missing value then, and infinity no mask, whose minus infinity may well be an answer too.
    """
    if answer.dtype.kind != "f" or np.isfinite(answer).all():
        return
    for name, array in feed.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        if holds_nan(answer) or np.isposinf(array).any():
            what = "NaN" if holds_nan(array) else "infinity"
            raise DataError(
                f"output '{output}' of the float model is {'NaN' if holds_nan(answer) else 'infinite'} for {place()}, "
                f"which holds {what} in the input '{name}'",
                hint="remove or repair that sample",
            )
