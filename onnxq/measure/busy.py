"""How busy the machine is, and a clock that does not count what others take.

What a thread waits for a core is no latency of the model. The time that one thread *computes* is known to the system,
so models that run in the calling thread are timed by that. With several threads only the wall clock tells what matters,
and it says something about the model only where the threads got their cores: ``waiting`` finds that out.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable

# From this share on, what the wall clock says of several threads is not believed.
BUSY = 0.1
# Windows counts the time of a thread in steps of 15.6 ms.
_FINE = sys.platform != "win32"
_PROBE_S = 0.02 if _FINE else 0.2
_BLOCK = bytes(1 << 20)  # hashed without holding the interpreter's lock


def clock(threads: int) -> Callable[[], float]:
    """The clock for models that run with so many ``threads``: the calling thread's processor time if that is all."""
    return time.thread_time if counts_processor_time(threads) else time.perf_counter


def counts_processor_time(threads: int) -> bool:
    """Whether ``clock`` leaves out what a thread waits for its core."""
    return threads == 1 and _FINE


def waiting(threads: int, *, seconds: float = _PROBE_S) -> float:
    """The share of the time, in [0, 1], that so many ``threads`` wait for a core now; each computes for ``seconds``."""
    start = threading.Barrier(threads)
    used: list[tuple[float, float]] = []

    def compute() -> None:
        start.wait()
        wall, own = time.perf_counter(), time.thread_time()
        while time.thread_time() - own < seconds:
            hashlib.sha256(_BLOCK).digest()
        used.append((time.thread_time() - own, time.perf_counter() - wall))

    workers = [threading.Thread(target=compute, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return share_waited(sum(own for own, _ in used), sum(wall for _, wall in used))


def share_waited(processor: float, wall: float) -> float:
    """The share of ``wall`` seconds that were not ``processor`` seconds, in [0, 1]."""
    return min(max(1.0 - processor / wall, 0.0), 1.0) if wall > 0.0 else 0.0
