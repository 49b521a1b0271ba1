"""Options that several commands share, and the values of the API that they stand for.

None means "not given": the defaults are those of ``FeedOptions`` and ``ImageOptions``, and help texts quote them from
there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxq.calibrate.options import FeedOptions, ImageOptions
from onnxq.cli.choices import parameter, parameter_name, spell_out
from onnxq.config import Config
from onnxq.config.choices import Choice, choice_of, described, is_choice
from onnxq.errors import ConfigError

_CHOICES = {entry.name: entry for entry in fields(Config)}
_DATA, _IMAGES = "How data becomes inputs", "Folders of images"

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Samples = Annotated[
    int | None,
    typer.Option(metavar="N", help="Use at most N samples, evenly spaced over the data.", show_default=False),
]
Metric = Annotated[
    str | None,
    typer.Option(metavar="MODULE:FUNCTION", help=f"{choice_of(_CHOICES['metric']).help}.", show_default=False),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(metavar="DROP", help=described(choice_of(_CHOICES["max_drop"]), None), show_default=False),
]


Dim = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=N", help="Length of a symbolic dimension; may be repeated.", rich_help_panel=_DATA),
]
BatchAxis = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT=AXIS",
        help="The axis of an input that counts samples, none where it is whole; may be repeated; "
        "none alone: every input is whole (default: decided over all inputs, said in the report).",
        rich_help_panel=_DATA,
    ),
]
Read = Callable[[str, str], Any]


def feed_options(*, dim: list[str] | None = None, batch_axis: list[str] | None = None, **given: Any) -> FeedOptions:
    """The ``FeedOptions`` of the data options. Raises ``ConfigError`` naming the option that makes no sense."""
    image = _chosen(ImageOptions, given)
    return FeedOptions(
        **_chosen(FeedOptions, given),
        image=ImageOptions(**image) if image else None,
        dims=dict(_dimension(text) for text in dim or ()),
        batch_axes=dict(_batch_axis(text) for text in batch_axis or ()),
    )


def _flagged(group: type) -> Iterator[tuple[str, Field[Any], Choice]]:
    """The parameter's name, the field and its choice, for each of ``group`` that has an option."""
    for entry in fields(group):
        if is_choice(entry) and (about := choice_of(entry)).flag:
            yield parameter_name(about), entry, about


def _chosen(group: type, given: dict[str, Any]) -> dict[str, Any]:
    """By field of ``group``, the values of the options that were given."""
    found = {}
    for name, entry, about in _flagged(group):
        if (value := given.get(name)) is not None:
            read = _READ.get(about.metavar)
            found[entry.name] = value if read is None else read(about.flag, value)
    return found


def _parameters() -> Iterator[inspect.Parameter]:
    """The parameters of a command for the options of ``FeedOptions`` and ``ImageOptions``."""
    for group, title in ((FeedOptions, _DATA), (ImageOptions, _IMAGES)):
        for name, entry, about in _flagged(group):
            kind = Path if about.metavar == "FILE" else int if about.metavar == "N" else str
            text = described(about, entry.default)
            option = typer.Option(about.flag, metavar=about.metavar, help=text, rich_help_panel=about.panel or title)
            yield parameter(name, Annotated[kind | None, option])
        if group is FeedOptions:
            yield parameter("dim", Dim)
            yield parameter("batch_axis", BatchAxis)


def _pixels(option: str, text: str) -> tuple[int, int]:
    parts = text.lower().replace(",", "x").split("x")
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes, default=0) < 1:
        raise ConfigError(f"{option} {text} is no size", hint="give pixels as 224 or as HEIGHTxWIDTH, 224x320")
    return sizes[0], sizes[-1]


def _fraction(option: str, text: str) -> float:
    over, slash, under = text.partition("/")
    try:
        return float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{option} {text} is no number", hint="give a number as 0.5 or a fraction as 1/255") from None


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{option} {text} is no list of numbers", hint="give one number, or one for each channel as 0.5,0.5,0.5"
        ) from None


def _dimension(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not equals or not name or not number.strip().isdecimal():
        raise ConfigError(f"--dim {text} is no size of a dimension", hint="give NAME=N, as --dim sequence=128")
    return name, int(number)


def _batch_axis(text: str) -> tuple[str, int | None]:
    name, _, axis = text.rpartition("=")
    if axis.strip() == "none":
        return name, None
    try:
        number = int(axis)
    except ValueError:
        number = None
    if not name or number is None:
        raise ConfigError(
            f"--batch-axis {text} names no axis", hint="give INPUT=AXIS, as --batch-axis x=1, or INPUT=none"
        )
    return name, number


# How the text of an option becomes its value, by what stands for that in ``--help``.
_READ: dict[str, Read] = {"HxW": _pixels, "X": _fraction, "R,G,B": _numbers}

spell_out(feed_options, _parameters())
