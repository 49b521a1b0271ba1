"""Files that somebody else made: regular ones only, at most so large. The one place that opens such a file.

A pipe, a device or a file of ``/proc`` has no size, may have no end, and opening it may wait for ever or do something.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

# What is read whole: configurations, preprocessors, tokenizers.
LARGEST_TEXT = 16 << 20
# Trees that look like files and are views of the system.
_VIEWS = ("/proc/", "/sys/")
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


class Unfit(OSError):
    """The file is not one that onnxq reads; as text it says why, without the number that ``OSError`` puts before it."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)

    def __str__(self) -> str:
        return str(self.strerror)


def open_file(path: str | os.PathLike[str], *, at_most: int | None = None) -> BinaryIO:
    """``path``, opened to be read from its start; it is a regular file of at most ``at_most`` bytes.

    Never waits, whatever ``path`` is. Raises ``OSError``: there is none, it cannot be read, it is no such file.
    """
    try:
        require_regular(path, os.stat(path), at_most)
        # Should it have become a pipe since: that is not waited for either.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a name with a zero in it
        raise Unfit(f"it has no valid name ({error})") from error
    try:
        require_regular(path, os.fstat(handle), at_most)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | os.PathLike[str], *, at_most: int = LARGEST_TEXT) -> bytes:
    """All of ``path``, which is a regular file of at most ``at_most`` bytes. Raises as ``open_file``."""
    with open_file(path, at_most=at_most) as file:
        return file.read(at_most + 1)[:at_most]


def read_text(path: str | os.PathLike[str], *, at_most: int = LARGEST_TEXT) -> str:
    """``read_file`` as UTF-8 text. Raises ``UnicodeDecodeError`` too."""
    return read_file(path, at_most=at_most).decode("utf-8")


def check_file(path: str | os.PathLike[str], *, at_most: int | None = None) -> None:
    """Nothing; raises as ``open_file`` where that could not open ``path``, for readers that open it themselves."""
    open_file(path, at_most=at_most).close()


def require_regular(path: str | os.PathLike[str], state: os.stat_result, at_most: int | None) -> None:
    """Nothing; raises ``Unfit`` where ``state``, that of ``path``, is not of a regular file of ``at_most`` bytes."""
    kind = next((name for is_kind, name in _KINDS if is_kind(state.st_mode)), None)
    if kind is not None:
        raise Unfit(f"it is {kind}, not a regular file")
    if os.path.realpath(path).startswith(_VIEWS):
        raise Unfit("it is a view of the system, not a regular file")
    if not stat.S_ISREG(state.st_mode):
        raise Unfit("it is not a regular file")
    if at_most is not None and state.st_size > at_most:
        raise Unfit(f"it has {size_text(state.st_size)}, and such a file may have {size_text(at_most)}")


def is_within(path: str, folder: str) -> bool:
    """Whether ``path`` lies in ``folder`` or below; both are real paths."""
    return path.startswith(os.path.join(folder, ""))


def size_text(count: int) -> str:
    """``count`` bytes in words: ``12 MB``."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
