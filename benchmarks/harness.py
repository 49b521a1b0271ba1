"""What the benchmarks share: the models in `models/` with data and metric, the machine, JSON files, markdown tables."""

from __future__ import annotations

import datetime
import json
import math
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnxruntime as ort

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
RESULTS = ROOT / "benchmarks" / "results"
BATCH = 64

Array = np.ndarray
Metric = Literal["top-1", "bits per byte"]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """One model of `models/`: the stem of its data files, the array it takes and the figure it is judged by."""

    model: str
    data: str
    array: str
    metric: Metric = "top-1"

    @property
    def path(self) -> Path:
        """The float model."""
        return MODELS / f"{self.model}.onnx"

    def arrays(self, part: Literal["calib", "test"]) -> dict[str, Array]:
        """The arrays of one part of the data, as stored: `self.array` [N, ...] uint8 and, in most, `labels`."""
        with np.load(MODELS / "data" / f"{self.data}_{part}.npz") as archive:
            return {name: archive[name] for name in archive.files}

    def inputs(self, part: Literal["calib", "test"], n: int | None = None) -> dict[str, Array]:
        """The first `n` (None: all) inputs of one part of the data, without labels."""
        return {self.array: self.arrays(part)[self.array][:n]}


TASKS = {
    task.model: task
    for task in (
        Task("resnet", "glyphs", "image"),
        Task("mobilenet_v2", "glyphs", "image"),
        Task("efficientnet", "glyphs", "image"),
        Task("vit", "glyphs", "image"),
        Task("convnext", "glyphs", "image"),
        Task("keyword_spotter", "speech", "features"),
        Task("recurrent", "speech", "features"),
        Task("gpt_bytes", "text", "tokens", "bits per byte"),
    )
}


# For networks with random weights: their largest logit is decided by noise, so that no agreement can be promised, and
# repairing what was never there would cost speed. Judged they are all the same.
UNGUARDED: dict[str, Any] = {"min_agreement": 0.0, "guard_sqnr": -200.0}


def session(path: Path) -> ort.InferenceSession:
    """A silent CPU session of the model at `path` with onnxruntime's own defaults."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def cast(arrays: Mapping[str, Array], path: Path) -> dict[str, Array]:
    """`arrays` in the dtypes that the inputs of the model at `path` want (uint8 to float32 or int64)."""
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    return {i.name: arrays[i.name].astype(types[i.type], copy=False) for i in session(path).get_inputs()}


def feeds(arrays: Mapping[str, Array], batch: int = 1) -> Iterator[dict[str, Array]]:
    """Feeds of `batch` samples each from arrays whose first axis is samples."""
    for start in range(0, len(next(iter(arrays.values()))), batch):
        yield {name: array[start : start + batch] for name, array in arrays.items()}


def outputs(path: Path, arrays: Mapping[str, Array]) -> Array:
    """The first output of the model at `path` for all of `arrays`, already cast."""
    opened = session(path)
    return np.concatenate([opened.run(None, feed)[0] for feed in feeds(arrays, BATCH)])


def score(metric: Metric, logits: Array, labels: Array) -> float:
    """Top-1 in percent, or bits per byte, of `logits: [N, ..., C]` against `labels: [N, ...]`."""
    if metric == "top-1":
        return float(100 * np.mean(logits.argmax(-1) == labels))
    total = 0.0
    for row, label in zip(logits, labels.astype(np.int64), strict=True):  # by sample: float64 of all would be large
        x = row.astype(np.float64)
        x -= x.max(-1, keepdims=True)
        total += float(np.sum(np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, label[..., None], -1)[..., 0]))
    return total / labels.size / math.log(2)


def attempt(what: str, action: Callable[[], T]) -> tuple[T | None, str | None]:
    """(the action's value, None), or (None, the error in one line): one failure must not end a long benchmark."""
    try:
        return action(), None
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"FAILED {what}: {text}", flush=True)
        return None, text


def child(command: Sequence[str], **options: Any) -> dict[str, float]:
    """What a child process prints as JSON on its last line; RuntimeError with the last line of its errors if it fails.

    `options` as those of `subprocess.run`.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def machine() -> dict[str, Any]:
    """What the figures were taken on and with."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": info.count("processor\t") or None,
        "instructions": {name: name in flags for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")},
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "onnxq")),
    }


def _git(*arguments: str) -> str | None:
    """The output of one git command in the repository; None where there is no git or no commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write(name: str, settings: Mapping[str, Any], results: Mapping[str, Any]) -> Path:
    """Write `benchmarks/results/NAME.json` with machine, settings and results; return its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"machine": machine(), "settings": dict(settings), **results}
    path.write_text(json.dumps(content, indent=1, default=_plain) + "\n")
    return path


def _plain(value: Any) -> Any:
    """numpy scalars and paths as what JSON knows."""
    return value.item() if isinstance(value, np.generic) else str(value)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its columns padded so that it reads well as plain text too."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in table]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def number(value: float | None, form: str = ".2f") -> str:
    """`value` formatted, or a dash."""
    return "-" if value is None else format(value, form)


def chosen(names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """`names` in the order of `known`; all of `known` if None. Raises SystemExit for a name that is not known."""
    if unknown := sorted(set(names or ()) - set(known)):
        raise SystemExit(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    return [name for name in known if names is None or name in names]
