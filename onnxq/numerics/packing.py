"""Codes of 2 to 6 bits in bytes, and the table that turns bytes back into 8-bit values.

Neighbouring codes form a group; a group is one integer, its first code in the lowest bits. The low 8 bits of all groups
are the *main* bytes; what is left over of each is packed into *extra* bytes by the same rule, lowest bits first:

| bits | codes of a group | main | extra bits of a group | rows of the table |
|------|------------------|------|-----------------------|-------------------|
| 2    | 4                | 8    | 0                     | 256               |
| 3    | 4                | 8    | 4                     | 4096              |
| 4    | 2                | 8    | 0                     | 256               |
| 5    | 2                | 8    | 2                     | 1024              |
| 6    | 2                | 8    | 4                     | 4096              |

``value[g * group + j] = levels[(integer_g >> (bits * j)) & (2^bits - 1)]``: a table with one row for every integer
holds the values of a whole group, so that one look-up per byte (or a little more) unpacks everything, whatever the
levels are. Codes take exactly ``bits`` bits, up to the last group. (ggml splits 3, 5 and 6 bits likewise: ``q3_K``,
``q5_0``, ``q6_K``.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import NumericsError

U8 = npt.NDArray[np.uint8]

_GROUP = {2: 4, 3: 4, 4: 2, 5: 2, 6: 2}
_BYTE = 8


@dataclass(frozen=True, eq=False)
class Packed:
    """Packed codes: ``main: [groups] uint8``, and ``extra: [bytes] uint8`` where a group is longer than a byte."""

    main: U8
    extra: U8 | None

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.main.nbytes + (0 if self.extra is None else self.extra.nbytes)


@dataclass(frozen=True)
class Packing:
    """How codes of ``bits`` bits (2 to 6) lie in bytes: the module's table. Raises ``NumericsError`` for other bits."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in _GROUP:
            raise NumericsError(f"codes of {self.bits} bits are not packed: 2 to 6 bits are")

    @property
    def group(self) -> int:
        """Codes in one group."""
        return _GROUP[self.bits]

    @property
    def extra_bits(self) -> int:
        """Bits of a group beyond its main byte: 0, 2 or 4."""
        return self.bits * self.group - _BYTE

    def groups(self, count: int) -> int:
        """Groups that hold ``count`` codes."""
        return -(-count // self.group)

    def nbytes(self, count: int) -> int:
        """Bytes that ``count`` codes take, main and extra ones."""
        groups = self.groups(count)
        return groups + -(-groups * self.extra_bits // _BYTE)

    def pack(self, codes: npt.NDArray[np.integer]) -> Packed:
        """``codes: [..]``, from 0 to ``2^bits - 1``, in C order; the last group is filled up with 0.

        Raises ``NumericsError`` for a code out of range.
        """
        flat = codes.reshape(-1)
        if flat.size and not (flat.min() >= 0 and flat.max() < 1 << self.bits):
            raise NumericsError(f"codes of {self.bits} bits lie in [0, {(1 << self.bits) - 1}]")
        integers = _joined(flat, self.bits, self.group)
        main = (integers & 0xFF).astype(np.uint8)
        if not self.extra_bits:
            return Packed(main, None)
        return Packed(main, _joined(integers >> _BYTE, self.extra_bits, _BYTE // self.extra_bits).astype(np.uint8))

    def unpack(self, packed: Packed, count: int) -> U8:
        """The first ``count`` codes; the opposite of ``pack``."""
        integers = packed.main.astype(np.uint16)
        if packed.extra is not None:
            integers |= self.extra_table()[packed.extra].reshape(-1)[: integers.size].astype(np.uint16)
        codes: U8 = self.table(np.arange(1 << self.bits, dtype=np.uint8))[integers].reshape(-1)[:count]
        return codes

    def table(self, levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``[2^(bits * group), group]`` the values of every group; ``levels: [2^bits]`` those of the codes."""
        return levels[_split(np.arange(1 << (self.bits * self.group)), self.bits, self.group)]

    def extra_table(self) -> npt.NDArray[np.int32]:
        """``[256, 8 / extra_bits] int32`` what an extra byte adds to the integers of its groups."""
        return (_split(np.arange(256), self.extra_bits, _BYTE // self.extra_bits) << _BYTE).astype(np.int32)


def _joined(codes: npt.NDArray[np.integer], bits: int, group: int) -> npt.NDArray[np.uint16]:
    """Each ``group`` of ``codes`` as one integer."""
    padded = np.zeros(-(-codes.size // group) * group, np.uint16)
    padded[: codes.size] = codes
    shifted = padded.reshape(-1, group) << (bits * np.arange(group, dtype=np.uint16))
    result: npt.NDArray[np.uint16] = np.bitwise_or.reduce(shifted, axis=1)
    return result


def _split(integers: npt.NDArray[np.int_], bits: int, group: int) -> npt.NDArray[np.int_]:
    """``[.., group]`` the codes in each of ``integers``."""
    result: npt.NDArray[np.int_] = (integers[..., None] >> (bits * np.arange(group))) & ((1 << bits) - 1)
    return result
