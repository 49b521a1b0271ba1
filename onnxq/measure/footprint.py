"""Load time and peak memory of one model, measured in a fresh process so that nothing else is counted.

Run as a script with the arguments ``MODEL FEEDS.npz THREADS RUNS`` it prints the figures as one line of JSON.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxq.errors import RuntimeFailure, one_line
from onnxq.files.temporary import temporary_folder
from onnxq.measure.size import model_size
from onnxq.runtime.child import run_child
from onnxq.runtime.proto import Model, label
from onnxq.runtime.session import open_session, run
from onnxq.runtime.stored_feeds import load_feeds, store_feeds

_TIMEOUT_S = 600


@dataclass(frozen=True)
class Footprint:
    """``load_seconds``: opening the session. ``peak_bytes``: the most resident memory while loading and running, less
    what the process held after importing onnxruntime. ``file_bytes``: on disk, external data included.
    """

    model: str
    load_seconds: float
    peak_bytes: int
    file_bytes: int


def footprint(
    model: Model, feeds: Sequence[Mapping[str, npt.NDArray[Any]]], *, threads: int = 1, runs: int = 3
) -> Footprint:
    """The ``Footprint`` of ``model`` in a child process that runs ``feeds`` in turn, ``runs`` times in all.

    Raises ``RuntimeFailure`` where the child fails, with its last line of output.
    """
    # Here, not above: these cost a third of the import time of the whole room.
    import json
    import subprocess

    with temporary_folder() as folder:
        path = folder / "model.onnx" if isinstance(model, bytes) else Path(model)
        if isinstance(model, bytes):
            path.write_bytes(model)
        store_feeds(folder / "feeds.npz", feeds)
        arguments = [str(path.resolve()), str(folder / "feeds.npz"), str(threads), str(runs)]
        try:
            done = run_child(Path(__file__).resolve(), arguments, timeout_s=_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise RuntimeFailure(
                f"measuring {label(model)} took over {_TIMEOUT_S} s", hint="measure without memory"
            ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeFailure(f"cannot measure the memory of {label(model)}: {one_line(last)}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return Footprint(label(model), result["load_seconds"], result["peak_bytes"], model_size(model).file_bytes)


def _worker(model: Path, feeds: Path, threads: int, runs: int) -> dict[str, float | int]:
    import onnxruntime  # noqa: F401 - its own size is not the model's

    loaded = load_feeds(feeds)
    before = _resident(reset=True)
    start = time.perf_counter()
    session = open_session(model, threads=threads)
    seconds = time.perf_counter() - start
    for i in range(runs if loaded else 0):
        run(session, loaded[i % len(loaded)])
    return {"load_seconds": seconds, "peak_bytes": max(_resident(peak=True) - before, 0)}


def _resident(*, peak: bool = False, reset: bool = False) -> int:
    """Resident bytes of this process, now or at its peak (since the last reset where the system can reset it).

    Linux counts in /proc: ``ru_maxrss`` would there include what the *parent* held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        if reset:
            # Not permitted in some containers: the peak then includes that of the imports, which come first.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        key = "VmHWM:" if peak else "VmRSS:"
        line = next((text for text in status.read_text().splitlines() if text.startswith(key)), f"{key} 0 kB")
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has neither; a report without memory is better than none
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


if __name__ == "__main__":
    import json

    print(json.dumps(_worker(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
