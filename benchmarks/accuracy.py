"""Accuracy of INT8 on every model in `models/`: float, onnxq, and onnxruntime's `quantize_static` (see peers.py).

Calibrated on the calibration arrays, judged on the whole test set. Prints a markdown table and writes
`benchmarks/results/accuracy.json`. Every onnxq file is also run in onnxruntime 1.19.2 and compared with itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import older
import peers

import onnxq
from onnxq.numerics import agreement, centred, sqnr_db

OLDER_SAMPLES = 512


def main() -> None:
    """Measure every chosen model, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help=f"any of {', '.join(harness.TASKS)} (default: all)")
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument("--percentile-samples", type=int, default=512, help="of them for percentiles (memory!)")
    parser.add_argument("--no-older", action="store_true", help=f"do not run onnxruntime {older.VERSION}")
    options = parser.parse_args()
    rows = []
    for name in harness.chosen(options.models, list(harness.TASKS)):
        if not harness.TASKS[name].path.exists():
            print(f"skipped {name}: {harness.TASKS[name].path.name} is not there", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="onnxq-accuracy-") as folder:
            rows.append(measure(harness.TASKS[name], Path(folder), options))
        print(f"done {name}", flush=True)
    path = harness.write("accuracy", vars(options), {"models": rows})
    print(f"\n{table(rows)}\n\nwritten: {path.relative_to(harness.ROOT)}")


def measure(task: harness.Task, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model: `float`, `onnxq`, `static` (by method), `static_best` (a method's name), `older`."""
    calibration = task.inputs("calib", options.samples)
    test = task.arrays("test")
    labels = test.pop("labels")
    inputs = harness.cast({task.array: test[task.array]}, task.path)
    reference = harness.outputs(task.path, inputs)

    def judged(path: Path) -> dict[str, Any]:
        logits = harness.outputs(path, inputs)
        same, rows = agreement(reference, logits)
        return {
            "score": harness.score(task.metric, logits, labels),
            "agreement": same / rows,
            "sqnr_db": sqnr_db(centred(reference), centred(logits)),
            "bytes": path.stat().st_size,
        }

    def by_onnxq() -> dict[str, Any]:
        start = time.perf_counter()
        result = onnxq.quantize(task.path, calibration, config=onnxq.Config(samples=options.samples))
        result.save(folder / "onnxq.onnx")
        seconds = time.perf_counter() - start
        notes = [*result.report.notes, *result.report.warnings]
        return {**judged(folder / "onnxq.onnx"), "seconds": seconds, "good": result.good, "notes": notes}

    def by_static(percentile: float | None) -> dict[str, Any]:
        n = options.samples if percentile is None else min(options.samples, options.percentile_samples)
        feeds = harness.feeds(harness.cast({task.array: calibration[task.array][:n]}, task.path))
        made = peers.quantize_static(task.path, folder / "static.onnx", feeds, percentile=percentile)
        return {**judged(made.path), "seconds": made.seconds, "preprocessing": made.preprocessing, "samples": n}

    row: dict[str, Any] = {
        "model": task.model,
        "metric": task.metric,
        "test_samples": len(labels),
        "float": {"score": harness.score(task.metric, reference, labels), "bytes": task.path.stat().st_size},
        "onnxq": _or_error(f"onnxq on {task.model}", by_onnxq),
        "static": {
            name: _or_error(f"quantize_static ({name}) on {task.model}", lambda p=percentile: by_static(p))
            for name, percentile in {"minmax": None, **{f"percentile {p}": p for p in peers.PERCENTILES}}.items()
        },
    }
    row["static_best"] = _best_percentile(row["static"])
    if not options.no_older and "score" in row["onnxq"]:
        few = {name: array[:OLDER_SAMPLES] for name, array in inputs.items()}
        row["older"] = _or_error(
            f"onnxruntime {older.VERSION} on {task.model}", lambda: _in_older(folder / "onnxq.onnx", few)
        )
    return row


def _or_error(what: str, action: Any) -> dict[str, Any]:
    """The action's figures, or `{"error": one line}`."""
    value, error = harness.attempt(what, action)
    return {"error": error} if value is None else value


def _best_percentile(static: dict[str, dict[str, Any]]) -> str | None:
    """The percentile method with the highest SQNR on the test set, which favours the peer; None if all failed."""
    good = {name: row["sqnr_db"] for name, row in static.items() if name != "minmax" and "sqnr_db" in row}
    return max(good, key=lambda name: good[name]) if good else None


def _in_older(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far the file gives the same in the older onnxruntime as in the current one."""
    now, then = harness.outputs(path, inputs), older.outputs(path, inputs)
    same, rows = agreement(now, then)
    difference = float(np.max(np.abs(now - then)))
    return {"onnxruntime": older.VERSION, "agreement": same / rows, "max_difference": difference, "rows": rows}


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as markdown: one line for each model and way of quantizing it."""
    lines = []
    for row in rows:
        best = row["static_best"]
        ways = {"float": row["float"], "onnxq": row["onnxq"], "quantize_static, minmax": row["static"]["minmax"]}
        if best is not None:
            ways[f"quantize_static, best {best}"] = row["static"][best]
        for way, figures in ways.items():
            then = row.get("older", {}).get("agreement") if way == "onnxq" else None
            share = figures.get("agreement")
            lines.append(
                [
                    row["model"],
                    way + (" (failed)" if "error" in figures else ""),
                    harness.number(figures.get("score"), ".2f" if row["metric"] == "top-1" else ".4f"),
                    harness.number(None if share is None else 100 * share),
                    harness.number(figures.get("sqnr_db"), ".1f"),
                    harness.number(figures["bytes"] / 1e6 if "bytes" in figures else None),
                    harness.number(None if then is None else 100 * then),
                ]
            )
    header = ["model", "", "top-1 % (or bits per byte)", "agreement %", "SQNR dB", "MB", "same in 1.19.2 %"]
    return harness.markdown(header, lines)


if __name__ == "__main__":
    main()
