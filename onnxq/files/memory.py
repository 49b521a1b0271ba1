"""How much memory a run may take, and what of it each part may have."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

# What is there before any model is: Python with numpy, onnx and onnxruntime, and one layer at work.
BASE_BYTES = 400_000_000
# Times the model: once as the runtime holds it, once for what is made of it.
_COPIES = 2
# The share of what a run may take that results are kept in (the rest of them go to files), and that threads work in.
_KEPT, _WORKED = 1 / 10, 1 / 3


@dataclass(frozen=True)
class Memory:
    """``limit``: bytes that a run keeps to, all of the process included."""

    limit: int

    @classmethod
    def of(cls, asked_mb: int | None, model_bytes: int) -> Memory:
        """That which was asked for; by itself a run takes twice the model and ``BASE_BYTES``."""
        return cls(_COPIES * model_bytes + BASE_BYTES if asked_mb is None else asked_mb * 1_000_000)

    @property
    def kept(self) -> int:
        """Bytes of results that stay in memory."""
        return int(self.limit * _KEPT)

    @property
    def workspace(self) -> int:
        """Bytes that threads may work in at the same time."""
        return int(self.limit * _WORKED)

    def holds(self, model_bytes: int) -> bool:
        """Whether a model can be run: its weights may have to be in memory together."""
        return model_bytes + BASE_BYTES // 2 <= self.limit


# glibc's numbers of two options of ``mallopt``, and the size from which on arrays are mapped by themselves.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MAPPED_BYTES = 1_000_000


@cache
def give_back_freed_memory() -> None:
    """Has this process give large arrays back to the system as soon as they are freed; nothing but on glibc.

    By itself glibc raises the size from which on it does so with every array that is freed, to 32 MB, and what is
    smaller leaves holes that a later array may not fit: as much again as is in use.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library
            change = ctypes.CDLL("libc.so.6").mallopt
            change(_MMAP_THRESHOLD, _MAPPED_BYTES)
            change(_TRIM_THRESHOLD, _MAPPED_BYTES)


def give_back_holes() -> None:
    """Gives the system back what is free between small arrays too, as a stage leaves it; nothing but on glibc."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
