"""Large arrays in files: memory that the kernel may take back, since it can read it again."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Condition, Lock
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Arrays below this size always stay in memory; of larger ones so many bytes in all do.
SMALL_BYTES = 1 << 20
MEMORY_BYTES = 256 << 20


class Scratch:
    """Keeps what one job computes: in memory up to ``budget`` bytes, from then on mapped from files in ``folder``.

    Without a folder everything stays in memory. A mapped array outlives its folder where the system lets files be
    removed that are in use; elsewhere the folder stays until the array is gone. ``workspace``: bytes that threads may
    work in at the same time, None for any number.
    """

    def __init__(self, folder: Path | None = None, *, budget: int | None = None, workspace: int | None = None) -> None:
        self._folder, self._left = folder, MEMORY_BYTES if budget is None else budget
        self._numbers, self._lock = count(), Lock()
        self._maps: list[weakref.ref[np.memmap[Any, Any]]] = []
        self.workspace, self._taken, self._changed = workspace, 0, Condition()

    def kept(self, array: Array) -> Array:
        """``array``, or a map of a copy of it that can be read only."""
        if not self.mapped(array.nbytes):
            return array
        copy = self._map(array.shape, array.dtype)
        copy[...] = array
        copy.flush()
        copy.flags.writeable = False
        let_go(copy)
        return copy

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Zeros to add to."""
        if not self.mapped(int(np.prod(shape)) * np.dtype(dtype).itemsize):
            return np.zeros(shape, dtype)
        return self._map(shape, np.dtype(dtype))

    def mapped(self, size: int) -> bool:
        """Whether an array of ``size`` bytes goes to a file; if not, these bytes are taken from the budget."""
        if self._folder is None or size < SMALL_BYTES:
            return False
        with self._lock:
            self._left -= size
            return self._left < 0

    def file(self) -> ArrayFile | None:
        """A new file for arrays; None where there is no folder for files."""
        return None if self._folder is None else ArrayFile(self._folder / f"arrays_{next(self._numbers)}")

    def release(self) -> None:
        """Lets go of the pages of all maps: they are read again when they are looked at."""
        with self._lock:
            self._maps = [ref for ref in self._maps if ref() is not None]
            maps = [array for ref in self._maps if (array := ref()) is not None]
        for array in maps:
            let_go(array)

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        """Waits until ``size`` bytes of the workspace are free, and has them; more than there are when all are free."""
        if self.workspace is None:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + size <= (self.workspace or 0))
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()

    def _map(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
        assert self._folder is not None
        path = self._folder / f"array_{next(self._numbers)}"
        size = int(np.prod(shape)) * dtype.itemsize
        with path.open("wb") as file:
            _reserve(file, size)
        array = np.memmap(path, dtype=dtype, mode="r+", shape=shape)
        with self._lock:
            self._maps.append(weakref.ref(array))
        return array


class ArrayFile:
    """Arrays in one file, one after another: written once, read when they are asked for, never in memory together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[tuple[int, np.dtype[Any], tuple[int, ...]]] = []
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, array: Array) -> int:
        """Writes ``array``, of numbers, behind the others; its index."""
        with self._path.open("ab") as file:
            np.ascontiguousarray(array).tofile(file)
        self._entries.append((self.nbytes, array.dtype, array.shape))
        self.nbytes += array.nbytes
        return len(self._entries) - 1

    def __getitem__(self, index: int) -> Array:
        offset, dtype, shape = self._entries[index]
        return np.fromfile(self._path, dtype, int(np.prod(shape)), offset=offset).reshape(shape)

    def clear(self) -> None:
        """Forgets all of them, and gives their room on the disk back."""
        self._entries.clear()
        self.nbytes = 0
        self._path.unlink(missing_ok=True)


def in_file(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Zeros in a file that has no name and is gone with the array; ``let_go`` gives their memory back at any time."""
    with tempfile.TemporaryFile() as file:
        _reserve(file, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.asarray(np.memmap(file, dtype=dtype, mode="r+", shape=shape))


def _reserve(file: BinaryIO, size: int) -> None:
    """Makes ``file`` as long; where the disk is full, writing to a map of it kills the process: this raises."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def let_go(array: Array) -> None:
    """Gives back the memory of a mapped array, whose file still has it; nothing where ``array`` is not mapped."""
    owner: Any = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        nearer = (getattr(owner, name, None) for name in ("_mmap", "base", "obj"))
        owner = next((found for found in nearer if found is not None), None)
    forget(owner)


def forget(pages: mmap.mmap | None) -> None:
    """Gives back the memory of a mapped file; nothing where the system knows no such thing."""
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        with suppress(ValueError, OSError):  # closed, or a system that refuses
            pages.madvise(mmap.MADV_DONTNEED)


def discard(runtime_model: bytes | Path) -> None:
    """Removes the files, if it has any, of a model that was written for the runtime to look at in passing."""
    if isinstance(runtime_model, Path):
        for path in (runtime_model, runtime_model.with_name(f"{runtime_model.name}.data")):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder of its own, or of others too
            runtime_model.parent.rmdir()
