"""Reads a Hugging Face ``preprocessor_config.json`` as ``ImageOptions``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from onnxq.calibrate.options import ImageOptions, Resample, Resize
from onnxq.errors import DataError, one_line
from onnxq.files.opening import read_text

NAME = "preprocessor_config.json"
# Numbers of PIL.Image.Resampling.
_RESAMPLE: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# What changes the pixels and is not done here; ignoring one would calibrate on other inputs than the model sees.
_REFUSED = ("do_thumbnail", "do_align_long_axis", "keep_aspect_ratio", "pad_size", "do_split_image")
# Processors that read an old-style whole number as both edges although a crop follows.
_SQUARE = ("DeiT", "Beit")
_LEVIT_RATIO = 224 / 256  # LeViT's processor enlarges the shorter edge by its inverse, unasked
_CONVNEXT_WHOLE = 384  # from this size on, ConvNeXt's processor resizes without a crop


def read_preprocessor(path: Path | str) -> ImageOptions:
    """The ``ImageOptions`` that do what the processor of ``path`` (the file, or its folder) does to an image.

    Raises ``DataError`` where it cannot be read or asks for a step that onnxq does not do.
    """
    path = Path(path)
    path = path / NAME if os.path.isdir(path) else path
    try:
        config = json.loads(read_text(path))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", hint="check the path of the preprocessor configuration") from error
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise DataError(f"{path} cannot be read ({one_line(error)})", hint=f"give a {NAME}") from error
    refused = [key for key in _REFUSED if config.get(key)]
    if refused:
        raise DataError(
            f"{path} asks for {refused[0]}, which onnxq does not do", hint="prepare the data as .npz instead"
        )
    try:
        return _options(config)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} has an entry that onnxq does not understand ({type(error).__name__}: {one_line(error)})",
            hint="give image options instead",
        ) from error


def _options(config: dict[str, Any]) -> ImageOptions:
    size, resize, longest, crop = _geometry(config)
    scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if config.get("do_normalize", "image_mean" in config):
        mean, std = _numbers(config.get("image_mean", 0.5)), _numbers(config.get("image_std", 0.5))
    if config.get("rescale_offset") and config.get("do_rescale", True):
        mean = tuple(m + 1 for m in mean)  # EfficientNet's processor subtracts 1 after rescaling
    return ImageOptions(
        size=size,
        resize=resize,
        longest=longest,
        crop=crop,
        scale=scale,
        mean=mean,
        std=std,
        channels="bgr" if config.get("do_flip_channel_order") else "rgb",
        resample=_RESAMPLE[int(config.get("resample", 2))],
    )


Pair = tuple[int, int]


def _geometry(config: dict[str, Any]) -> tuple[Pair | None, Resize, int | None, Pair | None]:
    """``(size, resize, longest, crop)``."""
    cropping = bool(config.get("do_center_crop"))
    crop = _pair(config.get("crop_size", config.get("size"))) if cropping else None
    size = config.get("size")
    if not config.get("do_resize", True) or size is None:
        return None, "none", None, crop
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    ratio = _LEVIT_RATIO if kind.startswith("Levit") else config.get("crop_pct")
    if isinstance(size, dict) and "shortest_edge" not in size:
        return _pair(size), "exact", None, crop
    square = kind.startswith(_SQUARE) or (ratio is None and not cropping)
    if isinstance(size, list) or (isinstance(size, int) and square):
        return _pair(size), "exact", None, crop
    # An old-style whole number is the shorter edge where a crop follows, else both edges (above).
    edge = int(size["shortest_edge"] if isinstance(size, dict) else size)
    longest = int(size["longest_edge"]) if isinstance(size, dict) and size.get("longest_edge") else None
    if ratio is not None:
        if not cropping:  # ConvNeXt: the crop is implied
            if edge >= _CONVNEXT_WHOLE:
                return (edge, edge), "exact", None, None
            crop = (edge, edge)
        edge = int(edge / float(ratio))
    return (edge, edge), "shortest", longest, crop


def _pair(value: Any) -> Pair:
    if isinstance(value, dict):
        if "shortest_edge" in value:
            return int(value["shortest_edge"]), int(value["shortest_edge"])
        return int(value["height"]), int(value["width"])
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[-1])
    return int(value), int(value)


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, (list, tuple)) else (float(value),)
