"""Arrays in files: ``.npz``, ``.npy`` and folders of them, read row by row."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from onnxq.calibrate.array_source import ArraySource
from onnxq.calibrate.casting import Array
from onnxq.calibrate.file_array import UNREADABLE, FileArray, unreadable
from onnxq.calibrate.layout import Layout
from onnxq.calibrate.sources import Indexed, Piece
from onnxq.errors import DataError
from onnxq.files.archives import check_directory
from onnxq.files.opening import open_file, require_regular

UNNAMED = "arr_0"  # what np.savez calls an array without a name; an .npy is one such
# Files of a folder whose shapes say which axis counts samples: that of one may be so by chance.
_FILES_READ = 16
# An array is an input; more are no data for a model.
MOST_MEMBERS = 1000


def open_arrays(path: Path) -> dict[str, FileArray]:
    """The arrays of an ``.npz`` by name, or the one of an ``.npy`` under the name ``UNNAMED``; headers are read only.

    Raises ``DataError`` where the file is missing, truncated, not such a file, or holds pickled objects.
    """
    try:
        if path.suffix.lower() == ".npy":
            return {UNNAMED: FileArray(path, None)}
        with open_file(path) as file:
            check_directory(file)
            with zipfile.ZipFile(file) as archive:
                members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        if len(members) > MOST_MEMBERS:
            raise ValueError(
                f"it holds {len(members)} arrays, and may hold {MOST_MEMBERS}: one an input, samples along axis 0"
            )
        arrays = {m.filename[: -len(".npy")]: FileArray(path, m) for m in members}
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", hint="check the path") from error
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if not arrays:
        raise DataError(f"{path} is empty: it holds no arrays", hint="write it with numpy.savez(path, name=array)")
    return arrays


def require_file(path: Path) -> None:
    """Nothing; ``DataError`` where ``path`` is no regular file: a pipe is never waited for."""
    try:
        require_regular(path, os.stat(path), None)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint="give regular files") from error


def array_file(path: Path, layout: Layout) -> ArraySource:
    """The samples of one ``.npz`` or ``.npy``: axis 0 of every array."""
    return ArraySource(open_arrays(path), layout, where=path.name)


class ArrayFolder(Indexed):
    """The samples of many ``.npz``/``.npy`` files, in the order of ``files``; shapes may differ from file to file.

    A file holds one sample (without batch axis) or several (axis 0). It is opened when its first sample is asked for,
    and forgotten when another file's is. ``count()`` reads the headers of all files, no data.
    """

    def __init__(self, root: Path, files: list[Path], layout: Layout) -> None:
        self.where = root.name or str(root)
        self._root, self._files, self.layout = root, files, layout
        self._ends: list[int] = []  # the number of samples up to and with each file whose header was read
        self._current: tuple[int, ArraySource] | None = None
        self.description = f"{self.where}/, {len(files)} files of arrays"
        if len(layout.inputs) > 1:  # of one input, names tell all there is to know
            shapes = [self._shapes(file) for file in files[:_FILES_READ]]
            self.layout = layout.seeing([found for found in shapes if found is not None])
        first = self._open(0)  # what is wrong with all files shows at once
        self.ignored, self.reading = first.ignored, first.reading

    def _shapes(self, path: Path) -> dict[str, tuple[int, ...]] | None:
        """By input, the shape of its array in the file ``path``; None where one is missing, which is told later."""
        arrays = open_arrays(path)
        names = [spec.name for spec in self.layout.inputs]
        return {name: arrays[name].shape for name in names} if all(name in arrays for name in names) else None

    def _open(self, number: int) -> ArraySource:
        if self._current is None or self._current[0] != number:
            path = self._files[number]
            name = path.relative_to(self._root).as_posix()
            source = ArraySource(open_arrays(path), self.layout, where=f"{self.where}/{name}", bare=True)
            self._current = (number, source)
        return self._current[1]

    def _locate(self, index: int) -> tuple[int, int]:
        """``(file, sample within it)`` of sample ``index``, reading headers up to there; IndexError beyond the last."""
        while not self._ends or self._ends[-1] <= index:
            number = len(self._ends)
            if number == len(self._files):
                raise IndexError(index)
            self._ends.append((self._ends[-1] if self._ends else 0) + self._open(number).count())
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (self._ends[number - 1] if number else 0)

    def __getitem__(self, index: int) -> Piece:
        number, within = self._locate(index)
        return self._open(number)[within]

    def count(self) -> int:
        while len(self._ends) < len(self._files):
            number = len(self._ends)
            self._ends.append((self._ends[-1] if self._ends else 0) + self._open(number).count())
        return self._ends[-1]

    def labels(self, key: str) -> Array:
        parts = list(self._label_parts(key))
        if len({p.shape[1:] for p in parts}) > 1:
            raise DataError(
                f"the labels {key!r} of {self.where} differ in shape from file to file", hint="give them one shape"
            )
        return np.concatenate(parts)

    def _label_parts(self, key: str) -> Iterator[Array]:
        for number in range(len(self._files)):
            yield self._open(number).labels(key)
