"""Latency of INT8 on the models in `models/` and known networks: float, onnxq, onnxq --tune, `quantize_static`.

For each model the files run in one process, interleaved in random order (`onnxq.benchmark`'s loop), with one thread and
with all. On the eleven, whose weights are random, onnxq gives no layer back to float (`harness.UNGUARDED`).
`quantize_static` uses min-max. onnxq's files also run in an older onnxruntime, whose answers are compared.
Prints a markdown table and writes `benchmarks/results/latency.json` after every model, so that a run may be broken off
or split over several; figures of a model are always of one run, which its row dates. On a CPU of another kind it starts
anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import networks
import numpy as np
import older
import peers

import onnxq
from onnxq.measure import benchmark, compare, kernel_map
from onnxq.numerics import noise

FLOAT, ONNXQ, TUNED, STATIC = "float", "onnxq", "onnxq --tune", "quantize_static"
FILES = {ONNXQ: "onnxq", TUNED: "tuned", STATIC: "static"}
CALIBRATION_SEED, UNSEEN_SEED = 1001, 1002  # neither is among those that set the networks' batch statistics
TIMED = 8
OLDER_SAMPLES = 4


def main() -> None:
    """Measure every chosen model, print table and geometric means, write the JSON."""
    known = [*harness.TASKS, *(f"net:{name}" for name in networks.NETWORKS)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help=f"any of {', '.join(known)} (default: all)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model and number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--tune", type=float, default=60.0, help="seconds of tuning; 0: leave it out")
    parser.add_argument("--no-older", action="store_true", help=f"do not run onnxruntime {older.VERSION}")
    parser.add_argument("--samples", type=int, default=64, help="calibration samples")
    parser.add_argument("--unseen", type=int, default=32, help="inputs for SQNR and agreement of networks")
    parser.add_argument("--test", type=int, default=2048, help="inputs for SQNR and agreement of models")
    parser.add_argument("--plot", action="store_true", help="only draw what was measured before (needs matplotlib)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of runs")
    options = parser.parse_args()
    if options.plot:
        print(f"written: {plot(json.loads((harness.RESULTS / 'latency.json').read_text())).relative_to(harness.ROOT)}")
        return
    path, settings = harness.RESULTS / "latency.json", vars(options)
    earlier = json.loads(path.read_text()) if path.exists() else {}
    same_kind = earlier.get("machine", {}).get("instructions") == harness.machine()["instructions"]
    rows = earlier["models"] if same_kind else []
    for name in harness.chosen(options.models, known):
        with tempfile.TemporaryDirectory(prefix="onnxq-latency-") as folder:
            row, _ = harness.attempt(name, lambda name=name, folder=folder: measure(name, Path(folder), options))
        if row is None:
            continue
        row["machine"] = harness.machine()
        rows = sorted([*(r for r in rows if r["model"] != name), row], key=lambda r: known.index(r["model"]))
        harness.write("latency", settings, {"models": rows, "geometric_means": geometric_means(rows, options.threads)})
        print(f"\n{table([row])}", flush=True)
    print(f"\n{table(rows)}\n")
    for mean in geometric_means(rows, options.threads):
        print(
            f"{mean['tool']}, {mean['threads']} thread(s): geometric mean over {mean['networks']} networks "
            f"{mean['speedup']:.2f} times float, slowest {mean['slowest']:.2f}"
        )
    print(f"\nwritten: {path.relative_to(harness.ROOT)}")


def plot(data: Mapping[str, Any]) -> Path:
    """Bars of how many times faster than float each tool's file of the eleven networks is, by number of threads."""
    import matplotlib.pyplot as plt

    rows = [row for row in data["models"] if row["model"].startswith("net:")]
    colours = {STATIC: "#9aa5b1", ONNXQ: "#2f6fb3", TUNED: "#0b2f5b"}
    counts = list(rows[0]["latency"])
    figure, axes = plt.subplots(len(counts), 1, figsize=(9, 2.6 * len(counts)), sharex=True, layout="constrained")
    for axis, threads in zip(np.atleast_1d(axes), counts, strict=True):
        for i, (tool, colour) in enumerate(colours.items()):
            cells = [row["latency"][threads].get(tool) for row in rows]
            heights = [0.0 if cell is None else 1 / cell["ratio"] for cell in cells]
            axis.bar([x + 0.27 * (i - 1) for x in range(len(rows))], heights, 0.25, color=colour, label=tool)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_ylabel(f"times float, {threads} thread{'s' if threads != '1' else ''}")
        axis.spines[["top", "right"]].set_visible(False)
    titles = [networks.NETWORKS[row["model"].removeprefix("net:")].title for row in rows]
    axis.set_xticks(range(len(rows)), titles, rotation=25, ha="right")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    path = harness.ROOT / "docs" / "images" / "latency.png"
    figure.savefig(path, dpi=110)
    return path


def sources(name: str, calibration: int, unseen: int) -> tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(float model, calibration arrays, unseen arrays) of a model or network, cast to the model's dtypes."""
    if name.startswith("net:"):
        network = name.removeprefix("net:")
        path = networks.build(network)
        return (
            path,
            networks.inputs(network, calibration, CALIBRATION_SEED),
            networks.inputs(network, unseen, UNSEEN_SEED),
        )
    task = harness.TASKS[name]
    return (
        task.path,
        harness.cast(task.inputs("calib", calibration), task.path),
        harness.cast(task.inputs("test", unseen), task.path),
    )


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model: by tool its kernels, SQNR and size, and by number of threads its latency."""
    unseen_count = options.unseen if name.startswith("net:") else options.test
    model, calibration, unseen = sources(name, options.samples, unseen_count)
    files = {FLOAT: model}
    tools: dict[str, dict[str, Any]] = {}

    def by_onnxq(tool: str) -> tuple[str, ...]:
        os.environ["ONNXQ_CACHE"] = str(folder / "cache")  # nothing that was found before
        config = onnxq.Config(
            samples=options.samples,
            tune_seconds=options.tune if tool == TUNED else 0.0,
            **(harness.UNGUARDED if name.startswith("net:") else {}),
        )
        result = onnxq.quantize(model, calibration, config=config)
        result.save(folder / f"{FILES[tool]}.onnx")
        kept = [f"tuning: {t.what} ({t.ratio:.3f})" for t in result.report.tuning if t.kept]
        tried = [f"tuning: {len(result.report.tuning)} candidates timed"] if result.report.tuning else []
        return (*result.report.notes, *result.report.warnings, *tried, *kept)

    def by_static(tool: str) -> tuple[str, ...]:
        made = peers.quantize_static(model, folder / f"{FILES[tool]}.onnx", harness.feeds(calibration))
        return (f"pre-processing: {made.preprocessing}",)

    actions = {ONNXQ: by_onnxq, **({TUNED: by_onnxq} if options.tune > 0 else {}), STATIC: by_static}
    for tool, action in actions.items():
        notes, error = harness.attempt(f"{tool} on {name}", lambda t=tool, a=action: a(t))
        if notes is None:
            tools[tool] = {"error": error}
            continue
        figures, error = harness.attempt(
            f"{tool}'s file of {name}", lambda t=tool: judge(model, folder, t, unseen, options)
        )
        if figures is None:
            tools[tool] = {"error": error, "notes": notes}
            continue
        files[tool] = folder / f"{FILES[tool]}.onnx"
        tools[tool] = {**figures, "notes": notes}
    tools[FLOAT] = {"kernels": kernels(model), "bytes": model.stat().st_size}
    timed = list(harness.feeds({key: value[:TIMED] for key, value in unseen.items()}))
    report = benchmark(
        list(files.values()), timed, threads=options.threads, seconds=options.seconds, seed=options.seed, memory=False
    )
    latency = {
        str(threads): {
            tool: {
                "median_ms": row.median_ms,
                "q1_ms": row.q1_ms,
                "q3_ms": row.q3_ms,
                "rounds": row.rounds,
                "ratio": row.ratio,
                "ratio_95": [row.ratio_low, row.ratio_high],
            }
            for tool, row in zip(files, report.of(threads=threads), strict=True)
        }
        for threads in options.threads
    }
    return {"model": name, "tools": tools, "latency": latency, "spinning": report.spinning}


def judge(
    model: Path, folder: Path, tool: str, unseen: Mapping[str, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    """SQNR and agreement on unseen inputs, kernels and size of the file of `tool`, and what an older runtime says."""
    path = folder / f"{FILES[tool]}.onnx"
    seen = compare(model, path, harness.feeds(unseen))
    figures = {
        "sqnr_db": seen.sqnr_db,
        "agreement": seen.primary.agreement,
        "kernels": kernels(path),
        "bytes": path.stat().st_size,
    }
    if tool != STATIC and not options.no_older:
        few = {name: array[:OLDER_SAMPLES] for name, array in unseen.items()}
        found, error = harness.attempt(f"onnxruntime {older.VERSION}", lambda: older.outputs(path, few))
        if found is None:
            figures["older"] = {"error": error}
        else:
            figures["older"] = {"sqnr_db": noise(harness.outputs(path, few), found).sqnr_db}
    return figures


def kernels(path: Path) -> dict[str, int]:
    """How many integer and float compute kernels the optimised graph holds, and constants that each run converts."""
    found = kernel_map(path)
    return {
        "integer": len(found.integer_compute),
        "float": len(found.float_compute),
        "constants_converted_each_run": len(found.waste),
    }


def geometric_means(rows: Sequence[Mapping[str, Any]], threads: Sequence[int]) -> list[dict[str, Any]]:
    """Over those of the eleven that a tool's file exists for: geometric mean and least of its speed-ups over float."""
    rows = [row for row in rows if row["model"].removeprefix("net:") in networks.ELEVEN and row["model"][:4] == "net:"]
    means = []
    for tool in (ONNXQ, TUNED, STATIC):
        for count in threads:
            cells = [row["latency"][str(count)].get(tool) for row in rows]
            speedups = [1 / cell["ratio"] for cell in cells if cell is not None]
            if speedups:
                mean = math.exp(sum(map(math.log, speedups)) / len(speedups))
                means.append(
                    {
                        "tool": tool,
                        "threads": count,
                        "networks": len(speedups),
                        "speedup": mean,
                        "slowest": min(speedups),
                    }
                )
    return means


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures as markdown: one line for each model, tool and number of threads."""
    lines = []
    for row in rows:
        for threads, cells in row["latency"].items():
            for tool in (FLOAT, ONNXQ, TUNED, STATIC):
                if tool not in row["tools"]:
                    continue
                figures, cell = row["tools"][tool], cells.get(tool)
                ran = figures.get("kernels", {})
                share = figures.get("agreement")
                lines.append(
                    [
                        row["model"].removeprefix("net:"),
                        tool + (" (failed)" if "error" in figures else ""),
                        threads,
                        harness.number(cell and cell["median_ms"]),
                        harness.number(cell and 1 / cell["ratio"]),
                        f"{1 / cell['ratio_95'][1]:.2f} to {1 / cell['ratio_95'][0]:.2f}" if cell else "-",
                        harness.number(figures.get("sqnr_db"), ".1f"),
                        harness.number(None if share is None else 100 * share, ".1f"),
                        f"{ran.get('integer', '-')} / {ran.get('float', '-')}",
                        harness.number(figures["bytes"] / 1e6 if "bytes" in figures else None),
                    ]
                )
    header = ["model", "", "threads", "ms", "x float", "95 %", "SQNR dB", "agreement %", "kernels int / float", "MB"]
    return harness.markdown(header, lines)


if __name__ == "__main__":
    main()
