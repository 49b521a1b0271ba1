"""What the length of an output is where it follows from values; found by ``graph.lengths``."""

from __future__ import annotations

from enum import Enum


class Length(Enum):
    """What an output's length is that follows from values."""

    DETECTED = "boxes that NonMaxSuppression left"
    PICKED = "entries that a condition picked"
    STRETCHED = "as many entries as a computed number says"
