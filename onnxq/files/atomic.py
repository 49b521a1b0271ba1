"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from onnxq.errors import OutputError, one_line

# Bytes that names may have: of a file, less what is put behind it (.data), and what of it temporary ones begin with.
LONGEST_NAME = 250
_LONGEST_START = 200


@contextlib.contextmanager
def staged(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Yields a temporary path beside each target; on a clean exit each replaces its target, in order.

    After any exception, KeyboardInterrupt included, no temporary file is left and a target not yet replaced is as it
    was.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, the target is not a plain file.
    """
    temporary: list[Path] = []
    try:
        for target in targets:
            _check_target(target)
            start = os.fsdecode(os.fsencode(target.name)[:_LONGEST_START])
            handle, name = tempfile.mkstemp(prefix=f".{start}.", suffix=".tmp", dir=target.parent)
            temporary.append(Path(name))
            os.close(handle)
        yield tuple(temporary)
        for target, source in zip(targets, temporary, strict=True):
            source.chmod(_mode(target))  # mkstemp makes files that only their owner may read
        for target, source in zip(targets, temporary, strict=True):
            os.replace(source, target)
        _sync_folder(targets[0].parent)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise OutputError(f"cannot write {targets[-1]}: {reason}; nothing was changed there") from error
    finally:
        for path in temporary:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


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
    if not os.path.isdir(target.parent):
        raise OutputError(f"cannot write {target}: the folder {target.parent} does not exist; create it first")
    if os.path.isdir(target):
        raise OutputError(f"cannot write {target}: it is a folder; give a file name")
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
