"""What lies in the file for the codes of a weight, and how it becomes codes again.

Each representation has its reference beside it: ``unpack``, in plain numpy, undoes ``pack``, and the nodes that
``spelled`` makes must compute the same (tests compare all three).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import NumericsError
from onnxq.numerics import INT4, UINT4, PerAxis, Quantized
from onnxq.numerics.packing import Packed, Packing
from onnxq.ranges.samples import from_rows, rows_of
from onnxq.weights import unpacking
from onnxq.weights.unpacking import V, Writer

Ints = npt.NDArray[np.integer]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Representation(ABC):
    """How the codes of one weight are stored. ``axis`` is everywhere that of the output channels."""

    @abstractmethod
    def pack(self, codes: Ints, *, axis: int) -> Arrays:
        """The arrays in the file that hold ``codes: [..]``. Raises ``NumericsError`` where they cannot."""

    @abstractmethod
    def unpack(self, arrays: Arrays, shape: tuple[int, ...], *, axis: int) -> Ints:
        """The codes of ``shape`` that ``arrays`` hold: the reference for all that reads them."""

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The fields that are arrays: what this weight's differs in from others of its format, codes apart."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), np.ndarray)}


class Foldable(Representation):
    """A representation that constant nodes turn into the codes; the runtime folds them when it loads the model."""

    @property
    def extensible(self) -> bool:
        """Whether it holds the codes as well with others of 0 among them."""
        return True

    @property
    def in_rows(self) -> bool:
        """Whether it is stored channel by channel: what is no matrix is spelled as one with channels first."""
        return False

    @abstractmethod
    def spelled(self, writer: Writer[V], codes: Ints, *, axis: int, shift: int) -> V:
        """A value that holds ``codes + shift``, ``[..] int8``. Raises ``NumericsError`` as ``pack`` does."""


@dataclass(frozen=True, eq=False)
class StoredWeight(Quantized):
    """A weight in integers, and what of it lies in the file."""

    representation: Representation


@dataclass(frozen=True, eq=False)
class Plain(Foldable):
    """A byte for each code."""

    def pack(self, codes: Ints, *, axis: int) -> Arrays:
        return {"quantized": codes}

    def unpack(self, arrays: Arrays, shape: tuple[int, ...], *, axis: int) -> Ints:
        return arrays["quantized"].reshape(shape)

    def spelled(self, writer: Writer[V], codes: Ints, *, axis: int, shift: int) -> V:
        return writer.constant((codes + codes.dtype.type(shift)).astype(codes.dtype), "quantized")


@dataclass(frozen=True, eq=False)
class Levels(Foldable):
    """``bits`` for each code, which is one of ``levels: [K]``, ascending, at most ``2^bits`` of them.

    Raises ``NumericsError`` for other levels.
    """

    bits: int
    levels: Ints

    def __post_init__(self) -> None:
        _check_levels(self.levels, self.bits)

    @property
    def consecutive(self) -> bool:
        """Whether the levels are all the integers between two: the table is then one of many weights."""
        count = 1 << self.bits
        return self.levels.size == count and int(self.levels[-1]) - int(self.levels[0]) == count - 1

    @property
    def extensible(self) -> bool:
        """Whether it holds the codes as well with others of 0 among them: 0 need not be a level."""
        return self.consecutive and bool((self.levels == 0).any())

    def pack(self, codes: Ints, *, axis: int) -> Arrays:
        return _arrays(Packing(self.bits).pack(self._indices(codes)))

    def unpack(self, arrays: Arrays, shape: tuple[int, ...], *, axis: int) -> Ints:
        return self.levels[_indices_of(arrays, self.bits, shape)]

    def spelled(self, writer: Writer[V], codes: Ints, *, axis: int, shift: int) -> V:
        if writer.native and self.consecutive and self.levels[0] == INT4.qmin and self.bits == INT4.bits and not shift:
            # (DequantizeLinear reads int4 too, but no integer kernel fuses that.)
            return writer.cast(writer.int4(codes, "int4"), np.int8, "unpacked")
        packing = Packing(self.bits)
        missing = (1 << self.bits) - self.levels.size
        padded = np.concatenate([self.levels, np.repeat(self.levels[-1:], missing)]).astype(codes.dtype)
        groups, held = unpacking.looked_up(
            writer,
            packing.table(padded + codes.dtype.type(shift)),
            packing,
            packing.pack(self._indices(codes)),
            pairs_from=unpacking.PAIRED if self.consecutive else unpacking.PAIRED_ALONE,
        )
        return unpacking.shaped(writer, groups, codes.shape, of=held)

    def _indices(self, codes: Ints) -> Ints:
        """Which level each of ``codes`` is."""
        where = np.searchsorted(self.levels, codes)
        if not np.array_equal(self.levels[np.minimum(where, self.levels.size - 1)], codes):
            raise NumericsError(f"codes that {self.bits} bits do not hold")
        return where


@dataclass(frozen=True, eq=False)
class BlockLevels(Foldable):
    """``bits`` for each code and a byte for each block: codes are ``multiples: [C, blocks]`` times ``levels: [K]``.

    Blocks are of ``size`` codes along the inputs of a channel; levels as in ``Levels``, 0 among them; multiples from 1.

    Raises ``NumericsError`` for other levels or multiples.
    """

    bits: int
    levels: Ints
    size: int
    multiples: Ints

    def __post_init__(self) -> None:
        _check_levels(self.levels, self.bits)
        if not (self.levels == 0).any() or (self.multiples.size and self.multiples.min() < 1):
            raise NumericsError("blocks have 0 among their levels, and multiples of at least 1")

    @property
    def extensible(self) -> bool:
        """Whether it holds the codes as well with others of 0 among them: blocks would begin elsewhere."""
        return False

    @property
    def in_rows(self) -> bool:
        return True

    def pack(self, codes: Ints, *, axis: int) -> Arrays:
        packed = Packing(self.bits).pack(self._indices(rows_of(codes, PerAxis(axis))))
        return {**_arrays(packed), "multiples": self.multiples.astype(np.uint8)}

    def unpack(self, arrays: Arrays, shape: tuple[int, ...], *, axis: int) -> Ints:
        channels = shape[axis]
        n = int(np.prod(shape)) // channels
        blocks = arrays["multiples"].shape[1]
        levels = self.levels[_indices_of(arrays, self.bits, (channels, blocks, self.size))].astype(np.int64)
        rows = (levels * arrays["multiples"][:, :, None]).reshape(channels, -1)[:, :n]
        return from_rows(rows, PerAxis(axis), shape)

    def spelled(self, writer: Writer[V], codes: Ints, *, axis: int, shift: int) -> V:
        rows = rows_of(codes, PerAxis(axis))
        transposed = axis > 0
        packing, count = Packing(self.bits), 1 << self.bits
        indices = self._indices(rows)
        table = packing.table(np.arange(count, dtype=np.int32))
        groups, held = unpacking.looked_up(writer, table, packing, packing.pack(indices))
        index = unpacking.shaped(writer, groups, indices.shape, of=held)
        # Row m of the table holds m times each level; the last one is that of the largest multiple.
        padded = np.concatenate([self.levels, np.repeat(self.levels[-1:], count - self.levels.size)]).astype(np.int64)
        most = int(self.multiples.max(initial=1))
        products = (np.arange(most + 1)[:, None] * padded + shift).astype(np.int8)
        offsets = writer.constant(self.multiples.astype(np.uint8)[:, :, None], "multiples")
        rows_at = writer.cast(offsets, np.int32, "multiples_int")
        first = writer.node("Mul", [rows_at, writer.shared(np.asarray(count, np.int32), "row")], "rows")
        where = writer.node("Add", [index, first], "where")
        values = writer.node("Gather", [writer.shared(products.ravel(), "multiples"), where], "blocks", axis=0)
        channels, n = rows.shape
        whole = indices.shape[1] * self.size
        if n != whole or codes.ndim != 2 or transposed:
            shape = writer.constant(np.asarray([channels, whole]), "rows")
            values = writer.node("Reshape", [values, shape], "matrix")
        if n != whole:
            values = unpacking.sliced(writer, values, n, axis=1)
        if transposed:
            return writer.node("Transpose", [values], "columns")
        return writer.node("Reshape", [values, writer.constant(np.asarray(codes.shape), "shape")], "unpacked")

    def _indices(self, rows: Ints) -> Ints:
        """``[C, blocks, size]`` which level each of ``rows: [C, n]`` is of its block's; 0 fills up the last block."""
        channels, n = rows.shape
        blocks = self.multiples.shape[1]
        padded = np.zeros((channels, blocks * self.size), np.int64)
        padded[:, :n] = rows
        parts = padded.reshape(channels, blocks, self.size)
        levels, rest = np.divmod(parts, self.multiples.astype(np.int64)[:, :, None])
        where = np.searchsorted(self.levels, levels)
        if rest.any() or not np.array_equal(self.levels[np.minimum(where, self.levels.size - 1)], levels):
            raise NumericsError(f"blocks that {self.bits} bits do not hold")
        return where


@dataclass(frozen=True, eq=False)
class Nibbles(Representation):
    """4 bits for each code, from 0 to 15, as MatMulNBits reads them: channels first, each block whole.

    Blocks are of ``size`` codes along the inputs of a channel. ``zero: [C, blocks] uint8``, 4 bits each in the file;
    they are left out where all are 8. Of another operator the codes are no constant: ``emit.nbits`` writes that one.
    """

    size: int
    zero: npt.NDArray[np.uint8]

    def pack(self, codes: Ints, *, axis: int) -> Arrays:
        rows = rows_of(codes, PerAxis(axis))
        (channels, n), count = rows.shape, self.zero.shape[1]
        padded = np.repeat(self.zero[:, -1:], count * self.size, axis=1)
        padded[:, :n] = rows
        arrays = {"blocks": _NIBBLES.pack(padded).main.reshape(channels, count, self.size // _NIBBLES.group)}
        if (self.zero != MIDDLE).any():
            zero = np.zeros((channels, count + count % _NIBBLES.group), np.uint8)  # those of a channel begin a byte
            zero[:, :count] = self.zero
            arrays["zero_point"] = _NIBBLES.pack(zero).main
        return arrays

    def unpack(self, arrays: Arrays, shape: tuple[int, ...], *, axis: int) -> Ints:
        blocks = arrays["blocks"]
        codes = _NIBBLES.unpack(Packed(blocks.ravel(), None), blocks.size * _NIBBLES.group)
        rows = codes.reshape(len(blocks), -1)[:, : int(np.prod(shape)) // len(blocks)]
        return from_rows(rows, PerAxis(axis), shape)


def all_levels(bits: int) -> npt.NDArray[np.int16]:
    """All integers of ``bits`` bits: of the codes of every type that has so many."""
    half = 1 << (bits - 1)
    return np.arange(-half, half, dtype=np.int16)


# The zero point of a MatMulNBits that has none.
MIDDLE = 1 << (UINT4.bits - 1)
_NIBBLES = Packing(UINT4.bits)


def _check_levels(levels: Ints, bits: int) -> None:
    if not 1 <= levels.size <= 1 << bits or (np.diff(levels.astype(np.int64)) <= 0).any():
        raise NumericsError(f"{bits} bits name 1 to {1 << bits} levels, in ascending order: not {levels.tolist()}")


def _arrays(packed: Packed) -> dict[str, npt.NDArray[Any]]:
    extra = {} if packed.extra is None else {"extra": packed.extra}
    return {"packed": packed.main, **extra}


def _indices_of(arrays: Arrays, bits: int, shape: tuple[int, ...]) -> Ints:
    """The indices of ``shape`` that ``_arrays`` gave out."""
    packed = Packed(arrays["packed"], arrays.get("extra"))
    return Packing(bits).unpack(packed, int(np.prod(shape))).reshape(shape)
