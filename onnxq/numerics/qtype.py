"""Integer types of quantized tensors: how many bits, signed or not, and which codes may be used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.errors import NumericsError


@dataclass(frozen=True)
class QType:
    """An integer type of ``bits`` bits.

    ``narrow`` drops the lowest code of a signed type (int8 becomes -127..127), so that a symmetric quantizer has as
    many codes below zero as above. ``qmin`` and ``qmax`` are derived; no other file writes them down.

    Raises ``NumericsError`` for fewer than 2 or more than 32 bits and for a narrow unsigned type.
    """

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise NumericsError(f"a quantized type has 2 to 32 bits, not {self.bits}")
        if self.narrow and not self.signed:
            raise NumericsError("only a signed type can be narrow")

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return (-(1 << (self.bits - 1)) + int(self.narrow)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def levels(self) -> int:
        """Number of codes."""
        return self.qmax - self.qmin + 1

    @property
    def name(self) -> str:
        """``int8``, ``uint8``, ``int4``, ...; narrow types end in ``n``."""
        return f"{'' if self.signed else 'u'}int{self.bits}{'n' if self.narrow else ''}"

    @property
    def storage(self) -> npt.DTypeLike:
        """The smallest numpy integer dtype that holds all codes."""
        width = next(w for w in (8, 16, 32) if self.bits <= w)
        return np.dtype(f"{'int' if self.signed else 'uint'}{width}")

    def __str__(self) -> str:
        return self.name


INT8 = QType(8, signed=True)
INT8_NARROW = QType(8, signed=True, narrow=True)
INT7_NARROW = QType(7, signed=True, narrow=True)
UINT8 = QType(8, signed=False)
INT4 = QType(4, signed=True)
UINT4 = QType(4, signed=False)
INT32 = QType(32, signed=True)
