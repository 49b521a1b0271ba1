"""``onnxq quantize``."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxq.calibrate.options import FeedOptions
from onnxq.cli.choices import all_choices
from onnxq.cli.commands import NOT_GOOD, lost_too_much, takes
from onnxq.cli.options import Json, Model, Quiet, feed_options
from onnxq.cli.progress import progress_bar
from onnxq.config import AUTO, PRESETS, Config, config_text, preset
from onnxq.errors import OutputError
from onnxq.files.atomic import LONGEST_NAME

if TYPE_CHECKING:
    from onnxq.pipeline import Result

# What is tried beside the model when no data is named, in this order.
BESIDE = (".calib.npz", ".calib", ".calib.jsonl", ".calib.txt")


Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="What to write (default: NAME.int8.onnx, NAME.w4a8.onnx, ... beside the model).",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calib",
        "-c",
        metavar="DATA",
        help="Calibration data: .npz, .npy, a folder of them or of images, .txt, .jsonl, package.module:function; "
        "'random' for speed tests only (default: NAME.calib.npz, NAME.calib/, ... beside the model).",
    ),
]
SaveConfig = Annotated[
    Path | None,
    typer.Option(
        metavar="TOML", help="Write the choices made, node by node, for --config: the same model again, anywhere."
    ),
]
Overwrite = Annotated[bool, typer.Option(help="Whether an output that exists is replaced.")]


@takes(feed_options, name="options")
@takes(all_choices, name="config")
def quantize(
    model: Model,
    config: Config,
    options: FeedOptions,
    output: Output = None,
    calib: Calibration = None,
    save_config: SaveConfig = None,
    overwrite: Overwrite = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Quantize MODEL, to INT8 or fewer bits, compare it with the float model, and say what it cost and what it gained.

    Exit code 0: written and good. 2: bad input, nothing written. 3: written, but slower than float, below --min-sqnr,
    not as close to the float model as promised, or --metric loses more than --max-drop.
    """
    target = model.with_name(f"{model.stem}.{suffix(config)}.onnx") if output is None else output
    for path in (target, *([] if save_config is None else [save_config])):
        check_output(path, model, overwrite=overwrite)
    # ``random`` makes as many samples as are wanted; other data is only limited by that.
    limit = None if config.samples == Config.samples else config.samples
    options = replace(options, model=model, limit=limit, seed=config.seed)
    data = calib if calib is not None else data_beside(model)

    from rich.console import Console

    from onnxq.files.atomic import write_bytes
    from onnxq.pipeline import quantize as run_pipeline

    notices = Console(stderr=True)
    if calib is None and data is not None and not quiet:
        text = f"Calibrating on {data}, which lies beside the model."
        notices.print(text, markup=False, highlight=False, soft_wrap=True)
    with progress_bar(notices, quiet=quiet) as progress:
        result = run_pipeline(model, data, config=config, feed_options=options, progress=progress)
    written = result.save(target, overwrite=overwrite)
    if save_config is not None:
        write_bytes(save_config, config_text(result.config).encode())
    failures = shortcomings(result, config)
    _say(result, (model, target, written), failures, as_json=as_json, quiet=quiet)
    if data is None and not quiet:
        typer.echo(advice_without_data(model, calib_name(model), output), err=as_json)
    if failures:
        typer.echo(f"not good: {'; '.join(failures)} (written all the same: {target})", err=True)
        raise typer.Exit(NOT_GOOD)


def _say(
    result: Result, files: tuple[Path, Path, tuple[Path, ...]], failures: list[str], *, as_json: bool, quiet: bool
) -> None:
    """Prints the report; ``files``: the model, the output as it was typed, and all that was written."""
    from rich.console import Console

    from onnxq.measure.size import model_size
    from onnxq.report.tables import show

    model, target, written = files
    # Of the files, not of what was in memory: names, and the bytes that the user has on disk.
    report = replace(result.report, source=model_size(model), result=model_size(written[0]))
    if as_json:
        more = {"output": str(target), "shortcomings": failures}
        typer.echo(json.dumps({**report.to_dict(), **more}, indent=2, allow_nan=False))
    elif not quiet:
        show(report, Console())
        # The name that was typed; a data file, if there is one, lies beside it.
        typer.echo(f"Wrote {' and '.join([str(target), *(path.name for path in written[1:])])}.")


def suffix(config: Config) -> str:
    """``int8``, ``w4a8``, ``codebook4a8``, ...: format of weights and bits of activations, for the name of a file.

    What a preset chooses has the preset's name; 32 bits are those of activations that stay float.
    """
    from onnxq.weights import weight_format

    if config.weights == AUTO:
        return "mixed"
    for name in PRESETS:
        usual = preset(name)
        if (usual.weights, usual.activations) == (config.weights, config.activations):
            return name
    bits = 32 if config.activations == "none" else config.activation_bits
    return f"{weight_format(config.weights).suffix}a{bits}"


def check_output(target: Path, model: Path, *, overwrite: bool) -> None:
    """Raises ``OutputError`` at once where saving to ``target`` would fail after all the work."""
    if os.path.isdir(target):
        raise OutputError(f"cannot write {target}: it is a folder", hint="give a file name with -o")
    # Those that are missing are made.
    folder = next((path for path in target.absolute().parents if os.path.exists(path)), target.parent)
    if not os.path.isdir(folder):
        raise OutputError(f"cannot write {target}: {folder} is no folder", hint="choose another place with -o")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {target}: no permission to write in {folder}", hint="choose another with -o")
    if os.path.realpath(target) == os.path.realpath(model):
        raise OutputError(f"{target} is the input model and is not written over", hint="choose another output with -o")
    if os.path.exists(target) and not os.path.isfile(target):
        raise OutputError(f"cannot write {target}: it is not a plain file", hint="give another with -o")
    for name in target.parts:
        if (length := len(os.fsencode(name))) > LONGEST_NAME:
            raise OutputError(
                f"cannot write {name[:40]}...: a name of {length} bytes", hint="give a shorter one with -o"
            )
    if os.path.exists(target) and not overwrite:
        raise OutputError(f"{target} exists already", hint="remove it, or leave out --no-overwrite")


def data_beside(model: Path) -> str | None:
    """The calibration data that lies beside ``model`` under its name, or None."""
    return next((str(p) for s in BESIDE if os.path.exists(p := model.with_name(model.stem + s))), None)


def calib_name(model: Path) -> Path:
    """Where calibration data for ``model`` is found without being named."""
    return model.with_name(model.stem + BESIDE[0])


def shortcomings(result: Result, config: Config) -> list[str]:
    """Why ``result`` is not good, one short phrase each; empty if it is."""
    found = []
    if result.too_slow:
        found.append("it is slower than the float model")
    sqnr = result.report.sqnr_db
    if config.min_sqnr is not None and sqnr is not None and sqnr < config.min_sqnr:
        found.append(f"its SQNR of {sqnr:.1f} dB is below --min-sqnr {config.min_sqnr:g}")
    elif result.report.metric is not None and not result.report.metric.good:
        found.append(lost_too_much(result.report.metric))
    elif not result.good:
        found.append("it is not as close to the float model as promised (min_agreement, guard_sqnr)")
    return found


def advice_without_data(model: Path, data: Path, output: Path | None) -> str:
    """What to type to calibrate on real inputs, with the names, types and shapes of the inputs of ``model``."""
    from onnxq.analysis.inspection import describe
    from onnxq.calibrate.layout import Layout
    from onnxq.graph.io import load
    from onnxq.graph.signature import signature

    inputs = signature(load(model)).inputs
    layout = Layout.of(inputs, FeedOptions.batch_size)
    lines, arrays = [], []
    for i, spec in enumerate(inputs):
        info = describe(spec)
        # The first axis of a saved array counts samples; an input without a batch axis gets one more.
        dims = list(info.shape or ())
        dims = ["N", *(dims[1:] if layout.axes.get(spec.name) == 0 else dims)]
        shape = ", ".join("?" if d is None else str(d) for d in dims)
        variable = spec.name if spec.name.isidentifier() else f"input_{i}"
        arrays.append((spec.name, variable))
        lines.append(f"  # {variable}: {info.dtype}[{shape}]")
    plain = all(name == variable for name, variable in arrays)
    given = (
        ", ".join(f"{name}={variable}" for name, variable in arrays)
        if plain
        else "**{" + ", ".join(f"{name!r}: {variable}" for name, variable in arrays) + "}"
    )
    return "\n".join(
        [
            "To calibrate on real inputs, save N of them (a few hundred) and run again:",
            "",
            "  import numpy as np",
            *lines,
            f"  np.savez({str(data)!r}, {given})",
            "",
            f"  onnxq quantize {model} --calib {data}" + ("" if output is None else f" -o {output}"),
        ]
    )


COMMANDS = (
    (
        "quantize",
        quantize,
        (
            "onnxq quantize model.onnx --calib inputs.npz",
            "onnxq quantize model.onnx -c photos/ --image-size 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
            "onnxq quantize bert.onnx -c sentences.txt --tokenizer tokenizer.json --max-length 128 -o bert.q.onnx",
            "onnxq quantize model.onnx -c my_data:batches --exclude 'head.*' --min-sqnr 30 --json",
            "onnxq quantize model.onnx -c inputs.npz --preset w4a8 --adapt iterative",
            "onnxq quantize model.onnx -c inputs.npz --tune 60 --save-config tuned.toml",
        ),
    ),
)
