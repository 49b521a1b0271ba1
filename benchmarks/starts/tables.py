"""The study's JSON as tables, each a header and rows; the main README takes the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Rows = list[list[str]]
Table = tuple[list[str], Rows]

METHODS = ("mse", "grid", "percentile", "minmax", "aciq", "sawb", "lsq", "lsq+", "entropy")
BITS = ("2", "3", "4", "6", "8")


def all_of(found: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    """(title, table) of everything that was measured."""
    if "errors" in found:
        yield "Squared error / exact optimum, all of models/", error_ratios(found["errors"])
        yield "Squared error / exact optimum, made data", error_ratios_made(found["errors"])
    if "whole" in found:
        yield "Output SQNR in dB by range method", by_method(found["whole"])
        yield "What weights minimise: output SQNR in dB, and accuracy", by_objective(found["whole"])
        yield "What weights minimise, model by model", by_objective_and_model(found["whole"])
    if "convergence" in found:
        yield "Convergence from every start", convergence(found["convergence"])
    if "unseen" in found:
        yield "Error on unseen samples above the least, dB, by number of calibration samples", unseen(found["unseen"])
    if "speed" in found:
        yield "Speed", speed(found["speed"])


def error_ratios(part: dict[str, Any]) -> Table:
    """A line a method: geometric mean over all tensors of `models/`, and the worst, at every number of bits."""
    rows: Rows = []
    names = {
        **{m: m for m in METHODS},
        "companding": "companding",
        "codebook on int8 grid": "codebook, int8 grid",
        "codebook": "codebook",
    }
    for role in ("weight", "activation"):
        by_bits = part["models"][role]
        for method, title in names.items():
            if not any(method in by_bits[b] for b in BITS):
                continue
            cells = [by_bits[b].get(method) for b in BITS]
            rows.append(
                [
                    f"{role}s",
                    title,
                    *("" if c is None else f"{_short(c['mean'])} ({_short(c['worst'])})" for c in cells),
                ]
            )
    count = {role: part["models"][role]["4"]["mse"]["tensors"] for role in ("weight", "activation")}
    header = [f"{count['weight']} weights, {count['activation']} activations", "method", *(f"{b} bits" for b in BITS)]
    return header, rows


def error_ratios_made(part: dict[str, Any]) -> Table:
    """A line a kind of data and method."""
    rows: Rows = []
    for name, by_bits in part["synthetic"].items():
        for method in METHODS:
            rows.append([name, method, *(_short(by_bits[b][method]) for b in BITS)])
    return (["data", "method", *(f"{b} bits" for b in BITS)], rows)


def by_method(part: dict[str, Any]) -> Table:
    """A line a method: SQNR averaged over the networks, weights or activations at 8, 6 and 4 bits by that method."""
    rows: Rows = []
    for method in METHODS:
        cells = []
        for role in ("weights", "activations"):
            for bits in ("8", "6", "4"):
                values = [model[role][bits][method]["sqnr_db"] for model in part.values()]
                lost = [_lost(model, model[role][bits][method]) for model in part.values() if _is_top1(model)]
                cells.append(f"{np.mean(values):.1f} ({np.mean(lost):+.1f})")
        rows.append([method, *cells])
    header = ["range", *(f"{role}, {b} bits" for role in ("weights", "activations") for b in (8, 6, 4))]
    return header, rows


def by_objective(part: dict[str, Any]) -> Table:
    """A line a way: SQNR averaged over the networks and points of top-1 lost, weights at 8 to 3 bits."""
    rows: Rows = []
    first = next(iter(part.values()))["objective"]
    for name in first["4"]:
        cells = []
        for bits in first:
            values = [model["objective"][bits][name]["sqnr_db"] for model in part.values()]
            lost = [_lost(model, model["objective"][bits][name]) for model in part.values() if _is_top1(model)]
            cells.append(f"{np.mean(values):.1f} ({np.mean(lost):+.1f})")
        rows.append([name, *cells])
    return (["weights: objective, restored", *(f"{b} bits" for b in first)], rows)


def by_objective_and_model(part: dict[str, Any]) -> Table:
    """A line a network: SQNR at 4 and 3 bits of the plain optimum, min-max and the default."""
    names = ("minmax", "tensor", "tensor, mean+gain", "output, mean+gain")
    rows: Rows = []
    for model, figures in part.items():
        cells = [f"{figures['objective'][b][n]['sqnr_db']:.1f}" for b in ("4", "3") for n in names]
        rows.append([model, *cells])
    return (["network", *(f"{b} bits: {n}" for b in (4, 3) for n in names)], rows)


def convergence(part: dict[str, Any]) -> Table:
    """A line a quantizer, bits and start: medians over the tasks, relative to the best start of each task."""
    rows: Rows = []
    for quantizer, by_bits in part.items():
        for bits, by_task in by_bits.items():
            names = next(iter(by_task.values()))
            for start in names:
                tasks = [task[start] for task in by_task.values()]
                best = [min(s["last"] for s in task.values()) for task in by_task.values()]
                rows.append(
                    [
                        f"{quantizer}, {bits} bits",
                        start,
                        f"{_db([t['first'] for t in tasks], best):.1f}",
                        f"{_db([t['last'] for t in tasks], best):.2f}",
                        f"{np.median([t['spread_db'] for t in tasks]):.2f}",
                        f"{np.mean([t['steps_to_minmax'] for t in tasks]):.0f}",
                        f"{np.mean([t['steps_to_worst'] for t in tasks]):.0f}",
                        f"{sum(t['diverged'] for t in tasks)} of {sum(t['runs'] for t in tasks)}",
                    ]
                )
    header = [
        "quantizer",
        "start",
        "loss at the start, dB above the best end",
        "loss at the end, dB above the best end",
        "spread over seeds, dB",
        "steps to min-max's end",
        "steps to the worst end",
        "diverged",
    ]
    return header, rows


def convergence_short(part: dict[str, Any]) -> Table:
    """A line a start: for every quantizer where it ends, dB above the best end, and the steps to min-max's end."""
    columns = [(quantizer, bits, by_task) for quantizer, by_bits in part.items() for bits, by_task in by_bits.items()]
    starts = list(dict.fromkeys(start for _, _, by_task in columns for start in next(iter(by_task.values()))))
    rows: Rows = []
    for start in starts:
        row = [start]
        for _, _, by_task in columns:
            tasks = [task[start] for task in by_task.values() if start in task]
            if not tasks:
                row.append("")
                continue
            best = [min(s["last"] for s in task.values()) for task in by_task.values()]
            end, steps = _db([t["last"] for t in tasks], best), np.mean([t["steps_to_minmax"] for t in tasks])
            lost = sum(t["diverged"] for t in tasks)
            row.append(f"{end:.1f} ({steps:.0f})" + (f", {lost} lost" if lost else ""))
        rows.append(row)
    return ["start", *(f"{quantizer}, {bits} bits" for quantizer, bits, _ in columns)], rows


def unseen(part: dict[str, Any]) -> Table:
    """A line a number of bits and range: decibels lost, mean over networks, by number of calibration samples."""
    models = list(part.values())
    counts = list(next(iter(models[0]["8"].values())))
    rows = [
        [bits, what, *(f"{np.mean([m[bits][what][count] for m in models]):.2f}" for count in counts)]
        for bits, ranges in models[0].items()
        for what in ranges
    ]
    return ["bits", "range", *(f"{count} samples" for count in counts)], rows


def speed(part: dict[str, Any]) -> Table:
    """A line a method: seconds for all weights, s per million, milliseconds a histogram."""
    million = part["elements"] / 1e6
    rows: Rows = []
    for method in METHODS:
        cells = []
        for bits in ("4", "8"):
            seconds = part["weights"][bits][method]
            cells += [f"{seconds:.2f}", f"{seconds / million:.3f}"]
        for bits in ("4", "8"):
            histogram = part["histograms"][bits][method]
            cells.append(f"{histogram['median_ms']:.1f} ({histogram['worst_ms']:.1f})")
        rows.append([method, *cells])
    for name, seconds in part["codebooks"].items():
        rows.append([name, "", f"{seconds:.1f}", "", "", "", ""])
    header = ["method", f"{million:.1f} M weights, 4 bits, s", "s/M", "8 bits, s", "s/M"]
    return ([*header, "histogram, 4 bits, ms", "8 bits, ms"], rows)


def _db(values: list[float], best: list[float]) -> float:
    return float(np.mean(10 * np.log10(np.asarray(values) / np.asarray(best))))


def _is_top1(model: dict[str, Any]) -> bool:
    return bool(model["metric"] == "top-1")


def _lost(model: dict[str, Any], figures: dict[str, float]) -> float:
    return figures["score"] - model["float"]


def _short(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:.0f}" if ratio < 1e4 else f"{ratio:.0e}"
