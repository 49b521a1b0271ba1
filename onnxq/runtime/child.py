"""Child processes: the only place in onnxq that starts one.

A child is this Python, isolated (``-I``): neither the current folder nor environment variables say what it imports. It
finds modules where its parent does, but for the current folder and relative folders. It ends when its parent does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import onnxq
from onnxq.runtime.search_path import without_current

LAUNCH = Path(__file__).resolve().with_name("launch.py")


@contextmanager
def child(
    target: Path | str,
    arguments: Sequence[str] = (),
    *,
    stderr: IO[bytes] | int = subprocess.PIPE,
    pycache: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A running child; however the block ends, it has ended too. Its output is text, ``stdout`` a pipe.

    Args:
        target: an absolute path of a script, or the name of a module that is run as by ``python -m``.
        arguments: what comes after it.
        stderr: where its errors go.
        pycache: where it looks for and puts compiled modules, instead of beside their sources.

    Raises:
        OSError: it cannot be started.
    """
    settings = {"path": without_current(sys.path), "package": str(Path(onnxq.__file__).resolve().parent)}
    compiled = [] if pycache is None else ["-X", f"pycache_prefix={pycache}"]
    command = [sys.executable, "-I", *compiled, str(LAUNCH), json.dumps(settings), str(target), *arguments]
    # The child holds the reading end: it sees when the other one is closed.
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE, stderr=stderr, text=True)
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    try:
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        os.close(writing)


def run_child(
    target: Path | str, arguments: Sequence[str] = (), *, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """A child that has ended, with what it printed; see ``child``.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it took longer than ``timeout_s``; it was ended.
    """
    with child(target, arguments) as process:
        stdout, stderr = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
