"""A report, and what it holds, as rich tables for the console; rich is imported only when something is printed."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, TypeAlias

from onnxq.measure.accuracy import Accuracy
from onnxq.measure.compare import Comparison
from onnxq.measure.kernels import KernelMap
from onnxq.measure.latency import Latency, LatencyReport
from onnxq.measure.layers import LayerNoise
from onnxq.measure.size import ModelSize
from onnxq.report import curve
from onnxq.report.certainty import certainty_line, metric_line
from onnxq.report.outputs import judged_line, outputs_table
from onnxq.report.prints import add_row, db, empty_table, megabytes, ms
from onnxq.report.report import Adaptation, LayerBits, LeftFloat, Report, Trial

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Showable: TypeAlias = "Report | LatencyReport | Comparison | KernelMap | Sequence[LayerNoise]"

_NAMES_SHOWN = 3


def show(result: Showable, console: Console) -> None:
    """Print ``result`` on ``console``."""
    if isinstance(result, Report):
        _show_report(result, console)
    elif isinstance(result, LatencyReport):
        console.print(latency_table(result))
        if result.footprints:
            console.print(footprint_table(result))
        if result.unsure:
            threads = ", ".join(str(count) for count in dict.fromkeys(row.threads for row in result.unsure))
            waited = max(row.waited for row in result.unsure)
            console.print(
                f"This machine is busy: threads waited {waited:.0%} of the time for a core. Times with {threads} "
                "threads are unsure; those with one thread are processor time.",
                markup=False,
            )
        if not result.spinning:
            console.print("Threads do not spin while idle: several sessions would disturb each other.", markup=False)
    elif isinstance(result, Comparison):
        _show_comparison(result, console)
    elif isinstance(result, KernelMap):
        console.print(kernel_table(result))
        if result.waste:
            elements = sum(node.waste for node in result.waste)
            console.print(
                f"{len(result.waste)} DequantizeLinear convert {elements:,} constants again on every run.", markup=False
            )
    else:
        console.print(layer_table(result))


def latency_table(report: LatencyReport) -> Table:
    """A row for each model and number of threads."""
    headers = ["model", "threads", "median ms", "IQR ms", "time / first", "95 % interval"]
    table = empty_table("Latency", headers, left=1)
    for row in report.rows:
        spread, interval = f"{ms(row.q1_ms)}-{ms(row.q3_ms)}", f"{row.ratio_low:.3f}-{row.ratio_high:.3f}"
        add_row(table, [row.model, str(row.threads), ms(row.median_ms), spread, f"{row.ratio:.3f}", interval])
    return table


def footprint_table(report: LatencyReport) -> Table:
    """A row for each model: load time, peak memory and size."""
    table = empty_table("Footprint", ["model", "load ms", "peak memory MB", "file MB"], left=1)
    for foot in report.footprints:
        cells = [f"{foot.load_seconds * 1e3:.0f}", megabytes(foot.peak_bytes), megabytes(foot.file_bytes)]
        add_row(table, [foot.model, *cells])
    return table


def kernel_table(kernels: KernelMap) -> Table:
    """Node counts by kind and operator."""
    table = empty_table(
        f"Kernels of {kernels.model} on onnxruntime {kernels.runtime}", ["kind", "operators", "nodes"], left=2
    )
    for kind, ops in kernels.counts().items():
        add_row(table, [kind, ", ".join(f"{op} {n}" for op, n in ops.items()), str(sum(ops.values()))])
    return table


def tuning_table(trials: Sequence[Trial]) -> Table:
    """A row for each candidate that was kept, and one for those that were not."""
    table = empty_table("Tuned on this machine", ["candidate", "time / best before", "95 % interval"], left=1)
    for trial in trials:
        if trial.kept:
            add_row(table, [trial.what, f"{trial.ratio:.3f}", f"{trial.low:.3f}-{trial.high:.3f}"])
    lost = sum(not trial.kept for trial in trials)
    if lost:
        add_row(table, [f"{lost} candidates that were not faster beyond noise", "-", "-"])
    return table


def adaptation_table(adaptation: Adaptation) -> Table:
    """A row for each step: the noise at the outputs, or of labels the nats, on held-out samples, before and after."""
    title = f"Adapted to quantization noise: {adaptation.level}"
    noise = adaptation.measure == "noise"
    table = empty_table(title, ["step", f"{'SQNR dB' if noise else 'nats'} before", "after", "kept", "seconds"], left=1)
    for step in adaptation.steps:
        both = (step.before, step.after)
        levels = [db(-10.0 * math.log10(max(x, 1e-20))) if noise else f"{x:.4f}" for x in both]
        add_row(table, [step.what, *levels, "yes" if step.kept else "no", f"{step.seconds:.0f}"])
    return table


def bits_table(bits: Sequence[LayerBits]) -> Table:
    """A row for each layer whose bits were chosen by its sensitivity, in the order of the graph."""
    table = empty_table("Bits by sensitivity", ["node", "weights", "kB", "noise at the outputs, dB"], left=2)
    for layer in bits:
        # As a share of the outputs' energy: more negative is less.
        level = 10.0 * math.log10(max(layer.noise, 1e-20))
        add_row(table, [layer.node, layer.stored, f"{layer.nbytes / 1e3:.1f}", db(level)])
    return table


def layer_table(layers: Sequence[LayerNoise]) -> Table:
    """A row for each layer; the lowest local figure is where the most noise is made."""
    table = empty_table("Noise by layer", ["tensor", "node", "op", "accumulated dB", "local dB"], left=3)
    for layer in layers:
        add_row(table, [layer.tensor, layer.node, layer.op, db(layer.accumulated_db), db(layer.local_db)])
    return table


def _show_comparison(comparison: Comparison, console: Console) -> None:
    _show_outputs(comparison, console)
    if comparison.accuracy is not None:
        table = empty_table(
            f"Accuracy over {comparison.accuracy.rows} labels", ["", "float", "quantized", "change"], left=1
        )
        for row in _accuracy_rows(comparison.accuracy):
            add_row(table, row)
        console.print(table)
    for problem in comparison.problems:
        console.print(f"Problem: {problem}", style="red", markup=False)


def _show_outputs(comparison: Comparison, console: Console, *, certain: Collection[str] = ()) -> None:
    """What was found of each output; how sure that is of those ``certain`` is said in lines of their own."""
    console.print(outputs_table(comparison))
    for line in (*(judged_line(o, sure=o.name not in certain) for o in comparison.outputs), *comparison.differences):
        console.print(line, markup=False)


def _show_report(report: Report, console: Console) -> None:
    table = empty_table(report.result.name, ["", "float", "quantized", "gain"], left=1)
    for row in _summary_rows(report):
        add_row(table, row)
    console.print(table)
    if report.comparison is not None:
        _show_outputs(report.comparison, console, certain={c.output for c in report.certainties})
    if report.metric is not None:
        console.print(metric_line(report.metric), markup=False)
    for certainty in report.certainties:
        console.print(certainty_line(certainty), markup=False)
    if report.left_float:
        console.print(_left_table(report.left_float))
    if report.layers:
        console.print(layer_table(report.layers))
    if report.bits:
        console.print(bits_table(report.bits))
    if report.tuning:
        console.print(tuning_table(report.tuning))
    if report.adaptation is not None:
        console.print(adaptation_table(report.adaptation))
    if report.curve:
        table = empty_table(curve.TITLE, curve.HEADERS, left=1)
        for row in curve.rows(report.curve):
            add_row(table, row)
        console.print(table)
    for note in report.notes:
        console.print(note, markup=False)
    problems = () if report.comparison is None else report.comparison.problems
    for warning in (*report.warnings, *problems):
        console.print(f"Warning: {warning}", style="yellow", markup=False)


def _summary_rows(report: Report) -> list[list[str]]:
    rows = [_size_row(report.source, report.result, report.smaller)]
    if report.latency is not None:
        for threads in dict.fromkeys(row.threads for row in report.latency.rows):
            rows.append(_latency_row(*report.latency.of(threads=threads)[:2]))
        if len(report.latency.footprints) >= 2:
            first, second = report.latency.footprints[:2]
            times = first.peak_bytes / max(second.peak_bytes, 1)
            rows.append(
                [
                    "peak memory MB",
                    megabytes(first.peak_bytes),
                    megabytes(second.peak_bytes),
                    _factor(times, "less", "more"),
                ]
            )
            load = [f"{f.load_seconds * 1e3:.0f}" for f in (first, second)]
            rows.append(["load time ms", *load, ""])
    if report.comparison is not None and report.comparison.accuracy is not None:
        rows += _accuracy_rows(report.comparison.accuracy)
    if report.assignments:
        rows.append(["compute nodes on integers", "", f"{len(report.integer)} of {len(report.assignments)}", ""])
    return rows


def _size_row(source: ModelSize, result: ModelSize, smaller: float) -> list[str]:
    return [
        "file size MB",
        megabytes(source.file_bytes),
        megabytes(result.file_bytes),
        _factor(smaller, "smaller", "larger"),
    ]


def _latency_row(first: Latency, second: Latency) -> list[str]:
    # The interval of the slowdown or speedup that is named, so that both are read the same way round.
    slower = second.ratio > 1
    low, high = (second.ratio_low, second.ratio_high) if slower else (1 / second.ratio_high, 1 / second.ratio_low)
    interval = f"{low:.2f}-{high:.2f}" if second.sure else "unsure"
    gain = f"{_factor(second.speedup, 'faster', 'slower')} ({interval})"
    name = f"latency ms, {first.threads} thread" + ("s" if first.threads > 1 else "")
    return [name, ms(first.median_ms), ms(second.median_ms), gain]


def _accuracy_rows(accuracy: Accuracy) -> list[list[str]]:
    a, b = accuracy.float_model, accuracy.quantized_model
    rows = [["top-1 %", f"{a.top1 * 100:.2f}", f"{b.top1 * 100:.2f}", f"{(b.top1 - a.top1) * 100:+.2f}"]]
    if a.top5 is not None and b.top5 is not None:
        rows.append(["top-5 %", f"{a.top5 * 100:.2f}", f"{b.top5 * 100:.2f}", f"{(b.top5 - a.top5) * 100:+.2f}"])
    return [*rows, ["cross-entropy bits", f"{a.bits:.4f}", f"{b.bits:.4f}", f"{b.bits - a.bits:+.4f}"]]


def _left_table(left: Sequence[LeftFloat]) -> Table:
    """Nodes left float, those of one reason in one row: many models leave dozens for the same one."""
    table = empty_table("Left in float", ["nodes", "runs as", "why", "which"], left=4)
    groups: dict[tuple[str, str], list[str]] = {}
    for node in left:
        groups.setdefault((node.kernel or "(not found)", node.reason), []).append(node.node)
    for (kernel, reason), names in groups.items():
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        add_row(table, [str(len(names)), kernel, reason, ", ".join(names[:_NAMES_SHOWN]) + more])
    return table


def _factor(times: float, gain: str, loss: str) -> str:
    return f"{times:.2f}x {gain}" if times >= 1 else f"{1 / max(times, 1e-9):.2f}x {loss}"
