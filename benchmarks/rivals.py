"""onnxq and the other tools that quantize ONNX files, each with its defaults, on the same models in the same run.

Every tool quantizes in a process of its own, the rivals in environments of their own with pinned versions, made on
first use. What they write runs in this environment's onnxruntime, is judged on the whole test set (of networks with
random weights: on 32 inputs) and timed in interleaved rounds. The results of models that are not run again are kept.
"""

from __future__ import annotations

import argparse
import compileall
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import harness
import latency
import networks
import numpy as np

import onnxq
from onnxq.measure import benchmark
from onnxq.measure.size import model_size
from onnxq.numerics import agreement, centred, sqnr_db

WORKER = Path(__file__).parent / "rival" / "worker.py"
TORCH = "torch==2.13.0"
# What each needs beside itself is not always among what it asks for.
RIVALS = {
    "nncf": ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0"),
    "neural-compressor": (
        "onnx-neural-compressor==1.0",
        "onnxruntime==1.32.0",
        *("prettytable", "psutil", "py-cpuinfo", "pydantic", "scipy"),
    ),
    "quark": ("amd-quark==0.13", "onnxruntime==1.32.0", TORCH),
    "modelopt": ("nvidia-modelopt[onnx]==0.47.0", TORCH),
    "aimet": ("aimet-onnx==2.42.0", TORCH),
    "olive": ("olive-ai==0.13.0", "onnxruntime==1.32.0", "requests", TORCH),
}
TOOLS = ("onnxq", "quantize_static", *RIVALS)
FLOAT = "float"
TIMED = 8
UNSEEN = 32  # inputs that networks are judged on


def main() -> None:
    """Measure every chosen model with every chosen tool, write the JSON after each model."""
    known = [*harness.TASKS, *(f"net:{name}" for name in networks.NETWORKS)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help=f"any of {', '.join(known)} (default: those of models/)")
    parser.add_argument("--tools", nargs="+", help=f"any of {', '.join(TOOLS)} (default: all)")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each model")
    parser.add_argument("--install", action="store_true", help="only make the environments")
    parser.add_argument("--plot", action="store_true", help="only draw what was measured before (needs matplotlib)")
    options = parser.parse_args()
    path = harness.RESULTS / "rivals.json"
    if options.plot:
        plot(json.loads(path.read_text())["models"])
        return
    tools = harness.chosen(options.tools, list(TOOLS))
    pythons = {tool: install(tool) for tool in tools}
    # What is installed has its bytecode; a working copy may not have, and would be compiled anew at every run.
    compileall.compile_dir(Path(onnxq.__file__).parent, quiet=1)
    if options.install:
        return
    rows = json.loads(path.read_text())["models"] if path.exists() else []
    for name in harness.chosen(options.models or list(harness.TASKS), known):
        with tempfile.TemporaryDirectory(prefix="onnxq-rivals-") as folder:
            row, _ = harness.attempt(name, lambda n=name, f=folder: measure(n, Path(f), pythons, options))
        if row is not None:
            row["machine"] = harness.machine()
            rows = sorted([*(r for r in rows if r["model"] != name), row], key=lambda r: known.index(r["model"]))
            harness.write("rivals", vars(options), {"models": rows})


def plot(rows: list[dict[str, Any]]) -> None:
    """SQNR against speed: a small mark for each model, a large one for each tool where its means are."""
    import matplotlib.pyplot as plt

    colours = dict(zip(TOOLS, ["#0b2f5b", *plt.get_cmap("tab10").colors[1:]], strict=False))  # type: ignore[attr-defined]
    figure, axis = plt.subplots(figsize=(9, 4.6), layout="constrained")
    for tool, colour in colours.items():
        found = [row["tools"][tool] for row in rows if "latency" in row["tools"].get(tool, {})]
        speed, noise = [1 / f["latency"]["ratio"] for f in found], [f["sqnr_db"] for f in found]
        axis.scatter(speed, noise, s=18, color=colour, alpha=0.45, linewidths=0)
        means = float(np.exp(np.mean(np.log(speed)))), float(np.mean(noise))
        axis.scatter(*means, s=150, color=colour, label=tool, edgecolors="white", zorder=3)
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.text(1.02, axis.get_ylim()[0], "as fast as float", fontsize=8, va="bottom")
    axis.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 1.5, 2]
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("times faster than float, one thread")
    axis.set_ylabel("SQNR of the outputs, dB")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(harness.ROOT / "docs" / "images" / "rivals.png", dpi=110)


def install(tool: str) -> Path:
    """The interpreter of the environment that holds ``tool``: this one, or one that is made unless it is there."""
    if tool not in RIVALS:
        return Path(sys.executable)
    folder = networks.cache_folder() / "rivals" / tool
    python, wanted = folder / "bin" / "python", " ".join(RIVALS[tool])
    if not (folder / "installed").exists() or (folder / "installed").read_text() != wanted:
        print(f"installing {wanted}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *RIVALS[tool]], check=True)
        (folder / "installed").write_text(wanted)
    return python


def measure(name: str, folder: Path, pythons: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """`{"model", "float", "tools": {tool: figures or {"error"}}}`."""
    model, calibration, unseen, judge = sources(name, options.samples)
    np.savez(folder / "calibration.npz", **calibration)
    files, tools = {FLOAT: model}, {}
    for tool, python in pythons.items():
        out = folder / tool / "quantized.onnx"
        out.parent.mkdir()

        def made(tool: str = tool, python: Path = python, out: Path = out) -> dict[str, Any]:
            command = [str(python), str(WORKER), tool, str(model), str(folder / "calibration.npz"), str(out)]
            found = harness.child(command, timeout=1800, cwd=out.parent)
            return {**found, **judge(out), "bytes": sum(f.stat().st_size for f in out.parent.iterdir())}

        figures, error = harness.attempt(f"{tool} on {name}", made)
        tools[tool] = figures or {"error": error}
        if figures is not None:
            files[tool] = out
    timed = list(harness.feeds({key: value[:TIMED] for key, value in unseen.items()}))
    report = benchmark(list(files.values()), timed, threads=[1], seconds=options.seconds, memory=False)
    for tool, row in zip(files, report.of(threads=1), strict=True):
        if tool != FLOAT:
            tools[tool]["latency"] = {"ratio": row.ratio, "ratio_95": [row.ratio_low, row.ratio_high]}
        print(name, tool, f"{row.median_ms:.3f} ms", {k: v for k, v in tools.get(tool, {}).items() if k != "latency"})
    return {"model": name, "float": {**judge(model), "bytes": model_size(model).file_bytes}, "tools": tools}


def sources(name: str, samples: int) -> tuple[Path, dict[str, Any], dict[str, Any], Any]:
    """(float model, calibration arrays, unseen arrays, what judges a file) of a model or network."""
    labels = None if name.startswith("net:") else harness.TASKS[name].arrays("test")["labels"]
    path, calibration, unseen = latency.sources(name, samples, UNSEEN if labels is None else len(labels))
    reference = harness.outputs(path, unseen)

    def judge(file: Path) -> dict[str, Any]:
        found = harness.outputs(file, unseen)
        same, rows = agreement(reference, found)
        figures = {"sqnr_db": sqnr_db(centred(reference), centred(found)), "agreement": same / rows}
        if labels is None:
            return figures
        return {**figures, "score": harness.score(harness.TASKS[name].metric, found, labels)}

    return path, calibration, unseen, judge


if __name__ == "__main__":
    main()
