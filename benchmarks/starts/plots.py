"""The study's figures, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# One colour a start throughout; ours stands out, the others stay apart from each other.
COLOURS = {
    "mse": "#d62728",
    "fitted compressor": "#d62728",
    "grid": "#ff9896",
    "percentile": "#1f77b4",
    "minmax": "#17becf",
    "aciq": "#2ca02c",
    "sawb": "#98df8a",
    "lsq": "#9467bd",
    "lsq+": "#c5b0d5",
    "entropy": "#7f7f7f",
}


def draw(found: dict[str, Any], folder: Path) -> Iterator[Path]:
    """The paths of the figures drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    if "convergence" in found:
        yield _convergence(found["convergence"], folder / "convergence.png")
    if "whole" in found:
        yield _objective(found["whole"], folder / "objective.png")
    if "unseen" in found:
        yield _unseen(found["unseen"], folder / "unseen.png")


def _convergence(part: dict[str, Any], path: Path) -> Path:
    """Loss against steps, mean over tasks in dB above the best end, a panel for each quantizer and number of bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from starts.convergence import CHECKED_EVERY

    columns = list(part)
    bits = list(next(iter(part.values())))
    figure, axes = plt.subplots(len(bits), len(columns), figsize=(12, 6.4), sharex=True, layout="constrained")
    for j, quantizer in enumerate(columns):
        for i, b in enumerate(bits):
            axis, by_task = axes[i][j], part[quantizer][b]
            best = [min(s["last"] for s in task.values()) for task in by_task.values()]
            for start in next(iter(by_task.values())):
                curves = [_decibels(task[start]["curve"], x) for task, x in zip(by_task.values(), best, strict=True)]
                mean = np.mean(curves, axis=0)
                ours = start == ("fitted compressor" if quantizer == "companding" else "mse")
                axis.plot(
                    np.arange(mean.size) * CHECKED_EVERY,
                    mean,
                    color=COLOURS[start],
                    linewidth=2.6 if ours else 1.2,
                    linestyle="--" if quantizer == "companding" and start == "mse" else "-",
                    label={"mse": "exact MSE (bold left)", "fitted compressor": "fitted compressor"}.get(start, start),
                    zorder=3 if ours else 2,
                )
            axis.set_ylim(-0.3, 12)
            axis.set_title(f"{quantizer}, {b} bits", fontsize=10)
            axis.grid(alpha=0.25)
            if j == 0:
                axis.set_ylabel("loss, dB above the best end")
            if i == len(bits) - 1:
                axis.set_xlabel("steps")
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False, title="started from")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _decibels(curve: str, best: float) -> np.ndarray:
    return 10 * np.log10(np.asarray(curve.split(), float) / best)


def _objective(part: dict[str, Any], path: Path) -> Path:
    """Output SQNR of every network with 4-bit weights, from min-max to the default."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ways = {
        "minmax": ("min-max", "#9edae5"),
        "tensor": ("least squared error of the weight", "#ff9896"),
        "tensor, mean+gain": ("... with mean and gain restored", "#e7595a"),
        "output, mean+gain": ("least error of the output, restored (onnxq)", "#a01010"),
    }
    models = list(part)
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.8), sharey=True, layout="constrained")
    for axis, bits in zip(axes, ("4", "3"), strict=True):
        for k, (way, (title, colour)) in enumerate(ways.items()):
            values = [part[m]["objective"][bits][way]["sqnr_db"] for m in models]
            axis.bar(np.arange(len(models)) + 0.2 * (k - 1.5), values, 0.2, label=title, color=colour)
        axis.set_xticks(np.arange(len(models)), [m.replace("_", "\n", 1) for m in models], fontsize=8)
        axis.set_title(f"{bits}-bit weights, 8-bit activations, nothing learned", fontsize=10)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("output SQNR, dB")
    axes[0].legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    axes[0].set_ylim(0, 30)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _unseen(part: dict[str, Any], path: Path) -> Path:
    """Decibels lost on samples of the test set against the number of calibration samples, a panel for each bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ways = {
        "percentile": ("percentile 99.99", COLOURS["percentile"]),
        "minmax": ("min-max", COLOURS["minmax"]),
        "mse of what was seen": ("least error of what was seen", COLOURS["grid"]),
        "mse": ("least error of what is to come (onnxq)", COLOURS["mse"]),
    }
    models = list(part.values())
    figure, axes = plt.subplots(1, len(models[0]), figsize=(12, 3.6), layout="constrained")
    for axis, bits in zip(axes, models[0], strict=True):
        for way, (title, colour) in ways.items():
            by_count = {int(n): np.mean([m[bits][way][n] for m in models]) for n in models[0][bits][way]}
            width = 2.6 if way == "mse" else 1.4
            axis.plot(list(by_count), list(by_count.values()), color=colour, linewidth=width, marker="o", label=title)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(by_count), [str(n) for n in by_count])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("calibration samples")
        axis.set_title(f"activations of {bits} bits", fontsize=10)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("dB lost on unseen samples")
    axes[0].legend(fontsize=8, frameon=False, loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
