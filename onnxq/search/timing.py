"""How many threads candidates are timed with."""

from __future__ import annotations

import os


def thread_counts() -> tuple[int, ...]:
    """One, and all that there are."""
    return tuple(sorted({1, os.cpu_count() or 1}))
