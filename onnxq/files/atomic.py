"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from onnxq.errors import OutputError, one_line
from onnxq.files.locks import abandoned, one_at_a_time, try_lock

_SUFFIX = ".tmp"

# Bytes that names may have: of a file, less what is put behind it (.data), and what of it temporary ones begin with.
LONGEST_NAME = 250
_LONGEST_START = 200


@contextlib.contextmanager
def staged(*targets: Path, then_unneeded: Callable[[], Iterable[Path]] = tuple) -> Iterator[tuple[Path, ...]]:
    """Yields a temporary path beside each target; on a clean exit each replaces its target, in order.

    Folders that are missing are made. A target may come twice: it is what it was, then the first, then the second, and
    nothing else, whenever the process ends. Of two processes that replace files in one folder the second waits; then
    the files ``then_unneeded`` go. After any exception, KeyboardInterrupt included, no temporary file is left and a
    target not yet replaced is as it was; what a killed process left is removed by the next one that writes the same
    target.

    Raises:
        OutputError: the folder is not writable, the disk is full, the target is not a plain file.
    """
    temporary: list[Path] = []
    made: list[Path] = []
    try:
        with contextlib.ExitStack() as owned:
            for target in targets:
                _check_target(target)
                made += _make_folder(target.parent)
                _remove_abandoned(target)
                temporary.append(owned.enter_context(_own_file(target)))
            yield tuple(temporary)
            with one_at_a_time(targets[0].parent):
                for target, source in zip(targets, temporary, strict=True):
                    source.chmod(_mode(target))  # mkstemp makes files that only their owner may read
                for target, source in zip(targets, temporary, strict=True):
                    os.replace(source, target)
                _sync_folder(targets[0].parent)
                for path in then_unneeded():
                    path.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise OutputError(f"cannot write {targets[-1]}: {reason}; nothing was changed there") from error
    finally:
        for path in temporary:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # something lies in it
                folder.rmdir()


def _make_folder(folder: Path) -> list[Path]:
    """Makes ``folder`` where it is missing, and those that it lies in; the new ones, outer ones first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


@contextlib.contextmanager
def _own_file(target: Path) -> Iterator[Path]:
    """A new file beside ``target``, locked for as long as the context lasts."""
    while True:
        handle, name = tempfile.mkstemp(prefix=_start(target), suffix=_SUFFIX, dir=target.parent)
        if sys.platform == "win32":  # an open file cannot be renamed there
            os.close(handle)
            yield Path(name)
            return
        if try_lock(handle) and os.fstat(handle).st_nlink:
            break
        os.close(handle)  # somebody took it for a file that a killed process left
    try:
        yield Path(name)
    finally:
        os.close(handle)


def _start(target: Path) -> str:
    """What the names of the temporary files of ``target`` begin with."""
    return f".{os.fsdecode(os.fsencode(target.name)[:_LONGEST_START])}."


def _remove_abandoned(target: Path) -> None:
    """Removes the temporary files of ``target`` whose process is gone."""
    for path in target.parent.glob(f"{glob.escape(_start(target))}*{_SUFFIX}"):
        if abandoned(path):
            with contextlib.suppress(OSError):
                path.unlink()


def write_file(path: Path, write: Callable[[BinaryIO], None], /, *, durable: bool = True) -> None:
    """Writes ``path`` through ``write``; if ``durable``, waits until the bytes are on the disk."""
    with path.open("wb") as file:
        write(file)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def write_bytes(target: Path, content: bytes, /) -> None:
    """Writes ``content`` to ``target`` atomically (reports, tables, small models). Raises OutputError."""
    with staged(target) as (temporary,):
        write_file(temporary, lambda file: _write_all(file, content))


def _write_all(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def _check_target(target: Path) -> None:
    if os.path.exists(target.parent) and not os.path.isdir(target.parent):
        raise OutputError(f"cannot write {target}: {target.parent} is no folder")
    if os.path.isdir(target):
        raise OutputError(f"cannot write {target}: it is a folder", hint="give a file name")
    if os.path.exists(target) and not os.path.isfile(target):
        raise OutputError(f"cannot write {target}: it is not a plain file")


def _mode(target: Path) -> int:
    """The permissions that ``target`` has, or those that a new file would get."""
    if os.path.exists(target):
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Makes the renames durable where the system can (Windows cannot open a folder)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
