"""Locks that end with the process that holds them, however it ends: what nobody holds any more was left behind.

Windows has no such locks: there nothing counts as left behind, and nobody waits.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":

    def try_lock(handle: int) -> bool:
        """True."""
        return True

    def abandoned(path: Path) -> bool:
        """False."""
        return False

    @contextlib.contextmanager
    def one_at_a_time(folder: Path) -> Iterator[None]:
        """A context that does nothing."""
        yield

else:
    import fcntl

    def try_lock(handle: int) -> bool:
        """Whether the lock of the open file ``handle`` is this process's from now on, until the file is closed."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def abandoned(path: Path) -> bool:
        """Whether ``path`` is a file of this user whose lock nobody holds."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            return os.fstat(handle).st_uid == os.getuid() and try_lock(handle)
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def one_at_a_time(folder: Path) -> Iterator[None]:
        """A context that only one process at a time is in, for this ``folder``; the others wait."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
