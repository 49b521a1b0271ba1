"""``onnxq setup``: what training needs, installed ahead of its first use."""

from __future__ import annotations

import typer

from onnxq.cli.options import Quiet


def setup(quiet: Quiet = False) -> None:
    """Install the training runtime that --adapt iterative and full need, into a folder of its own.

    The first of them does so by itself; this is for machines that will have no network then.
    """
    from onnxq.adapt.runtime import PACKAGE, VERSION, training_runtime

    folder = training_runtime(lambda line: None if quiet else typer.echo(line, err=True))
    if not quiet:
        typer.echo(f"{PACKAGE} {VERSION} is in {folder}.")


COMMANDS = (("setup", setup, ("onnxq setup",)),)
