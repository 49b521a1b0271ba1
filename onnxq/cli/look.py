"""``onnxq inspect`` and ``onnxq run``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxq.calibrate.options import FeedOptions
from onnxq.cli.choices import planning_choices
from onnxq.cli.commands import takes
from onnxq.cli.options import Json, Model, Quiet, Samples, feed_options
from onnxq.cli.progress import progress_bar
from onnxq.cli.quantizing import check_output
from onnxq.config import Config

if TYPE_CHECKING:
    from onnxq.analysis.inspection import Kernels


@takes(feed_options, name="options")
@takes(planning_choices, name="config")
def inspect(
    model: Model,
    config: Config,
    options: FeedOptions,
    quantized: Annotated[
        Path | None,
        typer.Argument(metavar="[QUANTIZED]", help="What was made of MODEL: both are run and told node by node."),
    ] = None,
    by_node: Annotated[
        bool,
        typer.Option(
            "--nodes", help="Run the float MODEL and tell kernel, share of the time and assignment of every node."
        ),
    ] = False,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="DATA", help="Inputs to run on (default: random).")
    ] = None,
    kernels: Annotated[
        bool | None,
        typer.Option(
            "--kernels/--no-kernels",
            help="Ask onnxruntime which kernels it really runs (default: for quantized models).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what MODEL is, and what quantizing would change and what not; of a quantized model, what really runs."""
    from rich.console import Console

    from onnxq.analysis.inspection import inspect as look
    from onnxq.cli.tables import show_inspection

    asked: dict[bool | None, Kernels] = {None: "quantized", True: "always", False: "never"}
    options = replace(options, model=model)
    result = look(
        model,
        quantized,
        config=config,
        kernels=asked[kernels],
        by_node=by_node,
        data=data,
        feed_options=options,
    )
    if as_json:
        typer.echo(result.to_json())
    else:
        show_inspection(result, Console())


@takes(feed_options, name="options")
def run(
    model: Model,
    options: FeedOptions,
    data: Annotated[str, typer.Option("--data", "-d", metavar="DATA", help="Inputs to run on.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.npz", help="Where the outputs go.")],
    threads: Annotated[int | None, typer.Option("--threads", "-t", metavar="N", help="Threads of onnxruntime.")] = None,
    samples: Samples = None,
    quiet: Quiet = False,
) -> None:
    """Run MODEL on all samples and write its outputs to an .npz file, joined along the samples."""
    check_output(output, model, overwrite=True)
    from rich.console import Console

    from onnxq.analysis.running import run_model, save_outputs

    options = replace(options, model=model, limit=samples)
    with progress_bar(Console(stderr=True), quiet=quiet) as progress:
        outputs = run_model(model, data, feed_options=options, threads=threads, progress=progress)
    save_outputs(outputs, output)
    if quiet:
        return
    for name, value in outputs.items():
        if isinstance(value, list):
            what = f"{len(value)} arrays {name}_0 to {name}_{len(value) - 1}, since their shapes differ between runs"
        else:
            what = f"{value.dtype}[{', '.join(map(str, value.shape))}]"
        typer.echo(f"{name}: {what}")
    typer.echo(f"Wrote {output}.")


COMMANDS = (
    (
        "inspect",
        inspect,
        (
            "onnxq inspect model.onnx",
            "onnxq inspect model.int8.onnx --json",
            "onnxq inspect model.onnx --nodes",
            "onnxq inspect model.onnx model.int8.onnx",
            "onnxq inspect model.onnx --exclude 'head.*' --target arm64",
        ),
    ),
    (
        "run",
        run,
        (
            "onnxq run model.int8.onnx --data inputs.npz -o outputs.npz",
            "onnxq run classifier.onnx --data photos/ --image-size 224 -o scores.npz",
        ),
    ),
)
