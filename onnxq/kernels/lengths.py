"""Operators whose output is as long as values say: which of their inputs say so, and how that length comes about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Length(Enum):
    """What the length of an output is where it follows from values."""

    DETECTED = "boxes that NonMaxSuppression left"
    PICKED = "entries that a condition picked"
    STRETCHED = "as many entries as a computed number says"


@dataclass(frozen=True)
class Sizing:
    """How the shape of an operator's output follows from its inputs.

    | field     | meaning                                                                                    |
    |-----------|--------------------------------------------------------------------------------------------|
    | `inputs`  | those whose values decide it; the others decide it by their shapes                         |
    | `length`  | what the length is that they decide                                                        |
    | `counts`  | whether it reads only the shape of its input, and makes a number of it                     |
    | `first`   | whether the output has the shape of the first input, whatever the others are               |
    | `returns` | of a body: its output ``i + returns`` comes back as its input ``i``; None: nothing does    |
    """

    inputs: tuple[int, ...] = ()
    length: Length = Length.STRETCHED
    counts: bool = False
    first: bool = False
    returns: int | None = None


_COUNTS, _FIRST = Sizing(counts=True), Sizing(first=True)
SIZING: Mapping[str, Sizing] = {
    "NonMaxSuppression": Sizing((0, 1, 2, 3, 4), Length.DETECTED),
    "NonZero": Sizing((0,), Length.PICKED),
    "Compress": Sizing((1,), Length.PICKED),
    "Unique": Sizing((0,), Length.PICKED),
    "TopK": Sizing((1,), Length.PICKED),
    "Range": Sizing((0, 1, 2)),
    "ConstantOfShape": Sizing((0,)),
    "Expand": Sizing((1,)),
    "Tile": Sizing((1,)),
    "Reshape": Sizing((1,)),
    "Slice": Sizing((1, 2, 3, 4)),
    "Resize": Sizing((1, 2, 3)),
    "Upsample": Sizing((1,)),
    "Pad": Sizing((1, 3)),
    "OneHot": Sizing((1,)),
    "CenterCropPad": Sizing((1,)),
    "Split": Sizing((1,)),
    "SequenceAt": Sizing((1,)),
    "If": Sizing((0,)),
    # A body takes the number of the round and the condition, and gives the condition.
    "Loop": Sizing((0, 1), returns=-1),
    "Scan": Sizing(returns=0),
    "Shape": _COUNTS,
    "Size": _COUNTS,
    "ScatterND": _FIRST,
    "ScatterElements": _FIRST,
    "Scatter": _FIRST,
}
_ORDINARY = Sizing()


def sizing(name: str) -> Sizing:
    """That of the operator ``name``; for one that is not listed, by shapes alone."""
    return SIZING.get(name, _ORDINARY)
