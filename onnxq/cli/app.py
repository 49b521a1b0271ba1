"""The application: its commands, ``--version``, and the entry point."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from onnxq._version import __version__
from onnxq.cli import look, measuring, quantizing, setup
from onnxq.cli.commands import BAD_INPUT, INTERRUPTED, guarded
from onnxq.errors import one_line

app = typer.Typer(
    name="onnxq",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        import platform  # here, not above: a tenth of the time that --help takes

        parts = [f"{name} {_installed(name)}" for name in ("onnxruntime", "onnx", "numpy")]
        typer.echo(f"onnxq {__version__} ({', '.join(parts)}, Python {platform.python_version()})")
        raise typer.Exit


def _installed(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # installed under another name, as onnxruntime-gpu
        return "unknown"


@app.callback(invoke_without_command=True)
def onnxq(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Quantize an ONNX model to INT8 for onnxruntime on CPUs: smaller, faster, and checked against the float model.

    Start with: onnxq quantize model.onnx --calib inputs.npz
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


for command, function, examples in (*quantizing.COMMANDS, *measuring.COMMANDS, *look.COMMANDS, *setup.COMMANDS):
    # Blank lines keep the examples apart: typer flows the lines of one paragraph together.
    app.command(command, epilog="\n\n".join(("Examples:", *examples)))(guarded(function))


def main() -> int:
    """Run the command line; returns the exit code. Usage errors are one line, as all others."""
    # As Ctrl-C: what was begun is cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        typer.echo("error: interrupted", err=True)
        return INTERRUPTED
    except Exception as error:
        # typer's usage errors; their base class lives in click or, in newer versions, in typer itself.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        path = getattr(getattr(error, "ctx", None), "command_path", "onnxq")
        typer.echo(f"error: {one_line(message())} (see {path} --help)", err=True)
        return BAD_INPUT
    return code if isinstance(code, int) else 0
