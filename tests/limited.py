"""Runs commands of onnxq, each in a fork of one warm process, with limits of memory and processor time.

As a script: for every line of JSON on stdin, a list of arguments and a folder, one line with what came of it on stdout.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY_BYTES, SECONDS = 500_000_000, 10


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code (negative: the signal that ended it), what it printed, what it took."""

    code: int
    stdout: str
    stderr: str
    peak_bytes: int
    seconds: float


class Limited:
    """The process that runs commands; a context manager."""

    def __enter__(self) -> Limited:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __call__(self, folder: Path, *arguments: object) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(folder), [str(a) for a in arguments]]), file=self._process.stdin, flush=True)
        return Done(**json.loads(self._process.stdout.readline()))


def _one(folder: str, arguments: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        number = os.fork()
        if number == 0:
            _run(folder, arguments, out.fileno(), err.fileno())
        _, status, used = os.wait4(number, 0)
        out.seek(0)
        err.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "stdout": out.read(),
            "stderr": err.read(),
            "peak_bytes": used.ru_maxrss * 1024,
            "seconds": used.ru_utime + used.ru_stime,
        }


def _run(folder: str, arguments: list[str], out: int, err: int) -> None:
    code = 1
    try:
        os.chdir(folder)
        os.dup2(out, 1)
        os.dup2(err, 2)
        text = Path("/proc/self/status").read_text()
        held = int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmData:"))) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, resource.RLIM_INFINITY))
        sys.argv = ["onnxq", *arguments]
        from onnxq.__main__ import main

        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    import numpy  # noqa: F401 - what is imported once need not be for every command
    import onnxruntime  # noqa: F401
    import rich.console  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_one(*json.loads(line))), flush=True)
