"""How many threads candidates are timed with."""

from __future__ import annotations

import os


def thread_counts() -> tuple[int, ...]:
    """One, and as many as this process has cores."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return tuple(sorted({1, available}))
