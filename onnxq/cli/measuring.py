"""``onnxq benchmark`` and ``onnxq evaluate``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxq.calibrate.options import FeedOptions
from onnxq.cli.choices import Judge, drop
from onnxq.cli.commands import NOT_GOOD, lost_too_much, takes
from onnxq.cli.options import Json, MaxDrop, Metric, Samples, feed_options
from onnxq.cli.progress import progress_bar
from onnxq.config.judged import judged_text


@takes(feed_options, name="options")
def benchmark(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="ONNX files that take the same inputs.")],
    options: FeedOptions,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", metavar="DATA", help="Inputs to run on (default: one made up from the model)."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", "-t", metavar="N", help="Threads of onnxruntime; may be repeated (default 1)."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time for each number of threads (default 5).")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of the order of runs.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the latency of several models in one run, interleaved in random order and compared in pairs."""
    from rich.console import Console

    from onnxq.analysis.running import benchmark as measure
    from onnxq.report.tables import show

    options = replace(options, model=models[0])
    notices = Console(stderr=True)
    if notices.is_terminal and not as_json:
        with notices.status("Measuring"):
            report = measure(models, data, threads=threads or (), seconds=seconds, seed=seed, feed_options=options)
    else:
        report = measure(models, data, threads=threads or (), seconds=seconds, seed=seed, feed_options=options)
    if as_json:
        _print_json(report.to_dict())
    else:
        show(report, Console())


@takes(feed_options, name="options")
def evaluate(
    float_model: Annotated[Path, typer.Argument(metavar="FLOAT", help="The float ONNX file.")],
    quantized_model: Annotated[Path, typer.Argument(metavar="QUANTIZED", help="The one made from it.")],
    options: FeedOptions,
    data: Annotated[str, typer.Option("--data", "-d", metavar="DATA", help="Inputs to compare on.")],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="The array in DATA that holds class indices, for top-1 and top-5, or what --metric takes.",
        ),
    ] = None,
    metric: Metric = None,
    max_drop: MaxDrop = None,
    judge: Judge = None,
    samples: Samples = None,
    layers: Annotated[bool, typer.Option(help="Whether to tell in which layers the noise arises.")] = True,
    as_json: Json = False,
) -> None:
    """Compare a quantized model with its float model: SQNR, agreement, accuracy, and where the noise arises.

    Exit code 3: --max-drop, or without it 1 % of --metric, is exceeded.
    """
    from rich.console import Console

    from onnxq.analysis.evaluation import evaluate as compare
    from onnxq.cli.tables import show_evaluation

    options = replace(options, model=float_model, limit=samples)
    asked: dict[str, Any] = {"metric": metric, "max_drop": None if max_drop is None else drop("--max-drop", max_drop)}
    asked |= {"judge": dict(judged_text(judge or ()))} | ({} if layers else {"layer_samples": 0})
    with progress_bar(Console(stderr=True), quiet=False) as progress:
        result = compare(
            float_model, quantized_model, data, labels=labels, feed_options=options, progress=progress, **asked
        )
    if as_json:
        _print_json(result.to_dict())
    else:
        show_evaluation(result, Console())
    if result.metric is not None and not result.metric.good:
        typer.echo(f"not good: {lost_too_much(result.metric)}", err=True)
        raise typer.Exit(NOT_GOOD)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


COMMANDS = (
    (
        "benchmark",
        benchmark,
        (
            "onnxq benchmark model.onnx model.int8.onnx",
            "onnxq benchmark a.onnx b.onnx c.onnx --data inputs.npz --threads 1 --threads 4 --seconds 20",
            "onnxq benchmark bert.onnx bert.int8.onnx --dim sequence=128",
        ),
    ),
    (
        "evaluate",
        evaluate,
        (
            "onnxq evaluate model.onnx model.int8.onnx --data test.npz --labels labels",
            "onnxq evaluate model.onnx model.int8.onnx --data photos/ --image-size 224 --samples 500 --no-layers",
        ),
    ),
)
