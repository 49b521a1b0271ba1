"""Running the command in a process of its own, with limits, and what came of it."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Generous: a case takes a tenth of a second and 200 MB above those that are there already.
SECONDS = 60
MEMORY = 8 * 2**30
GROWTH = 1.5 * 2**30


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``kind``: ok, refused, runtime, bug, unclean, killed, hang or memory; the first three are right.

    "runtime": the process died or had no end, and so it is when onnxruntime or onnx is given the model without onnxq.

    ``where``: for a bug its last line of the package; ``text``: what was printed on stderr.
    """

    kind: str
    where: str
    text: str
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the run ended as runs may end."""
        return self.kind in ("ok", "refused", "runtime")


def load_all() -> None:
    """Imports whatever a command may import, once, so that no fork has to."""
    import importlib
    import pkgutil

    import onnxruntime  # noqa: F401

    import onnxq

    for module in pkgutil.walk_packages(onnxq.__path__, "onnxq."):
        if not module.name.endswith(("__main__", ".worker")):
            importlib.import_module(module.name)
    for extra in ("PIL.Image", "PIL.PngImagePlugin", "tokenizers", "rich.console", "rich.table", "rich.progress"):
        importlib.import_module(extra)


def run(arguments: Sequence[str], folder: Path) -> Outcome:
    """The ``Outcome`` of ``onnxq`` with ``arguments``, in ``folder``, in a fork of this process."""
    log = folder / "stderr.txt"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(_child(list(arguments), folder, log))
    status, usage = _wait(child, began + SECONDS)
    seconds = time.monotonic() - began
    text = log.read_text(errors="replace") if log.exists() else ""
    if status is None:
        return Outcome("runtime" if _runtime_dies(folder) else "hang", "", text, seconds)
    if usage * 1024 > GROWTH + _own_memory():
        return Outcome("memory", "", f"{usage // 1024} MB; {text}", seconds)
    if os.WIFSIGNALED(status):
        kind = "runtime" if _runtime_dies(folder) else "killed"
        return Outcome(kind, f"signal {os.WTERMSIG(status)}", text, seconds)
    return Outcome(*_judged(os.WEXITSTATUS(status), text), seconds)


def _child(arguments: list[str], folder: Path, log: Path) -> int:
    """The exit code of the command; in the forked process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    with open(log, "wb") as errors, open(os.devnull, "r+b") as null:
        os.dup2(null.fileno(), 0)
        os.dup2(null.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    sys.stdout, sys.stderr = (open(fd, "w", closefd=False, errors="replace") for fd in (1, 2))  # noqa: SIM115
    os.environ["ONNXQ_TRACEBACK"] = "1"
    os.environ["ONNXQ_CACHE"] = str(folder / "cache")
    sys.argv = ["onnxq", *arguments]
    from onnxq.cli import main

    try:
        return main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 99
    finally:
        sys.stderr.flush()


def _runtime_dies(folder: Path) -> bool:
    """Whether loading the model, running it on its data or inferring its shapes ends the process or never ends."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        with contextlib.suppress(Exception):
            import onnx

            onnx.shape_inference.infer_shapes(onnx.load(folder / "model.onnx"), data_prop=True)
        with contextlib.suppress(Exception):
            import numpy as np
            import onnxruntime as ort

            session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
            arrays = dict(np.load(folder / "data.npz"))
            free = {i.name for i in session.get_inputs() if i.shape and not isinstance(i.shape[0], int)}
            session.run(None, {name: array[:1] if name in free else array for name, array in arrays.items()})
        os._exit(0)
    status, _ = _wait(child, time.monotonic() + SECONDS)
    return status is None or os.WIFSIGNALED(status)


def _wait(child: int, until: float) -> tuple[int | None, int]:
    """Status and peak memory in kB of ``child``, which is killed at the time ``until``: then None."""
    pause = 0.002
    while time.monotonic() < until:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage.ru_maxrss
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    os.kill(child, signal.SIGKILL)
    os.wait4(child, 0)
    return None, 0


def _own_memory() -> int:
    """Bytes that this process holds now, which is what a fork begins with; at its peak where nobody knows."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _judged(code: int, text: str) -> tuple[str, str, str]:
    """Kind, place and text of a run that ended by itself."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if code in (0, 3):
        return ("ok", "", "") if "Traceback" not in text and not errors else ("unclean", "", text)
    if code == 2 and len(errors) == 1 and "bug in onnxq" not in errors[0]:
        return "refused", "", errors[0]
    places = re.findall(r'File ".*?/onnxq/(\S+)", line (\d+), in (\S+)', text)
    where = "{}:{} {}".format(*places[-1]) if places else f"exit code {code}"
    kind = next((line.split(":")[0] for line in reversed(text.splitlines()) if re.match(r"\w+(\.\w+)*: ", line)), "")
    return "bug", f"{where} {errors[-1].split('): ')[-1][:60] if errors else kind}", text
