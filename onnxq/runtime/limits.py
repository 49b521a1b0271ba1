"""Limits that a process sets itself; where the system has none, they are left out (Windows)."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def limit_memory(more: int) -> None:
    """Allows this process ``more`` bytes of memory than it has now; files that are mapped do not count (Linux)."""
    _limit("RLIMIT_DATA", _used_data() + more)


def limit_processor(seconds: float) -> None:
    """Lets the system end this process when it has used ``seconds`` more of the processor, and leave no core dump."""
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_CPU", int(time.process_time() + seconds) + 1)


def _limit(name: str, most: int) -> None:
    """Sets the limit ``name`` to ``most``, or to less where it has less."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        limit = getattr(resource, name)
        _, hard = resource.getrlimit(limit)
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (soft, hard))


def _used_data() -> int:
    """Bytes of this process that ``RLIMIT_DATA`` counts; a lot where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 1 << 40
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 1 << 40)
