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

    def place(self, number: int) -> str:
        """That of feed ``number``, in words."""


def place_of(feeds: object, number: int) -> str:
    """Where feed ``number`` of ``feeds`` comes from; its number where nobody knows."""
    return feeds.place(number) if isinstance(feeds, Placed) else f"feed {number}"


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
