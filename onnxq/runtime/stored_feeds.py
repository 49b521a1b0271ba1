"""Feeds in a file, for a child process to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def store_feeds(path: Path, feeds: Iterable[Mapping[str, npt.NDArray[Any]]]) -> None:
    """Writes ``feeds`` to the ``.npz`` file ``path``. Raises ``OSError``."""
    # Any: numpy types the names of the arrays as if one of them could be its own option.
    arrays: dict[str, Any] = {
        f"{i}/{name}": _storable(array) for i, feed in enumerate(feeds) for name, array in feed.items()
    }
    np.savez(path, **arrays)


def load_feeds(path: Path) -> list[dict[str, npt.NDArray[Any]]]:
    """The feeds that ``store_feeds`` wrote."""
    loaded: list[dict[str, npt.NDArray[Any]]] = []
    with np.load(path) as archive:
        for key in archive.files:
            index, _, name = key.partition("/")
            while len(loaded) <= int(index):
                loaded.append({})
            loaded[int(index)][name] = archive[key]
    return loaded


def _storable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Strings come as objects, which only pickle could store.
    return array.astype(str) if array.dtype.kind == "O" else array
