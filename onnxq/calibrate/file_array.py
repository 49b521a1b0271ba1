"""An array in a file, read row by row.

An uncompressed array (``np.save``, ``np.savez``) never enters memory whole: rows are read from their place in the file.
A compressed one cannot be entered in the middle; up to ``RESIDENT_BYTES`` it stays in memory in its own dtype, a larger
one is decompressed again in every pass, from front to back.
"""

from __future__ import annotations

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxq.calibrate.casting import Array
from onnxq.errors import DataError, one_line
from onnxq.files.opening import open_file, size_text

RESIDENT_BYTES = 64 * 2**20
# What is read whole for its order, and what a compressed array may unpack to: data, unlike a bomb, hardly shrinks.
LARGEST_WHOLE = 256 * 2**20
LARGEST_UNPACKED, MOST_SHRUNK = 256 * 2**20, 200
_CHUNK = 2**20
_MOST_EMPTY = 2**20
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    # What a header can be that is no Python literal, or none that describes an array.
    ArithmeticError,
    LookupError,
    MemoryError,
    SyntaxError,
    TypeError,
    struct.error,
    tokenize.TokenError,
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
        self._whole_only = fortran or not shape or self._row_bytes == 0
        self._check_size()
        stored = member is None or member.compress_type == zipfile.ZIP_STORED
        small = not stored and self._row_bytes * shape[0] <= RESIDENT_BYTES if shape else True
        self._seekable = stored and not self._whole_only
        self._keep = self._whole_only or small

    def _check_size(self) -> None:
        """Raises where the header promises more than there is, or than is taken."""
        if self._member is None:
            there = packed = os.stat(self._path).st_size
        else:
            there, packed = self._member.file_size, self._member.compress_size
        rows, size = (self.shape or (1,))[0], self._row_bytes * (self.shape or (1,))[0]
        if min(self.shape, default=0) < 0 or self._header_bytes + size > there:
            raise ValueError(f"its header promises {list(self.shape)}, {size_text(size)}, and it holds fewer")
        if size == 0 and rows > _MOST_EMPTY:
            raise ValueError(f"its header promises {rows} samples of nothing")
        if there > LARGEST_UNPACKED and there > MOST_SHRUNK * max(packed, 1):
            raise ValueError(
                f"{size_text(packed)} of it would unpack to {size_text(there)}; above {size_text(LARGEST_UNPACKED)} it "
                f"may be {MOST_SHRUNK} times its size"
            )
        if self._whole_only and size > LARGEST_WHOLE:
            raise ValueError(
                f"its order takes all of its {size_text(size)} at once, and may take {size_text(LARGEST_WHOLE)}: "
                "use numpy.ascontiguousarray"
            )

    def _open(self) -> IO[bytes]:
        if self._member is None:
            return open_file(self._path)
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
        except UNREADABLE as error:
            raise unreadable(self._path, error) from error

    def _whole(self) -> Array:
        if self._resident is None:
            try:
                with self._open() as file:
                    array: Array = np.lib.format.read_array(file, allow_pickle=False)
            except UNREADABLE as error:
                raise unreadable(self._path, error) from error
            self._resident = array
        return self._resident

    def _from_disk(self, start: int, stop: int) -> Array:
        with open_file(self._path) as file:
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
    return DataError(f"{path} cannot be read ({one_line(error)})", hint="write it again with numpy.savez or numpy.save")
