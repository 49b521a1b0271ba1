"""Running a model first where it can do no harm: in a child process with limits of time and memory.

A kernel that divides by zero ends its process, a loop may have no end, and a size that is computed may be anything.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq.errors import RuntimeFailure, one_line
from onnxq.files.opening import size_text
from onnxq.files.temporary import temporary_folder
from onnxq.runtime.child import run_child
from onnxq.runtime.proto import Model
from onnxq.runtime.session import Feed
from onnxq.runtime.stored_feeds import store_feeds

# Processor time of one run, besides many times that of loading the model; for how long a busy machine may take for it.
SECONDS = 4.0
_PATIENCE_S = 600.0
WORKER = Path(__file__).resolve().with_name("trial_worker.py")


@dataclass(frozen=True)
class Tried:
    """``ran``: the number of the first feed that the model ran on, None for none. ``reasons``: why not on others.

    ``died``: whether a process did not end by itself, but died or was ended for its time or memory.
    """

    ran: int | None
    reasons: tuple[str, ...] = ()
    died: bool = False


class Died(RuntimeFailure):
    """Running a model ends the process that it is run in, or has no end."""


def tried(model: Model, feeds: Sequence[Feed], *, memory: int, seconds: float = SECONDS, deaths: int = 2) -> Tried:
    """The first of ``feeds`` that ``model`` runs on in a child process, and why it does not on those before.

    Args:
        model: a file, or bytes of one.
        feeds: what it is run on.
        seconds: of processor time that a run may take.
        memory: bytes that the process may take, besides files that it maps.
        deaths: after so many processes that did not end by themselves the rest is not tried.
    """
    with temporary_folder() as folder:
        path = folder / "model.onnx" if isinstance(model, bytes) else Path(model)
        if isinstance(model, bytes):
            path.write_bytes(model)
        store_feeds(folder / "feeds.npz", feeds)
        reasons: list[str] = []
        died = False
        while len(reasons) < len(feeds):
            arguments = [str(path.resolve()), str(folder / "feeds.npz"), str(len(reasons)), str(seconds), str(memory)]
            found = _one_process(arguments, seconds, memory)
            reasons += found.reasons
            died |= found.died
            deaths -= 1
            if found.ran is not None or deaths == 0:
                return Tried(found.ran, tuple(reasons), died)
    return Tried(None, tuple(reasons), died)


def require_run(model: Model, feed: Feed, *, memory: int) -> None:
    """Nothing; raises ``Died`` or another ``RuntimeFailure`` where ``model`` does not run on ``feed`` in a child."""
    found = tried(model, [feed], memory=memory)
    if found.ran is None:
        raise (Died if found.died else RuntimeFailure)(
            f"the model does not run on the first inputs: {found.reasons[0]}",
            hint="run it with onnxruntime on them, and check where the model comes from",
        )


def _one_process(arguments: Sequence[str], seconds: float, memory: int) -> Tried:
    """What one process tried, from its first feed to that on which it ran or died."""
    try:
        done = run_child(WORKER, arguments, timeout_s=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        return Tried(None, (f"it did not end within {_PATIENCE_S:g} s",), died=True)
    reasons: list[str] = []
    died = False
    for said in (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")):
        if "ran" in said:
            return Tried(int(said["ran"]), tuple(reasons))
        reasons.append(f"it needs more than {size_text(memory)} of memory" if said["memory"] else said["why"])
        died |= said["memory"]
    if done.returncode != 0:
        reasons.append(death(done, seconds))
    return Tried(None, tuple(reasons), died or done.returncode != 0)


def death(done: subprocess.CompletedProcess[str], seconds: float) -> str:
    """Why a process ended without a word; ``seconds``: of the processor that it might use."""
    if done.returncode == -getattr(signal, "SIGXCPU", 0):
        return f"it did not end within {seconds:g} s of processor time"
    if done.returncode == -signal.SIGFPE:
        return "an operator divides by zero, which ends the process"
    if done.returncode < 0:
        return f"the process died ({signal.Signals(-done.returncode).name})"
    return one_line((done.stderr.strip().splitlines() or ["the process said nothing"])[-1])
