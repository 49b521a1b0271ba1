"""Training in a process of its own, with a runtime of its own: what the rest of onnxq sees of onnxruntime-training.

onnxruntime-training ships the same package as the onnxruntime that everything else uses. It lies in a private folder
(``onnxq.adapt.runtime``), and only ``worker.py`` sees it. A job is a folder (model, data, settings); the worker leaves
the best parameters so far there, so that a run that is stopped, or dies, loses nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.adapt.trainer import Parameter, Schedule, Trained
from onnxq.errors import RuntimeFailure
from onnxq.graph.io import serialize
from onnxq.runtime.child import child

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

WORKER = Path(__file__).resolve().with_name("worker.py")
# onnxruntime-training 1.19.2 reads no newer one.
_IR_VERSION = 9


@dataclass(frozen=True)
class Engine:
    """A ``Trainer``: where the training runtime lies, and where jobs may put their files."""

    runtime: Path
    folder: Path
    seed: int = 0
    threads: int | None = None

    def train(
        self,
        model: ir.Model,
        data: Mapping[str, Array],
        parameters: Mapping[str, Parameter],
        schedule: Schedule,
        *,
        fit: Sequence[int],
        check: Sequence[int],
        progress: Callable[[int, int, float], None] | None = None,
    ) -> Trained:
        """As ``Trainer.train`` says: arguments, result and errors."""
        job = {
            **asdict(schedule),
            "parameters": {name: asdict(p) for name, p in parameters.items()},
            "fit": [int(i) for i in fit],
            "check": [int(i) for i in check],
        }
        folder = self._prepared("train", model, data, job)
        facts: dict[str, Any] = {"steps": schedule.steps, "rate": 0.0}
        curve: list[tuple[int, float, float]] = []
        probes: dict[float, float] = {}
        for said in self._lines(folder):
            if said["kind"] == "probe":
                probes[said["rate"]] = said["check"]
            elif said["kind"] == "step":
                curve.append((said["step"], said["fit"], said["check"]))
                if progress is not None:
                    progress(said["step"], facts["steps"], said["check"])
            elif said["kind"] != "died":
                facts.update(said)
                if said["kind"] == "start":
                    facts["before"] = said["check"]
        values = dict(zip(parameters, self._result(folder, "best.npz", len(parameters)), strict=True))
        found = {n: v.astype(np.float32) for n, v in values.items()}
        after = min([facts["check"], *probes.values(), *(check for _, _, check in curve)])
        finished = facts.get("kind") == "end"
        return Trained(found, facts["before"], after, facts["rate"], finished, tuple(curve), probes)

    def curvature(
        self,
        model: ir.Model,
        data: Mapping[str, Array],
        tensors: Mapping[str, tuple[int, int]],
        outputs: Sequence[tuple[tuple[int, ...], bool]],
        *,
        batch: int,
        repeats: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, F64]:
        """As ``Trainer.curvature`` says: arguments, result and errors."""
        job = {
            "parameters": {name: {"axis": axis, "groups": groups} for name, (axis, groups) in tensors.items()},
            "random": [{"shape": list(shape), "centred": centred} for shape, centred in outputs],
            "batch": batch,
            "repeats": repeats,
        }
        folder = self._prepared("curvature", model, data, job)
        for said in self._lines(folder):
            if progress is not None and said["kind"] == "batch":
                progress(said["done"], said["total"])
        return dict(zip(tensors, self._result(folder, "curvature.npz", len(tensors)), strict=True))

    def _prepared(self, kind: str, model: ir.Model, data: Mapping[str, Array], job: Mapping[str, Any]) -> Path:
        """The folder of a new job."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = self.folder / f"job_{len(list(self.folder.glob('job_*')))}"
        (folder / "data").mkdir(parents=True)
        names = [v.name or "" for v in model.graph.inputs if v.name in data]
        for i, name in enumerate(names):
            np.save(folder / "data" / f"{i}.npy", np.ascontiguousarray(data[name]))
        model.ir_version = _IR_VERSION
        (folder / "model.onnx").write_bytes(serialize(model))
        fixed = [n for n in model.graph.initializers if n not in job["parameters"]]
        common = {
            "kind": kind,
            "inputs": len(names),
            "frozen": fixed,
            "seed": self.seed,
            "threads": self.threads or os.cpu_count() or 1,
        }
        (folder / "job.json").write_text(json.dumps({**job, **common}), encoding="utf-8")
        return folder

    def _lines(self, folder: Path) -> Iterator[dict[str, Any]]:
        """What the worker says of a job, as it says it. However this ends, the worker has ended too."""
        arguments = [str(self.runtime), str(folder)]
        with (
            (folder / "worker.log").open("wb") as log,
            # Compiled modules that lie beside those of the runtime are not looked at: their hashes are not known.
            child(WORKER, arguments, stderr=log, pycache=folder / "compiled") as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
            if process.wait() != 0:
                yield {"kind": "died", "code": process.returncode}

    def _result(self, folder: Path, name: str, count: int) -> list[Array]:
        if not (folder / name).exists():
            lines = (folder / "worker.log").read_text(errors="replace").strip().splitlines()
            reason = lines[-1][-300:] if lines else "it said nothing"
            raise RuntimeFailure(f"the training process ended without a result ({reason})", hint="try --adapt fast")
        with np.load(folder / name) as archive:
            return [archive[f"p{i}"] for i in range(count)]
