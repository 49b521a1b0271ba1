"""How weights are stored, by name. What computes with them are 8-bit integers, whatever the format.

n: weights of one output channel (Conv ``[C, n / k / k, k, k]``, MatMul ``[n, C]``); N: all weights of the tensor.

| name         | real value                                                             | bits a weight      |
|--------------|------------------------------------------------------------------------|--------------------|
| `int8`       | ``s_c q``, codes q of the target's 8-bit type                          | 8 + 40 / n         |
| `intB`       | ``s_c q``, ``|q| <= Q``, ``Q = 2^(B-1) - 1``, B = 2 to 6               | B + 40 / n         |
| `intB:S`     | ``s_c m_b q``: also an integer ``1 <= m_b <= 127 / Q`` for S weights   | B + 8 / S + 40 / n |
| `codebookB`  | ``s_c L[q]``, ``2^B`` levels L from -127 to 127 of the tensor; B 2 to 4 | B + 40 / n + 2^(B+3) / N |

Where only weights are quantized (``activations = none``), linear layers of 4 bits become MatMulNBits, which unpacks
while it computes: ``int4:S`` is ``s_b q``, q from -8 to 7, ``s_b`` a float32 of either sign for S weights, 4 + 32 / S
bits; ``uint4:S`` is ``s_b (q - z_b)``, q and z from 0 to 15, 4 + 36 / S bits. Blocks of ``int4`` are of 32.

40 / n: a float32 scale and the kernel's zero point. B = 2 to 4 for blocks. In every format a real value is a scale for
each channel times an integer from -127 to 127: packed codes become that integer once, when the runtime loads the model,
and the integer kernels of INT8 do the rest. ``m_b q`` is exact, so that block scales cost no second rounding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxq.errors import ConfigError

_NAME = re.compile(r"(u?int|codebook)([2-8])(?::(\d+))?")
BLOCK_SIZES = (16, 32, 64, 128, 256)
USUAL_BLOCK = 32
# Bits up to which blocks have enough room for multiples below 127, and codebooks gain over uniform codes.
_FINE = 4


@dataclass(frozen=True)
class WeightFormat:
    """``intB``, ``intB:S``, ``uint4:S`` or ``codebookB``: the module's table.

    ``block`` is S, 0 for one scale for each channel; ``offset`` whether blocks have zero points.
    """

    bits: int
    codebook: bool = False
    block: int = 0
    offset: bool = False

    @property
    def packed(self) -> bool:
        """Whether several weights share a byte of the file."""
        return self.bits < 7

    @property
    def native(self) -> bool:
        """Whether the weight may be stored as an int4 tensor."""
        return self == WeightFormat(4)

    def __str__(self) -> str:
        kind = "codebook" if self.codebook else "uint" if self.offset else "int"
        return f"{kind}{self.bits}" + (f":{self.block}" if self.block else "")


def weight_format(text: str) -> WeightFormat:
    """The format called ``text``. Raises ``ConfigError`` for any other text; the message lists what there is."""
    match = _NAME.fullmatch(text)
    bits, block = (int(match[2]), int(match[3] or 0)) if match else (0, 0)
    codebook = match is not None and match[1] == "codebook"
    if match is None or bits == 7 or (codebook and bits > _FINE):
        raise ConfigError(
            f"no weight format '{text}': int2 to int6, int8, int4:32 or uint4:32 (blocks), codebook2 to 4"
        )
    if block and (codebook or bits > _FINE or block not in BLOCK_SIZES):
        sizes = ", ".join(str(size) for size in BLOCK_SIZES)
        raise ConfigError(f"weight format '{text}': blocks of {sizes} weights go with int2, int3 and int4")
    offset = match[1] == "uint"
    if offset and (bits != _FINE or not block):
        raise ConfigError(f"weight format '{text}': zero points go with uint4:32, blocks of 16 to 256 weights")
    return WeightFormat(bits, codebook, block, offset)
