"""What the command line makes of the networks in ``models/``: measured here, committed in ``models.json``.

``onnxq quantize`` sees the calibration samples, ``onnxq evaluate`` judges what it wrote on test samples that were never
seen. Nothing depends on the clock or on the CPU that runs it, as far as that can be had:

- the target, and by it the cost table, is named; latency is not measured, and ``no_stopwatch`` makes any decision that
  is timed all the same an error.
- integer kernels are exact where products do not saturate, that is on every CPU that ``can_compute`` the target. Float
  kernels add up in another order on another CPU, or with another number of threads, and weights follow: between 1 and 2
  threads SQNR moved by 0.01 dB and agreement by 0.0002. The tolerances are far above that and below what faults cost.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

from model_macs import multiply_accumulates
from typer.testing import CliRunner, Result

from onnxq.cli import app

MODELS = Path(__file__).parents[2] / "models"
COMMITTED = Path(__file__).with_name("models.json")

# The data of each network: DATA_calib.npz and DATA_test.npz.
DATA = {
    "convnext": "glyphs",
    "efficientnet": "glyphs",
    "gpt_bytes": "text",
    "keyword_spotter": "speech",
    "mobilenet_v2": "glyphs",
    "recurrent": "speech",
    "resnet": "glyphs",
    "vit": "glyphs",
}
# Test samples, evenly spaced; those of text are 128 decisions each.
SAMPLES = {"glyphs": 512, "speech": 512, "text": 128}
# (target, preset): figures of the former hold for AVX512-VNNI, AVX-VNNI and AMX, those of the latter for every x86 CPU.
VNNI, AVX2 = "x86-vnni", "x86-avx2"
CASES = ((VNNI, "int8"), (VNNI, "w4"), (VNNI, "w4a8"), (AVX2, "int8"))


@dataclass(frozen=True)
class Figures:
    """Of one quantized network.

    | field           | meaning                                                            | may move by |
    |-----------------|--------------------------------------------------------------------|-------------|
    | `exit_code`     | of ``onnxq quantize``                                              | 0           |
    | `bytes`         | of the file written                                                | 0.5 %       |
    | `integer_share` | of the multiply-accumulates, those that integer kernels do         | 0.001       |
    | `sqnr_db`       | on test samples, the mean of each row removed where only ranks count | 0.5         |
    | `agreement`     | share of test samples with the float model's first choice          | 0.01        |
    """

    exit_code: int
    bytes: int
    integer_share: float
    sqnr_db: float
    agreement: float

    def moved(self, committed: Figures) -> list[str]:
        """Which figures are further from ``committed`` than they may be, up or down; one phrase each."""
        allowed = {
            "exit_code": 0.0,
            "bytes": 0.005 * committed.bytes,
            "integer_share": 0.001,
            "sqnr_db": 0.5,
            "agreement": 0.01,
        }
        return [text for name, text in self.changes(committed).items() if self._gap(committed, name) > allowed[name]]

    def changes(self, committed: Figures) -> dict[str, str]:
        """By name, the figures that are not those of ``committed``, as ``name old -> new``."""
        names = [f.name for f in fields(self) if self._gap(committed, f.name) > 0.0]
        return {name: f"{name} {getattr(committed, name)} -> {getattr(self, name)}" for name in names}

    def _gap(self, committed: Figures, name: str) -> float:
        # What is counted in decimals is compared in decimals: half a dB is no more than half a dB.
        return round(abs(float(getattr(self, name)) - float(getattr(committed, name))), 9)


def measure(name: str, target: str, preset: str, folder: Path) -> Figures:
    """The ``Figures`` of the network called ``name``; ``folder`` is for the file that is written."""
    model, data, written = MODELS / f"{name}.onnx", MODELS / "data" / DATA[name], folder / f"{name}.{preset}.onnx"
    with no_stopwatch():
        quantized = _call(
            *("quantize", model, "--calib", f"{data}_calib.npz", "--output", written, "--json"),
            *("--preset", preset, "--target", target, "--latency", 0),
        )
    report = json.loads(quantized.stdout)
    evaluated = _call(
        *("evaluate", model, written, "--data", f"{data}_test.npz", "--samples", SAMPLES[DATA[name]]),
        *("--no-layers", "--json"),
    )
    assert evaluated.exit_code == 0, evaluated.output
    comparison = json.loads(evaluated.stdout)["comparison"]
    (output,) = comparison["outputs"]
    return Figures(
        quantized.exit_code,
        written.stat().st_size,
        round(integer_share(multiply_accumulates(model, Path(f"{data}_test.npz")), report["assignments"]), 4),
        round(comparison["sqnr_db"], 2),
        round(output["agreement"], 4),
    )


def integer_share(work: Mapping[str, int], assignments: list[dict[str, Any]]) -> float:
    """Of the multiply-accumulates ``work`` (by node of the float model), the share that runs on integers."""
    missing = [assignment for assignment in assignments if assignment["node"] not in work]
    # A product whose range is measured at run time loses its name to the nodes that measure; it is an integer kernel.
    assert all(assignment["integer"] for assignment in missing), missing
    assert len(assignments) == len(work)
    in_float = sum(work[assignment["node"]] for assignment in assignments if not assignment["integer"])
    return 1.0 - in_float / sum(work.values())


@contextmanager
def no_stopwatch() -> Iterator[None]:
    """Makes it an error to measure latency meanwhile: what is decided by that differs from run to run."""

    def refuse() -> NoReturn:
        raise AssertionError("a decision was timed: these figures would not come out twice")

    with patch("onnxq.measure.latency.time", SimpleNamespace(perf_counter=refuse)):
        yield


def committed() -> dict[str, dict[str, Figures]]:
    """The figures in ``models.json``: ``[TARGET PRESET][network]``."""
    stored = json.loads(COMMITTED.read_text(encoding="utf-8"))["figures"]
    return {case: {name: Figures(**row) for name, row in rows.items()} for case, rows in stored.items()}


def commit(figures: Mapping[str, Mapping[str, Figures]]) -> None:
    """Writes ``models.json``, a line a network; with the runtime that the figures are of."""
    import onnxruntime

    cases = []
    for case, rows in sorted(figures.items()):
        lines = [f"      {json.dumps(name)}: {json.dumps(asdict(row))}" for name, row in sorted(rows.items())]
        cases.append(f"    {json.dumps(case)}: {{\n" + ",\n".join(lines) + "\n    }")
    head = f'{{\n  "onnxruntime": {json.dumps(onnxruntime.__version__)},\n  "figures": {{\n'
    COMMITTED.write_text(head + ",\n".join(cases) + "\n  }\n}\n", encoding="utf-8")


def can_compute(target: str) -> bool:
    """Whether this CPU multiplies the 8-bit integers of ``target`` without saturating: else SQNR is not the model's."""
    if target == AVX2 or platform.machine().lower() in ("arm64", "aarch64"):
        return True
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


def _call(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done
