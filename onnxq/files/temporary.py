"""Temporary folders, of which nothing stays for long: what a killed process left is removed by the next one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from onnxq.errors import OutputError
from onnxq.files.locks import abandoned, try_lock

_PREFIX = "onnxq-"
# A folder has this name until its owner holds its lock, which takes no time: older ones have no owner.
_NEW = ".onnxq-new-"
_NEW_S = 60.0
_LOCK = "owner.lock"

# What can be done where a temporary file cannot be written.
NO_ROOM = "make room there, or set TMPDIR to a folder with more room"

_swept: set[Path] = set()


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder in ``parent`` (None: where the system has its temporary files), removed in the end.

    If the process dies first, the next one that asks for a folder there removes it: a lock in it tells that nobody
    uses it any more. Raises ``OutputError`` where there is no place for temporary files, else ``OSError``.
    """
    import shutil  # here, not above: with tempfile they take longer to import than the rest of a plain --help
    import tempfile

    try:
        place = Path(tempfile.gettempdir() if parent is None else parent)
    except FileNotFoundError as error:
        raise OutputError("no folder takes temporary files", hint=NO_ROOM) from error
    if place not in _swept:
        _swept.add(place)
        sweep(place)
    new = Path(tempfile.mkdtemp(prefix=_NEW, dir=place))
    folder = place / new.name.replace(_NEW, _PREFIX, 1)
    handle = -1
    try:
        handle = os.open(new / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try_lock(handle)
        new.rename(folder)
        yield folder
    finally:
        for made in (new, folder):
            # On some systems files that are still mapped cannot be removed.
            shutil.rmtree(made, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def sweep(place: Path) -> None:
    """Removes from ``place`` the temporary folders of this user that no process uses any more."""
    import shutil

    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.startswith((_PREFIX, _NEW)) and _left_behind(entry):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _left_behind(entry: os.DirEntry[str]) -> bool:
    if not entry.is_dir(follow_symlinks=False):
        return False
    found = entry.stat(follow_symlinks=False)
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        return False
    if entry.name.startswith(_NEW):
        return time.time() - found.st_mtime > _NEW_S
    return abandoned(Path(entry.path) / _LOCK)
