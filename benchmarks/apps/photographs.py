"""Photographs out of PyPI, npm and Debian packages, calibration and test apart, and squares cut from them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from apps.base import Array, debian_folder, npm_folder, package_folder

SHORTER_SIDE = 720  # larger photographs are reduced to it
# (what fetches, the package, the folder in it, the photographs there)
Source = tuple[Callable[[str], Path], str, str, str]
SCENES: tuple[Source, ...] = (
    (
        package_folder,
        "scikit-image==0.26.0",
        "skimage/data",
        "astronaut.png chelsea.png coffee.png rocket.jpg motorcycle_left.png camera.png coins.png clock_motion.png",
    ),
    (package_folder, "foolbox==3.3.4", "foolbox/data", "imagenet_*.jpg"),
    (package_folder, "scikit-learn==1.9.1", "sklearn/datasets/images", "china.jpg flower.jpg"),
    (package_folder, "ultralytics==8.4.190", "ultralytics/assets", "bus.jpg zidane.jpg"),
    (debian_folder, "mate-backgrounds", "usr/share/backgrounds/mate", "nature/*.jpg abstract/Elephants.jpg"),
    (debian_folder, "lomiri-wallpapers-16.04", "usr/share/backgrounds", "*.jpg"),
    (debian_folder, "lomiri-wallpapers-20.04", "usr/share/backgrounds", "[FKI]*.jpg"),
    (
        debian_folder,
        "opencv-doc",
        "usr/share/doc/opencv-doc/examples",
        "data/aero1.jpg data/aloeL.jpg data/apple.jpg data/baboon.jpg data/basketball1.png data/board.jpg "
        "data/box_in_scene.png data/building.jpg data/butterfly.jpg data/cards.png data/chicky_512.png "
        "data/fruits.jpg data/graf1.png data/home.jpg data/leuvenA.jpg data/messi5.jpg data/orange.jpg "
        "data/rubberwhale1.png data/smarties.png data/squirrel_cls.jpg data/stuff.jpg alphamat/input_images/plant.jpg "
        "text/scenetext0[1-6].jpg",
    ),
)
PEOPLE: tuple[Source, ...] = (
    (npm_folder, "@vladmandic/face-api@1.7.15", "demo", "sample*.jpg"),
    (package_folder, "insightface==2.1", "insightface/data/images", "t1.jpg mask_white.jpg mask_blue.jpg"),
    (package_folder, "matplotlib==3.11.2", "matplotlib/mpl-data/sample_data", "grace_hopper.jpg"),
    (package_folder, "scikit-image==0.26.0", "skimage/data", "astronaut.png"),
    (package_folder, "ultralytics==8.4.190", "ultralytics/assets", "bus.jpg zidane.jpg"),
    (debian_folder, "opencv-doc", "usr/share/doc/opencv-doc/examples/data", "messi5.jpg basketball1.png"),
)


def files(sources: tuple[Source, ...]) -> list[Path]:
    """The photographs' files in an order that looks random but hangs on their names alone."""
    found = []
    for fetch, package, folder, patterns in sources:
        for pattern in patterns.split():
            matching = sorted((fetch(package) / folder).glob(pattern))
            if not matching:
                raise FileNotFoundError(f"{package} has no {folder}/{pattern}")
            found += matching
    return sorted(found, key=lambda path: (zlib.crc32(path.name.encode()), path.name))


@lru_cache(maxsize=4)
def photographs(sources: tuple[Source, ...], half: str) -> list[Image.Image]:
    """Every other photograph, RGB."""
    chosen = []
    for path in files(sources)[half == "test" :: 2]:
        image = Image.open(path).convert("RGB")
        scale = min(1.0, SHORTER_SIDE / min(image.size))
        width, height = (round(side * scale) for side in image.size)
        chosen.append(image.resize((width, height), Image.Resampling.LANCZOS))
    return chosen


def squares(
    sources: tuple[Source, ...], half: str, count: int, side: int, *, share: tuple[float, float], seed: int
) -> Iterator[Array]:
    """`count` squares [side, side, 3] uint8, of all photographs of a half in turn, mirrored or not.

    A square covers a share, drawn from the range `share`, of the shorter side of its photograph.
    """
    rng = np.random.default_rng([seed, half == "test"])
    pictures = photographs(sources, half)
    for i in range(count):
        picture = pictures[i % len(pictures)]
        wide = round(min(picture.size) * rng.uniform(*share))
        left, top = (int(rng.integers(0, length - wide + 1)) for length in picture.size)
        small = picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + wide))
        pixels = np.asarray(small)
        yield pixels[:, ::-1] if rng.random() < 0.5 else pixels
