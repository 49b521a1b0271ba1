"""What a weight format is: the extension point of this room."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.config.formats import FormatName
from onnxq.errors import NumericsError
from onnxq.numerics import INT8, QType
from onnxq.numerics.packing import Packing
from onnxq.ranges.fit import Fit, Fitted, fitted
from onnxq.ranges.moments import Moments
from onnxq.ranges.rounding import Floats, Grid
from onnxq.ranges.samples import F64
from onnxq.weights.representation import BlockLevels, Levels, Plain, Representation

# Bytes of a channel beside its codes: a float32 scale and the kernel's zero point.
CHANNEL_BYTES = 5


class Rows(NamedTuple):
    """A weight in integers as the matrices ``[g, C, n]`` that its layer multiplies with.

    ``codes`` are of the type that is computed with; ``scale`` and ``zero`` read them, ``[g, C]``, or ``[g, C, blocks]``
    where the kernel itself computes in blocks.
    """

    codes: npt.NDArray[np.integer]
    scale: F64 | npt.NDArray[np.float32]
    zero: npt.NDArray[np.integer]
    representation: Representation


@dataclass(frozen=True)
class WeightFormat(ABC):
    """How the weights of a layer are stored: a frozen value, equal where it stores alike.

    `GridFormat` is the base for formats of your own; ``register`` makes them known.
    """

    name: FormatName

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.name.bits

    @property
    def block(self) -> int:
        """Weights of a block; 0 where channels are not cut into blocks."""
        return self.name.block

    @property
    def packed(self) -> bool:
        """Whether several weights share a byte of the file."""
        return self.bits < INT8.bits

    @property
    def uniform(self) -> bool:
        """Whether codes are all the integers between two, times a scale: what training through a quantizer can move."""
        return False

    @property
    def suffix(self) -> str:
        """What the name of a file says of it; no other format has the same."""
        return str(self.name).replace(":", "g")  # "g128", a group of 128, is what others call a block of that size

    @property
    def folded(self) -> WeightFormat:
        """What is stored of a linear layer whose kernel does not read this format itself."""
        return self

    @property
    def in_kernel(self) -> FormatName | None:
        """What MatMulNBits computes with in place of this format (``nbits``); None: nothing."""
        return None

    def code_type(self, computed: QType) -> QType:
        """The type of uniform codes of so many bits: ``computed`` itself where they are not packed."""
        return QType(self.bits, signed=True, narrow=True) if self.packed else computed

    @abstractmethod
    def quantized(
        self,
        weight: Floats,
        moments: Moments | None,
        *,
        qtype: QType,
        how: Fit,
        least: F64,
        outputs: F64 | None = None,
    ) -> Rows:
        """``weight: [g, C, n]`` in this format; the arguments and errors are those of ``ranges.fitted``."""

    @abstractmethod
    def nbytes(self, channels: int, inputs: int) -> int:
        """Bytes in the file of so many channels of so many inputs, without what all weights share."""

    def bits_per_weight(self, channels: int, inputs: int) -> float:
        """The same for each weight, in bits."""
        return 8.0 * self.nbytes(channels, inputs) / (channels * inputs)

    def __str__(self) -> str:
        return str(self.name)


@dataclass(frozen=True)
class GridFormat(WeightFormat):
    """A format for integer kernels. One of your own gives ``grid``; all else has a default.

    What computes are 8-bit integers, whatever the format: a real value is the scale of its channel times an integer
    from -127 to 127, and the file holds fewer bits that name this integer. ``grid`` says which integers there are. The
    default representation holds indices of the grid's levels, and for blocks a multiple of each.
    """

    @property
    def shared(self) -> bool:
        """Whether channels have more in common than the type of their codes; then a weight is fitted in one piece."""
        return False

    @abstractmethod
    def grid(self, weight: F64, moments: Moments | None, *, qtype: QType, how: Fit) -> Grid:
        """The values that ``weight: [g, C, n]`` may take: integers within ``qtype`` times a scale for each channel.

        ``moments`` are those of the inputs, None where they are not known. Levels have at most ``2^bits`` entries.
        """

    def quantized(
        self,
        weight: Floats,
        moments: Moments | None,
        *,
        qtype: QType,
        how: Fit,
        least: F64,
        outputs: F64 | None = None,
    ) -> Rows:
        found = fitted(weight, moments, self, qtype=qtype, how=how, least=least, outputs=outputs)
        if found.codes.size and not qtype.qmin <= found.codes.min() <= found.codes.max() <= qtype.qmax:
            raise NumericsError(f"weight format '{self}' made integers that {qtype} does not hold")
        codes = found.codes.astype(qtype.storage)
        return Rows(codes, found.scale, np.zeros(found.scale.shape, qtype.storage), self.representation(found))

    def representation(self, found: Fitted) -> Representation:
        """How the codes that were ``found`` are stored."""
        if not self.packed:
            return Plain()
        levels = found.levels.astype(np.int16)
        if found.blocks is None:
            return Levels(self.bits, levels)
        multiples = found.blocks.multiples.astype(np.uint8)
        return BlockLevels(self.bits, levels, found.blocks.size, multiples.reshape(-1, multiples.shape[2]))

    def nbytes(self, channels: int, inputs: int) -> int:
        blocks = -(-inputs // self.block) if self.block else 0
        codes = channels * (blocks * self.block or inputs)
        packed = Packing(self.bits).nbytes(codes) if self.packed else codes
        return packed + channels * (blocks + CHANNEL_BYTES)
