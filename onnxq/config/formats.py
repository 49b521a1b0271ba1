"""The names of weight formats: which there are, and how a text is read as one. ``onnxq.weights`` has what they mean.

| name                  | weights are stored as                                                      |
|-----------------------|----------------------------------------------------------------------------|
| `int8`                | integers of the target's 8-bit type                                        |
| `int2` to `int6`      | integers of so many bits                                                   |
| `int2:S` to `int4:S`  | such integers, times another one for every S weights (a block)             |
| `uint4:S`             | 4 bits with a scale and a zero point a block; where activations stay float |
| `codebook2` to `4`    | indices of 4 to 16 levels that are the weight's own                        |
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxq.errors import ConfigError

_NAME = re.compile(r"([a-z]+)([0-9])(?::([0-9]+))?")
BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Family:
    """The names of formats that differ in bits and blocks alone.

    | field          | meaning                                                                               |
    |----------------|---------------------------------------------------------------------------------------|
    | `name`         | the letters that a name begins with                                                   |
    | `bits`         | how many bits a weight may have                                                       |
    | `blocks`       | with which of them there may be blocks                                                |
    | `plain`        | whether there are formats without blocks                                              |
    | `native`       | the bits of plain formats that may be a tensor of a type of their own                 |
    | `weights_only` | why the formats go only with activations that stay float; empty where they do not     |
    | `text`         | all of its names, for messages                                                        |
    """

    name: str
    bits: tuple[int, ...]
    text: str
    blocks: tuple[int, ...] = ()
    plain: bool = True
    native: tuple[int, ...] = ()
    weights_only: str = ""


# By name. ``onnxq.weights.register`` adds to it.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("int", (2, 3, 4, 5, 6, 8), "int2 to int6, int8, int4:32 (blocks)", blocks=(2, 3, 4), native=(4,)),
        Family(
            "uint", (4,), "uint4:32 (zero points)", blocks=(4,), plain=False, weights_only="has blocks with zero points"
        ),
        Family("codebook", (2, 3, 4), "codebook2 to codebook4"),
    )
}


@dataclass(frozen=True)
class FormatName:
    """A name that has been read: ``int4:32`` is of the family ``int``, of 4 bits and blocks of 32 (0: no blocks)."""

    family: str
    bits: int
    block: int = 0

    @property
    def native(self) -> bool:
        """Whether a weight of this format may be a tensor of a 4-bit type, which takes opset 21."""
        return not self.block and self.bits in FAMILIES[self.family].native

    @property
    def weights_only(self) -> str:
        """Why the format goes only with activations that stay float; empty where it does not."""
        return FAMILIES[self.family].weights_only

    def __str__(self) -> str:
        return f"{self.family}{self.bits}" + (f":{self.block}" if self.block else "")


def format_name(text: str) -> FormatName:
    """``text`` as the name of a format. Raises ``ConfigError`` where it is none; the message lists what there is."""
    match = _NAME.fullmatch(text)
    family = FAMILIES.get(match[1]) if match else None
    if match is None or family is None or int(match[2]) not in family.bits:
        raise ConfigError(f"no weight format '{text}': {', '.join(f.text for f in FAMILIES.values())}")
    found = FormatName(family.name, int(match[2]), int(match[3] or 0))
    if match[3] and (found.bits not in family.blocks or found.block not in BLOCK_SIZES):
        sizes = ", ".join(str(size) for size in BLOCK_SIZES)
        with_blocks = ", ".join(f"{f.name}{bits}" for f in FAMILIES.values() for bits in f.blocks)
        raise ConfigError(f"weight format '{text}': blocks of {sizes} weights go with {with_blocks}")
    if not match[3] and not family.plain:
        raise ConfigError(f"weight format '{text}' comes in blocks", hint=f"write {text}:32")
    return found
