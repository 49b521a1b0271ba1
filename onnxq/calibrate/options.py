"""The user's choices about calibration data; their only defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import Literal, get_args

from onnxq.config.choices import choice
from onnxq.errors import ConfigError

# An image of more is not decoded, resized to or cut out; as RGB this many fill 200 MB.
MOST_PIXELS = 1 << 26
Resize = Literal["exact", "shortest", "none"]
PixelLayout = Literal["auto", "nchw", "nhwc"]
ChannelOrder = Literal["rgb", "bgr"]
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass(frozen=True)
class ImageOptions:
    """How an image file becomes an input: resize, centre crop, then ``(pixel * scale - mean) / std`` in float32.

    | field      | unit            | meaning                                                                       |
    |------------|-----------------|-------------------------------------------------------------------------------|
    | `size`     | pixels, (h, w)  | None: the model's fixed height and width; where symbolic, each image's own    |
    | `resize`   |                 | ``exact``: to ``size``; ``shortest``: shorter edge to ``min(size)``; ``none`` |
    | `longest`  | pixels          | with ``shortest``: the longer edge at most this (the shorter gives way)       |
    | `crop`     | pixels, (h, w)  | the centre, padded with black where the image is smaller; None: no crop       |
    | `scale`    | 1 / pixel value | pixels are 0 to 255                                                           |
    | `mean`     | after scaling   | one number, or one a channel in the order of ``channels``                     |
    | `std`      | after scaling   | as ``mean``; never 0                                                          |
    | `layout`   |                 | ``auto``: from the input's shape                                              |
    | `channels` |                 | order of the colours                                                          |

    An integer input takes the pixels as they are, without scale, mean and std.
    """

    size: tuple[int, int] | None = choice(
        None, "Pixels to resize to (default: what the model takes)", flag="--image-size", metavar="HxW"
    )
    resize: Resize = choice("exact", "exact, shortest (edge) or none", flag="--resize", metavar="HOW")
    longest: int | None = None
    crop: tuple[int, int] | None = choice(None, "Keep the centre of so many pixels", flag="--crop", metavar="HxW")
    scale: float = choice(
        1 / 255, "Factor on pixels of 0 to 255, as 0.5 or 1/127.5", flag="--scale", metavar="X", written="1/255"
    )
    mean: tuple[float, ...] = choice((0.0,), "Subtracted after scaling", flag="--mean", metavar="R,G,B", written="0")
    std: tuple[float, ...] = choice((1.0,), "Divided by after that", flag="--std", metavar="R,G,B", written="1")
    layout: PixelLayout = choice("auto", "nchw, nhwc or auto", flag="--layout", metavar="ORDER")
    channels: ChannelOrder = choice("rgb", "rgb or bgr", flag="--channels", metavar="ORDER")
    resample: Resample = "bilinear"

    def __post_init__(self) -> None:
        for name, kind in (
            ("resize", Resize),
            ("layout", PixelLayout),
            ("channels", ChannelOrder),
            ("resample", Resample),
        ):
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise ConfigError(f"image option {name} is {value!r}", hint=f"choose one of {', '.join(known)}")
        for name in ("size", "crop"):
            pair = getattr(self, name)
            if pair is not None and not (len(pair) == 2 and all(isinstance(v, int) and v > 0 for v in pair)):
                raise ConfigError(f"image option {name} is {pair!r}", hint="give (height, width) in pixels")
            if pair is not None and prod(pair) > MOST_PIXELS:
                raise ConfigError(f"image option {name} is {pair!r}: an image may have {MOST_PIXELS:,} pixels")
        if self.longest is not None and self.longest < 1:
            raise ConfigError(f"image option longest is {self.longest}", hint="give a number of pixels")
        if not all(map(isfinite, (self.scale, *self.mean, *self.std))):
            raise ConfigError("image options scale, mean and std must be finite")
        if 0 in self.std or not self.std or not self.mean:
            raise ConfigError("image options mean and std need at least one number each, and std none that is 0")


@dataclass(frozen=True)
class FeedOptions:
    """How data becomes feeds.

    | field          | meaning                                                                                     |
    |----------------|---------------------------------------------------------------------------------------------|
    | `batch_size`   | samples in a feed, where the model's batch axis is symbolic (a fixed one decides by itself) |
    | `limit`        | at most this many samples, evenly spaced over the data; None: all                           |
    | `seed`         | of the word ``random``                                                                      |
    | `image`        | None: from ``preprocessor``, else the defaults of ``ImageOptions`` with a warning           |
    | `preprocessor` | a Hugging Face ``preprocessor_config.json``; None: one beside the model or in the folder    |
    | `tokenizer`    | a ``tokenizer.json`` or its folder; None: the one beside the text file or the model         |
    | `text_field`   | the key of the text in each object of a ``.jsonl``                                          |
    | `max_length`   | tokens at most; None: the model's fixed length, else 512                                    |
    | `pad_id`       | None: the tokenizer's own, else 0                                                           |
    | `dims`         | numbers for symbolic dimensions by name; for nameless ones by ``"input.axis"``              |
    | `batch_axes`   | by input the axis that counts samples, None: the input is whole (the name "": every input)  |
    | `model`        | the model's file, beside which ``preprocessor`` and ``tokenizer`` are looked for            |
    """

    batch_size: int = choice(
        1, "Samples in one run, where the model leaves that open", flag="--batch-size", metavar="N"
    )
    limit: int | None = None
    seed: int = 0
    image: ImageOptions | None = None
    preprocessor: Path | str | None = choice(
        None,
        "Hugging Face preprocessor_config.json instead (default: one beside the model)",
        flag="--preprocessor",
        metavar="FILE",
        panel="Folders of images",
    )
    tokenizer: Path | str | None = choice(
        None,
        "tokenizer.json (default: one beside text or model)",
        flag="--tokenizer",
        metavar="FILE",
        panel="Text files",
    )
    text_field: str = choice(
        "text",
        "Where the text is in each object of a .jsonl",
        flag="--text-field",
        metavar="KEY",
        panel="Text files",
    )
    max_length: int | None = choice(None, "Tokens at most", flag="--max-length", metavar="N", panel="Text files")
    pad_id: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    model: Path | str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "limit", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name, size in self.dims.items():
            if size < 1:
                raise ConfigError(f"dimension {name!r} must be at least 1, not {size}")
        if self.image is not None and self.preprocessor is not None:
            raise ConfigError(
                "image options and a preprocessor_config.json exclude each other", hint="give one of them"
            )
