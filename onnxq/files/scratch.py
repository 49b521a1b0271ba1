"""Large arrays in files: memory that the kernel may take back, since it can read it again."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Arrays below this size always stay in memory; of larger ones so many bytes in all do.
SMALL_BYTES = 1 << 20
MEMORY_BYTES = 256 << 20


class Scratch:
    """Keeps what one job computes: in memory up to ``budget`` bytes, from then on mapped from files in ``folder``.

    Without a folder everything stays in memory. A mapped array outlives its folder where the system lets files be
    removed that are in use; elsewhere the folder stays until the array is gone.
    """

    def __init__(self, folder: Path | None = None, *, budget: int | None = None) -> None:
        self._folder, self._left = folder, MEMORY_BYTES if budget is None else budget
        self._numbers, self._lock = count(), Lock()

    def kept(self, array: Array) -> Array:
        """``array``, or a map of a copy of it that can be read only."""
        if not self._mapped(array.nbytes):
            return array
        copy = self._map(array.shape, array.dtype)
        copy[...] = array
        copy.flush()
        copy.flags.writeable = False
        return copy

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Zeros to add to."""
        if not self._mapped(int(np.prod(shape)) * np.dtype(dtype).itemsize):
            return np.zeros(shape, dtype)
        return self._map(shape, np.dtype(dtype))

    def _mapped(self, size: int) -> bool:
        if self._folder is None or size < SMALL_BYTES:
            return False
        with self._lock:
            self._left -= size
            return self._left < 0

    def _map(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
        assert self._folder is not None
        path = self._folder / f"array_{next(self._numbers)}"
        size = int(np.prod(shape)) * dtype.itemsize
        with path.open("wb") as file:
            # Where the disk is full an array that is mapped kills the process when it is written; this raises.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def discard(runtime_model: bytes | Path) -> None:
    """Removes the files, if it has any, of a model that was written for the runtime to look at in passing."""
    if isinstance(runtime_model, Path):
        for path in (runtime_model, runtime_model.with_name(f"{runtime_model.name}.data")):
            path.unlink(missing_ok=True)
