"""How long each kernel takes, and what shapes it sees: onnxruntime's own profile of a few runs.

The times are those of the kernels alone, without what lies between them, to the microsecond: small models add up to
less than they take. They say where the time goes; whether a model is faster, only ``latency`` can say.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from onnxq.errors import DataError, OutputError
from onnxq.files.temporary import NO_ROOM, temporary_folder
from onnxq.measure.kernels import Kernel, KernelMap, kernels_of
from onnxq.runtime.proto import Model, label, load_proto
from onnxq.runtime.session import Feed, Level, open_session, open_to_look, run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Shape: TypeAlias = tuple[int, ...]

_WARM_UP_RUNS = 2
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class KernelTime:
    """One node of the optimised graph. ``microseconds``: of one run of the model, median over the runs.

    ``inputs``, ``outputs``: the shapes of those that are there, in order, as the last run had them.
    """

    name: str
    op: str
    microseconds: float
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


@dataclass(frozen=True)
class Profile:
    """``kernels``: the optimised graph; ``microseconds``: by position in ``kernels.nodes`` (0: it did not run)."""

    kernels: KernelMap
    microseconds: tuple[float, ...]

    @property
    def total(self) -> float:
        """Microseconds of all kernels together."""
        return sum(self.microseconds)


def kernel_times(
    model: Model, feeds: Iterable[Feed], *, threads: int = 1, runs: int = 10, optimize: Level = "all"
) -> tuple[KernelTime, ...]:
    """The ``KernelTime`` of every node that ran, in the order of the first run; ``feeds`` are taken in turn.

    Raises ``DataError`` where there are no feeds, and what ``open_session`` and ``run`` raise.
    """
    with temporary_folder() as folder:
        return _timed(model, feeds, threads, runs, optimize, folder)[0]


def profile(model: Model, feeds: Iterable[Feed], *, threads: int = 1, runs: int = 10) -> Profile:
    """The ``Profile`` of ``model`` as onnxruntime runs it on this machine; raises as ``kernel_times``."""
    import onnxruntime as ort

    with temporary_folder() as folder:
        times, saved = _timed(model, feeds, threads, runs, "all", folder)
        nodes = kernels_of(load_proto(saved).graph)
    kernels = KernelMap(label(model), "all", str(ort.__version__), nodes)
    return Profile(kernels, _assigned(nodes, times))


def observed_shapes(model: Model, feed: Feed) -> dict[str, tuple[Shape, ...]]:
    """By node name, the shapes of the outputs of each node of ``model`` in one run on ``feed``, optional ones left out.

    ``model`` runs without any optimisation, so that all of its nodes are there; their names must be unique.
    """
    with temporary_folder() as folder:
        session = open_to_look(model, optimize="none", profile=folder / "onnxruntime")
        return {t.name: t.outputs for t in _kernel_times(_profiled(session, [feed], 1), 0)}


def _timed(
    model: Model, feeds: Iterable[Feed], threads: int, runs: int, optimize: Level, folder: Path
) -> tuple[tuple[KernelTime, ...], Path]:
    kept = [dict(feed) for feed in itertools.islice(feeds, runs)]
    if not kept:
        raise DataError("there is no data to run the model on", hint="give at least one sample")
    saved = folder / "optimized.onnx"
    session = open_session(
        model, threads=threads, optimize=optimize, save_optimized=saved, profile=folder / "onnxruntime"
    )
    warm_up = _WARM_UP_RUNS if runs > 1 else 0
    return _kernel_times(_profiled(session, kept, warm_up + runs), warm_up), saved


def _profiled(session: InferenceSession, feeds: Sequence[Feed], runs: int) -> list[dict[str, Any]]:
    """The events of ``runs``, ``feeds`` in turn; ends the profiling of ``session``."""
    for i in range(runs):
        run(session, feeds[i % len(feeds)])
    path = Path(session.end_profiling())
    try:
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # onnxruntime does not tell that it could not write
        raise OutputError(f"onnxruntime wrote its profile only in part ({path.parent})", hint=NO_ROOM) from error
    return events


def _kernel_times(events: list[dict[str, Any]], warm_up: int) -> tuple[KernelTime, ...]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    starts = [e["ts"] for e in events if e.get("cat") == "Session" and e["name"] == "model_run"]
    runs = sorted(starts)[warm_up:]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX) and event["ts"] >= runs[0]:
            found[event["name"].removesuffix(_SUFFIX), event["args"]["node_index"]].append(event)
    times = []
    for (name, _), own in found.items():
        # A node in the body of a loop runs more often than the model, one in a branch less often.
        a_run = statistics.median(e["dur"] for e in own) * len(own) / len(runs)
        arguments = own[-1]["args"]
        times.append(
            KernelTime(
                name,
                arguments["op_name"],
                a_run,
                _shapes(arguments.get("input_type_shape", ())),
                _shapes(arguments.get("output_type_shape", ())),
            )
        )
    return tuple(times)


def _shapes(entries: Iterable[dict[str, list[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(dims) for entry in entries for dims in entry.values())


def _assigned(nodes: tuple[Kernel, ...], times: tuple[KernelTime, ...]) -> tuple[float, ...]:
    """The time of each of ``nodes``. Those without a name are profiled under one made up of the operator, in order."""
    named: dict[tuple[str, str], deque[float]] = defaultdict(deque)
    unnamed: dict[str, deque[float]] = defaultdict(deque)
    known = {(node.name, node.op) for node in nodes if node.name}
    for time in times:
        (named[time.name, time.op] if (time.name, time.op) in known else unnamed[time.op]).append(time.microseconds)
    assigned = []
    for node in nodes:
        waiting = named[node.name, node.op] if node.name else unnamed[node.op]
        assigned.append(waiting.popleft() if waiting else 0.0)
    return tuple(assigned)
