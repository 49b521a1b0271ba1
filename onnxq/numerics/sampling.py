"""Taking a part of many elements, always the same part, evenly."""

from __future__ import annotations

import math


def spread_step(count: int, limit: int) -> int:
    """The smallest step that visits at most ``limit`` of ``count`` elements and shares no factor with ``count``.

    A step that divides a dimension would look at the same channels or columns in every row.
    """
    step = max(1, -(-count // limit))
    while math.gcd(step, count) != 1:
        step += 1
    return step
