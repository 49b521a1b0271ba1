"""Feeds from a folder of images: decoded one at a time, resized, cropped and normalised for the model's image input."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.calibrate.casting import Array, fit
from onnxq.calibrate.layout import Layout, check_dims
from onnxq.calibrate.options import MOST_PIXELS, FeedOptions, ImageOptions
from onnxq.calibrate.preprocessor import NAME, read_preprocessor
from onnxq.calibrate.sources import Indexed, Piece
from onnxq.errors import ConfigError, DataError, one_line
from onnxq.files.opening import open_file
from onnxq.graph.signature import TensorSpec

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Whatever its name says, a file of another format is not opened: Pillow starts Ghostscript for some.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of the model: the mode that an image is converted to


@dataclasses.dataclass(frozen=True)
class ImageShape:
    """What the image input wants; ``height`` and ``width`` None where symbolic."""

    nchw: bool
    channels: int
    height: int | None
    width: int | None


def image_shape(spec: TensorSpec, options: ImageOptions) -> ImageShape:
    """The image that ``spec`` (rank 4, or rank 3 without batch axis) takes; DataError where it takes none."""
    if spec.shape is None or len(spec.shape) not in (3, 4):
        raise DataError(
            f"input {spec} is no image (rank 3 or 4): a folder of images cannot feed it", hint="give an .npz"
        )
    dims = spec.shape[-3:]
    order = options.layout
    if order == "auto":
        first, last = _channel_like(dims[0]), _channel_like(dims[2])
        if first == last:
            if first > 0 or any(isinstance(d, int) for d in (dims[0], dims[2])):
                raise DataError(
                    f"input {spec} {('may be' if first else 'is no image with 1, 3 or 4 channels, neither')} nchw "
                    f"{('or' if first else 'nor')} nhwc",
                    hint="give the layout as an image option, or an .npz",
                )
            order = "nchw"  # nothing is fixed, and onnx models are channels-first unless they say otherwise
        else:
            order = "nchw" if first > last else "nhwc"
    nchw = order == "nchw"
    channels, height, width = dims if nchw else (dims[2], dims[0], dims[1])
    count = channels if isinstance(channels, int) else 3
    if count not in _MODES:
        raise DataError(f"input {spec} has {count} channels ({order}): an image has 1, 3 or 4", hint="give an .npz")
    return ImageShape(
        nchw, count, height if isinstance(height, int) else None, width if isinstance(width, int) else None
    )


def _channel_like(dim: int | str | None) -> int:
    """How much a dimension looks like channels: 2 a fixed 1, 3 or 4, 1 by name, 0 not."""
    if isinstance(dim, int):
        return 2 if dim in _MODES else 0
    return 1 if isinstance(dim, str) and ("chan" in dim.lower() or dim.lower() == "c") else 0


def choose_options(options: FeedOptions, folder: Path) -> tuple[ImageOptions, str | None]:
    """The image options to use, and a warning where nobody said how the model wants its images."""
    if options.image is not None:
        return options.image, None
    if options.preprocessor is not None:
        return read_preprocessor(options.preprocessor), None
    for place in ([Path(options.model).parent] if options.model is not None else []) + [folder]:
        if os.path.exists(place / NAME):
            return read_preprocessor(place / NAME), None
    return ImageOptions(), (
        f"images are scaled to 0..1 without mean and std, as no {NAME} was found: give image options if the model was "
        "trained otherwise"
    )


class ImageSource(Indexed):
    """The images ``files`` (sorted) as samples; each is decoded when asked for."""

    def __init__(self, root: Path, files: list[Path], layout: Layout, options: FeedOptions) -> None:
        require_pillow()
        self.where = root.name or str(root)
        if len(layout.inputs) != 1:
            names = ", ".join(str(s) for s in layout.inputs)
            raise DataError(
                f"{self.where} holds images, but the model has {len(layout.inputs)} inputs ({names})", hint="give .npz"
            )
        self._root, self._files, self._spec, self.layout = root, files, layout.inputs[0], layout
        self._options, self.warning = choose_options(options, root)
        self._shape = image_shape(self._spec, self._options)
        self._raw = self._spec.dtype is not None and np.dtype(self._spec.dtype).kind in "iu"
        if self._raw:
            self.warning = None  # pixels go in as they are
        for name in ("mean", "std"):
            given = len(getattr(self._options, name))
            if given not in (1, self._shape.channels):
                raise ConfigError(
                    f"image option {name} has {given} numbers, but the model takes {self._shape.channels} channels",
                    hint="give one number a channel, or one for all",
                )
        self._options = self._sized()
        self.complete = len(self._spec.shape or ()) == 3  # no batch axis to join images along
        size = "x".join(str(v) for v in self._options.crop or self._options.size or ()) or "own size"
        self.description = f"{self.where}/, {len(files)} images ({size}, {self._options.resize} resize)"

    def _sized(self) -> ImageOptions:
        """The options with the model's own height and width where the user gave none."""
        options, shape = self._options, self._shape
        if shape.height is None or shape.width is None:
            return options if options.size or options.resize == "none" else dataclasses.replace(options, resize="none")
        target = (shape.height, shape.width)
        if options.size is None and options.resize != "none":
            options = dataclasses.replace(options, size=target)
        if options.resize == "shortest" and options.crop is None:
            options = dataclasses.replace(options, crop=target)
        return options

    def count(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Piece:
        if index >= len(self._files):
            raise IndexError(index)
        path = self._files[index]
        where = f"input {self._spec.name!r} (image {self.where}/{path.relative_to(self._root).as_posix()})"
        pixels = load_image(path, self._options, channels=self._shape.channels)
        array = pixels if self._raw else normalise(pixels, self._options)
        if self._shape.nchw:
            array = np.ascontiguousarray(array.transpose(2, 0, 1))
        spec_shape = self._spec.shape or ()
        check_dims(array.shape, spec_shape[-3:], where=where)
        array = fit(array, self._spec.dtype, where=where, sample=index)
        return Piece(
            {self._spec.name: array[None] if len(spec_shape) == 4 else array},
            1 if len(spec_shape) == 4 else array.shape[0],
        )


def require_pillow() -> None:
    """Nothing; DataError where pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError("reading images needs pillow", hint="pip install 'onnxq[images]'") from error


def load_image(path: Path, options: ImageOptions, *, channels: int) -> Array:
    """``[H, W, channels] uint8``: the file decoded, turned upright, resized and cropped. DataError if unreadable."""
    from PIL import Image, ImageOps

    try:
        # The limit here is below the one that Pillow warns of.
        with warnings.catch_warnings(), open_file(path) as file:
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(file, formats=_FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, and may have {MOST_PIXELS:,}")
            # In place, and converted only where it has to be: the largest images are held once.
            ImageOps.exif_transpose(image, in_place=True)
            image = image if image.mode == _MODES[channels] else image.convert(_MODES[channels])
            image.load()
        image = _crop(_resize(image, options), options)
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes of them
        raise DataError(f"image {path} cannot be read ({one_line(error)})", hint="remove or replace it") from error
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if options.channels == "bgr" and channels >= 3:
        pixels = np.concatenate([pixels[:, :, 2::-1], pixels[:, :, 3:]], axis=2)
    return pixels


def normalise(pixels: Array, options: ImageOptions) -> Array:
    """``(pixels * scale - mean) / std``: [H, W, C] uint8 to float32."""
    mean, std = np.asarray(options.mean, np.float32), np.asarray(options.std, np.float32)
    result: Array = (pixels.astype(np.float32) * np.float32(options.scale) - mean) / std
    return result


def _resize(image: Image.Image, options: ImageOptions) -> Image.Image:
    from PIL import Image

    if options.resize == "none" or options.size is None:
        return image
    height, width = options.size
    if options.resize == "shortest":
        edge = min(options.size)
        short, long = sorted((image.height, image.width))
        if options.longest is not None and edge * long > options.longest * short:
            edge = max(1, options.longest * short // long)
        # The longer edge is cut to whole pixels, not rounded, as Hugging Face's and torchvision's resize do.
        other = int(edge * long / short)
        height, width = (edge, other) if image.height <= image.width else (other, edge)
    if (image.height, image.width) == (height, width):
        return image
    if height * width > MOST_PIXELS:
        raise ValueError(f"it would be resized to {width} x {height} pixels, and may have {MOST_PIXELS:,}")
    filters: dict[str, Any] = {r.name.lower(): r for r in Image.Resampling}
    return image.resize((width, height), filters[options.resample])


def _crop(image: Image.Image, options: ImageOptions) -> Image.Image:
    if options.crop is None:
        return image
    height, width = options.crop
    # Outside the image PIL's crop gives zeros (black): the padding of Hugging Face's center_crop.
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))
