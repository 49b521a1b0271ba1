"""4 bits with a scale for each block, unpacked by the kernel while it computes: MatMulNBits, where inputs are float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.config.formats import FormatName
from onnxq.numerics import UINT4, QType
from onnxq.numerics.packing import Packing
from onnxq.ranges.blocks import in_blocks
from onnxq.ranges.fit import Fit
from onnxq.ranges.moments import Moments
from onnxq.ranges.rounding import Floats
from onnxq.ranges.samples import F64
from onnxq.weights.blocks import BlockMultiples
from onnxq.weights.format import Rows, WeightFormat
from onnxq.weights.representation import Nibbles

_SCALE_BYTES = 4


@dataclass(frozen=True)
class NBits(WeightFormat):
    """``w = s_b (q - z_b)``: q from 0 to 15, a float32 scale for S weights.

    Under the name ``int4:S`` every zero is 8 and scales have either sign: ``4 + 32 / S`` bits a weight. ``uint4:S`` has
    zeros from 0 to 15: ``4 + 36 / S``.
    """

    @property
    def offset(self) -> bool:
        """Whether blocks have zero points of their own."""
        return self.name.family == "uint"

    @property
    def uniform(self) -> bool:
        return True

    @property
    def folded(self) -> WeightFormat:
        return BlockMultiples(self.name)

    @property
    def in_kernel(self) -> FormatName | None:
        return self.name

    def code_type(self, computed: QType) -> QType:
        return computed

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
        """``weight: [1, C, n]`` in this format. ``least`` and ``outputs`` have no say: no bias becomes an integer."""
        found = in_blocks(
            weight[0].astype(np.float32, copy=False),
            moments,
            size=self.block,
            offset=self.offset,
            method=how.method,
            rounding="nearest" if how.rounding == "nearest" else "compensated",
            centred=how.centred,
        )
        return Rows(found.codes[None], found.scale[None], found.zero[None], Nibbles(self.block, found.zero))

    def nbytes(self, channels: int, inputs: int) -> int:
        blocks, packing = -(-inputs // self.block), Packing(UINT4.bits)
        zeros = packing.groups(blocks) if self.offset else 0
        return channels * (packing.groups(blocks * self.block) + blocks * _SCALE_BYTES + zeros)
