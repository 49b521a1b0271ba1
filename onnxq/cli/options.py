"""Options that several commands share, and the values of the API that they stand for.

None means "not given": the defaults are those of ``FeedOptions`` and ``ImageOptions``, and help texts quote them from
there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxq.calibrate.options import FeedOptions, ImageOptions
from onnxq.errors import ConfigError

_DATA, _IMAGES, _TEXT = "How data becomes inputs", "Folders of images", "Text files"

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Samples = Annotated[
    int | None,
    typer.Option(metavar="N", help="Use at most N samples, evenly spaced over the data.", show_default=False),
]


def feed_options(
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"Samples in one run, where the model leaves that open (default {FeedOptions.batch_size}).",
            rich_help_panel=_DATA,
        ),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Length of a symbolic dimension; may be repeated.", rich_help_panel=_DATA),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Pixels to resize to (default: what the model takes).", rich_help_panel=_IMAGES
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help=f"exact, shortest (edge) or none (default {ImageOptions.resize}).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="HxW", help="Keep the centre of so many pixels.", rich_help_panel=_IMAGES)
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help="Factor on pixels of 0 to 255, as 0.5 or 1/127.5 (default 1/255).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Subtracted after scaling (default 0).", rich_help_panel=_IMAGES),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Divided by after that (default 1).", rich_help_panel=_IMAGES),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="ORDER",
            help=f"nchw, nhwc or auto (default {ImageOptions.layout}).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(metavar="ORDER", help=f"rgb or bgr (default {ImageOptions.channels}).", rich_help_panel=_IMAGES),
    ] = None,
    preprocessor: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Hugging Face preprocessor_config.json instead (default: one beside the model).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="tokenizer.json (default: one beside text or model).", rich_help_panel=_TEXT),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help=f"Where the text is in each object of a .jsonl (default {FeedOptions.text_field}).",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    max_length: Annotated[int | None, typer.Option(metavar="N", help="Tokens at most.", rich_help_panel=_TEXT)] = None,
) -> FeedOptions:
    """The ``FeedOptions`` of the data options. Raises ``ConfigError`` naming the option that makes no sense."""
    image = {
        "size": None if image_size is None else _pixels("--image-size", image_size),
        "resize": resize,
        "crop": None if crop is None else _pixels("--crop", crop),
        "scale": None if scale is None else _fraction("--scale", scale),
        "mean": None if mean is None else _numbers("--mean", mean),
        "std": None if std is None else _numbers("--std", std),
        "layout": layout,
        "channels": channels,
    }
    chosen_image = _given(image)
    return FeedOptions(
        **_given(
            {
                "batch_size": batch_size,
                "image": ImageOptions(**chosen_image) if chosen_image else None,
                "preprocessor": preprocessor,
                "tokenizer": tokenizer,
                "text_field": text_field,
                "max_length": max_length,
                "dims": dict(_dimension(text) for text in dim or ()),
            }
        )
    )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _pixels(option: str, text: str) -> tuple[int, int]:
    parts = text.lower().replace(",", "x").split("x")
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes, default=0) < 1:
        raise ConfigError(f"{option} {text}: give pixels as 224 or as HEIGHTxWIDTH, 224x320")
    return sizes[0], sizes[-1]


def _fraction(option: str, text: str) -> float:
    over, slash, under = text.partition("/")
    try:
        return float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{option} {text}: give a number as 0.5 or a fraction as 1/255") from None


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: give one number, or one for each channel as 0.5,0.5,0.5") from None


def _dimension(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not equals or not name or not number.strip().isdecimal():
        raise ConfigError(f"--dim {text}: give NAME=N, as --dim sequence=128")
    return name, int(number)
