"""Arrays in files: ``.npz``, ``.npy`` and folders of them, read row by row.

An uncompressed array (``np.save``, ``np.savez``) never enters memory whole: rows are read from their place in the file.
A compressed one cannot be entered in the middle; up to ``RESIDENT_BYTES`` it stays in memory in its own dtype, a larger
one is decompressed again in every pass, from front to back.
"""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxq.calibrate.array_source import ArraySource
from onnxq.calibrate.casting import Array
from onnxq.calibrate.layout import Layout
from onnxq.calibrate.sources import Indexed, Piece
from onnxq.errors import DataError, one_line

RESIDENT_BYTES = 64 * 2**20
UNNAMED = "arr_0"  # what np.savez calls an array without a name; an .npy is one such
_CHUNK = 2**20
# Files of a folder whose shapes say which axis counts samples: that of one may be so by chance.
_FILES_READ = 16
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
)


class FileArray:
    """An array in an ``.npy`` (``member`` None) or a member of an ``.npz``; opening reads its header only.

    ``array[a:b]`` reads rows a to b. DataError where the file is truncated, corrupt or holds Python objects.
    """

    def __init__(self, path: Path, member: zipfile.ZipInfo | None) -> None:
        self._path, self._member = path, member
        self._resident: Array | None = None
        self._handle: IO[bytes] | None = None
        self._next = 0  # the row at which the handle stands
        with self._open() as file:
            shape, fortran, dtype = _header(file)
            self._header_bytes = file.tell()
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype[Any] = dtype
        self._row_bytes = dtype.itemsize * math.prod(shape[1:])
        stored = member is None or member.compress_type == zipfile.ZIP_STORED
        whole = fortran or not shape or self._row_bytes == 0
        small = not stored and self._row_bytes * shape[0] <= RESIDENT_BYTES if shape else True
        self._seekable = stored and not whole
        self._keep = whole or small

    def _open(self) -> IO[bytes]:
        if self._member is None:
            return open(self._path, "rb")
        # The file as opened here outlives the ZipFile object, which only shares it.
        return zipfile.ZipFile(self._path).open(self._member)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:] if self.shape else self._whole(), dtype)

    def __getitem__(self, rows: slice, /) -> Array:
        start, stop, _ = rows.indices(self.shape[0])
        try:
            if self._keep:
                return self._whole()[start:stop]
            if self._seekable:
                return self._from_disk(start, stop)
            return self._from_stream(start, stop)
        except _UNREADABLE as error:
            raise unreadable(self._path, error) from error

    def _whole(self) -> Array:
        if self._resident is None:
            try:
                with self._open() as file:
                    array: Array = np.lib.format.read_array(file, allow_pickle=False)
            except _UNREADABLE as error:
                raise unreadable(self._path, error) from error
            self._resident = array
        return self._resident

    def _from_disk(self, start: int, stop: int) -> Array:
        with open(self._path, "rb") as file:
            offset = self._header_bytes
            if self._member is not None:
                # The local header repeats name and extra field, and its extra field may differ in length.
                file.seek(self._member.header_offset + 26)
                offset += self._member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            file.seek(offset + start * self._row_bytes)
            return self._decode(file.read((stop - start) * self._row_bytes), stop - start)

    def _from_stream(self, start: int, stop: int) -> Array:
        if self._handle is None or start < self._next:
            if self._handle is not None:
                self._handle.close()
            self._handle = self._open()
            _exactly(self._handle, self._header_bytes)
            self._next = 0
        _skip(self._handle, (start - self._next) * self._row_bytes)
        data = _exactly(self._handle, (stop - start) * self._row_bytes)
        self._next = stop
        return self._decode(data, stop - start)

    def _decode(self, data: bytes, rows: int) -> Array:
        if len(data) != rows * self._row_bytes:
            raise EOFError("it ends too early")
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the .npy format holds records, not numbers")


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it ends too early")
    return data


def _skip(file: IO[bytes], size: int) -> None:
    while size > 0:
        size -= len(_exactly(file, min(size, _CHUNK)))


def unreadable(path: Path, error: BaseException) -> DataError:
    """The error for a file of arrays that cannot be read."""
    return DataError(f"{path} cannot be read ({one_line(error)}): write it again with numpy.savez or numpy.save")


def open_arrays(path: Path) -> dict[str, FileArray]:
    """The arrays of an ``.npz`` by name, or the one of an ``.npy`` under the name ``UNNAMED``; headers are read only.

    Raises ``DataError`` where the file is missing, truncated, not such a file, or holds pickled objects.
    """
    try:
        if path.suffix.lower() == ".npy":
            return {UNNAMED: FileArray(path, None)}
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        arrays = {m.filename[: -len(".npy")]: FileArray(path, m) for m in members}
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}: check the path") from error
    except _UNREADABLE as error:
        raise unreadable(path, error) from error
    if not arrays:
        raise DataError(f"{path} is empty: it holds no arrays; write it with numpy.savez(path, name=array)")
    return arrays


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
                f"the labels {key!r} of {self.where} differ in shape from file to file: give them one shape"
            )
        return np.concatenate(parts)

    def _label_parts(self, key: str) -> Iterator[Array]:
        for number in range(len(self._files)):
            yield self._open(number).labels(key)
