"""The training process: a script with the arguments ``RUNTIME JOB`` that knows nothing of quantization.

RUNTIME is the folder that holds onnxruntime-training, JOB a folder with ``job.json``, ``model.onnx`` (inputs, and a
scalar loss as its only output) and ``data/0.npy``, ... for its inputs, samples along the first axis. Two kinds of job:

- ``train``: progress goes to stdout, one JSON object a line; the best parameters so far are always in ``best.npz``.
- ``curvature``: the parameters are zeros that were added to inner tensors, so that their gradients are those tensors'.
  Their second moments over channels, for random combinations of the outputs, go to ``curvature.npz``.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import types
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


def load_runtime(folder: str) -> None:
    """Makes onnxruntime that of ``folder``, and its training parts importable without torch."""
    sys.path.insert(0, folder)
    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(folder) / "onnxruntime" / "training")]
    import onnxruntime  # noqa: F401 - before the stand-in, so that it becomes its part

    sys.modules["onnxruntime.training"] = package


def main(runtime: str, job_folder: str) -> None:
    load_runtime(runtime)
    folder = Path(job_folder)
    job = json.loads((folder / "job.json").read_text())
    {"train": Training, "curvature": Curvature}[job["kind"]](folder, job).go()


class Run(ABC):
    """What both kinds of job begin with."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        import numpy as np
        import onnx
        import onnxruntime as ort
        from onnxruntime.training import artifacts
        from onnxruntime.training.api import CheckpointState, Module

        self.np, self.folder, self.job = np, folder, job
        ort.set_default_logger_severity(4)
        made = folder / "artifacts"
        made.mkdir(exist_ok=True)
        artifacts.generate_artifacts(
            onnx.load(folder / "model.onnx"),
            requires_grad=list(job["parameters"]),
            frozen_params=job["frozen"],
            artifact_directory=str(made),
        )
        self.state = CheckpointState.load_checkpoint(str(made / "checkpoint"))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = job["threads"]
        self.module = Module(
            str(made / "training_model.onnx"), self.state, str(made / "eval_model.onnx"), session_options=options
        )
        self.data = [np.load(folder / "data" / f"{i}.npy", mmap_mode="r") for i in range(job["inputs"])]
        self.parameters = {name: self.state.parameters[name] for name in job["parameters"]}
        self.random = np.random.default_rng(job["seed"])

    @abstractmethod
    def go(self) -> None:
        """Does the job."""

    def tell(self, **what: object) -> None:
        print(json.dumps(what), flush=True)


class Curvature(Run):
    """``E[d d^T]`` over channels, d the gradient at a tensor of a random combination of the outputs."""

    def go(self) -> None:
        np, job, size = self.np, self.job, self.job["batch"]
        sums: dict[int, Any] = {}
        batches = [range(s, s + size) for s in range(0, len(self.data[0]) - size + 1, size)]
        self.module.train()
        for turn in range(job["repeats"]):
            for done, batch in enumerate(batches):
                noise = [self.noise(size, one) for one in job["random"]]
                self.module(*(d[batch.start : batch.stop] for d in self.data), *noise)
                for i, (name, parameter) in enumerate(self.parameters.items()):
                    axis, groups = job["parameters"][name]["axis"], job["parameters"][name]["groups"]
                    grad = np.moveaxis(parameter.grad, axis, -1)
                    rows = grad.reshape(-1, groups, grad.shape[-1] // groups).transpose(1, 2, 0)
                    sums[i] = sums.get(i, 0.0) + np.matmul(rows, rows.transpose(0, 2, 1)).astype(np.float64)
                self.module.lazy_reset_grad()
                self.tell(kind="batch", done=turn * len(batches) + done + 1, total=job["repeats"] * len(batches))
        half = self.folder / "half.npz"
        np.savez(half, **{f"p{i}": total for i, total in sums.items()})
        os.replace(half, self.folder / "curvature.npz")

    def noise(self, size: int, one: dict[str, Any]) -> object:
        found = self.random.standard_normal((size, *one["shape"])).astype(self.np.float32)
        return found - found.mean(axis=-1, keepdims=True) if one["centred"] else found


class Training(Run):
    """Adam with the best parameters kept."""

    pace = 0.0

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        super().__init__(folder, job)
        np = self.np
        self.start = {name: p.data.copy() for name, p in self.parameters.items()}
        self.fit, self.check = np.asarray(job["fit"]), np.asarray(job["check"])

    def go(self) -> None:
        """The rate is found by short runs, then the schedule runs; both report."""
        job = self.job
        begun = time.monotonic()
        self.best_loss, self.best = self.held_out(), {n: v.copy() for n, v in self.start.items()}
        self.save()
        self.tell(kind="start", check=self.best_loss)
        rates = job["rates"]
        rate = rates[0] if len(rates) == 1 else self.probe(rates)
        steps = job["steps"]
        if job["seconds"] and steps:
            pace = self.pace
            left = job["seconds"] - (time.monotonic() - begun)
            steps = max(1, min(steps, int(left / pace))) if pace else steps
        self.tell(kind="rate", rate=rate, steps=steps)
        self.train(rate, steps, report=True)
        self.tell(kind="end", check=self.best_loss, seconds=time.monotonic() - begun)

    def probe(self, rates: list[float]) -> float:
        """The rate whose short run, on its own schedule, ends with the least loss on the held-out samples."""
        found = {}
        for rate in rates:
            self.reset(self.start)
            self.train(rate, self.job["probe_steps"], report=False)
            found[rate] = self.held_out()
            self.tell(kind="probe", rate=rate, check=found[rate])
        self.reset(self.start)
        sound = {rate: loss for rate, loss in found.items() if math.isfinite(loss)}
        return min(sound, key=lambda rate: sound[rate]) if sound else min(rates)

    def train(self, rate: float, steps: int, *, report: bool) -> None:
        """Adam (Kingma and Ba, ICLR 2015) with a rate that falls to 0 as a cosine."""
        np, job = self.np, self.job
        first, second = job["momentum"]
        m = {n: np.zeros_like(v) for n, v in self.start.items()}
        v = {n: np.zeros_like(x) for n, x in self.start.items()}
        self.module.train()
        begun, losses = time.monotonic(), []
        for step in range(steps):
            batch = self.random.choice(self.fit, min(job["batch"], self.fit.size), replace=False)
            batch.sort()
            losses.append(float(self.module(*(d[batch] for d in self.data))))
            now = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            for name, parameter in self.parameters.items():
                grad = parameter.grad
                m[name] += (1 - first) * (grad - m[name])
                v[name] += (1 - second) * (grad * grad - v[name])
                unbiased = math.sqrt(1 - second ** (step + 1)) / (1 - first ** (step + 1))
                size = job["parameters"][name]["size"]
                value = parameter.data
                move = (now * size * unbiased) * m[name] / (np.sqrt(v[name]) + 1e-12)
                parameter.data = value - move
            self.module.lazy_reset_grad()
            if (step + 1) % job["every"] == 0 or step + 1 == steps:
                self.pace = (time.monotonic() - begun) / (step + 1)
                check = self.held_out()
                if check < self.best_loss:
                    self.best_loss = check
                    self.best = {n: p.data.copy() for n, p in self.parameters.items()}
                    self.save()
                if report:
                    recent = losses[-job["every"] :]
                    self.tell(kind="step", step=step + 1, fit=sum(recent) / len(recent), check=check)

    def held_out(self) -> float:
        """The loss on the held-out samples."""
        self.module.eval()
        total, size = 0.0, int(self.job["batch"])
        for i in range(0, self.check.size, size):
            part = self.check[i : i + size]
            total += float(self.module(*(d[part] for d in self.data))) * part.size
        self.module.train()
        return total / int(self.check.size)

    def reset(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.parameters[name].data = value

    def save(self) -> None:
        """Writes ``best.npz`` in one stroke: whoever stops this process finds it whole."""
        half = self.folder / "half.npz"
        self.np.savez(half, **{f"p{i}": self.best[n] for i, n in enumerate(self.job["parameters"])})
        os.replace(half, self.folder / "best.npz")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
