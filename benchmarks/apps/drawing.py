"""Text drawn with Debian's fonts: single lines and whole pages, made hard to read, calibration and test fonts apart."""

from __future__ import annotations

import io
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from apps.base import Array

FONTS = Path("/usr/share/fonts/truetype")
FAMILIES = {
    "calib": ("dejavu/DejaVuSans", "dejavu/DejaVuSerif", "freefont/FreeSans", "freefont/FreeSerif", "lato/Lato"),
    "test": ("liberation/LiberationSans", "liberation/LiberationSerif", "crosextra/Carlito", "crosextra/Caladea"),
}
FACES = ("", "-Regular", "-Bold", "Bold", "-Italic", "-BoldItalic", "Oblique")
FONT_PACKAGES = (
    "fonts-dejavu fonts-freefont-ttf fonts-lato fonts-liberation fonts-crosextra-carlito fonts-crosextra-caladea"
)


@lru_cache(maxsize=2)
def faces(half: str) -> tuple[Path, ...]:
    """The font files of a half; ends the program, naming the packages, where they are not installed."""
    found = [FONTS / f"{family}{face}.ttf" for family in FAMILIES[half] for face in FACES]
    present = tuple(path for path in found if path.exists())
    if len(present) < len(FAMILIES[half]):
        raise SystemExit(f"fonts are missing: apt-get install {FONT_PACKAGES}")
    return present


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """English words of 2 to 12 letters, from the topics that Python's own help() prints."""
    from pydoc_data.topics import topics

    return tuple(sorted(set(re.findall(r"\b[A-Za-z][a-z]{1,11}\b", " ".join(topics.values())))))


def token(rng: np.random.Generator) -> str:
    """A word, capitalised or not, or a number, price, date, time or code, perhaps with punctuation."""
    word = str(rng.choice(words()))
    number = int(rng.integers(1, 10_000))
    kind = rng.random()
    if kind < 0.6:
        text = word
    elif kind < 0.75:
        text = word.capitalize() if rng.random() < 0.6 else word.upper()
    else:
        day, month, minute = rng.integers(1, 29), rng.integers(1, 13), rng.integers(0, 60)
        others = (f"{number}", f"${number / 100:.2f}", f"{day}/{month}/20{minute:02d}", f"{month}:{minute:02d}")
        text = str(rng.choice([*others, f"{word[:2].upper()}-{number}", f"{day}%", f"#{number}", f"({word})"]))
    return text + (str(rng.choice([",", ".", ":", ";", "!", "?"])) if rng.random() < 0.15 else "")


def phrase(rng: np.random.Generator, least: int, most: int) -> str:
    """`least` to `most` tokens."""
    return " ".join(token(rng) for _ in range(rng.integers(least, most + 1)))


def font(rng: np.random.Generator, half: str, size: int) -> ImageFont.FreeTypeFont:
    """A random face of a half."""
    chosen = faces(half)
    return ImageFont.truetype(str(chosen[rng.integers(len(chosen))]), size)


def colours(rng: np.random.Generator, contrast: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ink, paper), RGB, apart by a contrast from the range given; light on dark every fourth time."""
    gap = int(rng.integers(*contrast))
    paper = rng.integers(gap, 256, 3)
    ink = paper - gap
    pair = tuple(int(v) for v in ink), tuple(int(v) for v in paper)
    return pair if rng.random() < 0.75 else pair[::-1]


def spoil(image: Image.Image, rng: np.random.Generator, blur: float, noise: float) -> Image.Image:
    """Blur (radius up to `blur`), Gaussian noise (deviation up to `noise`), uneven light and JPEG."""
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, blur)))
    pixels = np.asarray(image, np.float32)
    light = 1 + rng.uniform(-0.25, 0.1) * np.linspace(0, 1, pixels.shape[1], dtype=np.float32)[None, :, None]
    pixels = pixels * light + rng.normal(0, rng.uniform(0, noise), pixels.shape)
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=70)
    return Image.open(stream).convert("RGB")


def line(
    rng: np.random.Generator, half: str, text: str, *, size: tuple[int, int], blur: float, noise: float
) -> Image.Image:
    """A tight crop of one spoiled line of text, type size drawn from the range `size` in pixels."""
    face = font(rng, half, int(rng.integers(*size)))
    left, top, right, bottom = face.getbbox(text)
    margin = rng.integers(2, 5, 4)
    ink, paper = colours(rng, (60, 200))
    image = Image.new(
        "RGB", (int(right - left + margin[0] + margin[1]), int(bottom - top + margin[2] + margin[3])), paper
    )
    ImageDraw.Draw(image).text((margin[0] - left, margin[2] - top), text, ink, font=face)
    slant = image.rotate(rng.uniform(-1.0, 1.0), Image.Resampling.BICUBIC, fillcolor=paper)
    return spoil(slant, rng, blur, noise)


def page(rng: np.random.Generator, half: str, width: int, height: int) -> Image.Image:
    """A spoiled page: paragraphs and headings of many sizes in columns, on coloured panels, slightly turned."""
    ink, paper = colours(rng, (80, 220))
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    columns = int(rng.integers(1, 4))
    for column in range(columns):
        left, y = int(width * column / columns) + 12, int(rng.integers(10, 60))
        while y < height - 20:
            face = font(rng, half, int(rng.choice([10, 12, 14, 16, 20, 28, 44])))
            if rng.random() < 0.2:
                ink, panel = colours(rng, (80, 220))
                draw.rectangle((left - 6, y, left + width // columns - 20, y + int(rng.integers(40, 200))), panel)
            for _ in range(int(rng.integers(1, 6))):
                text = phrase(rng, 1, 7)
                while face.getlength(text) > width / columns - 24 and " " in text:
                    text = text.rsplit(" ", 1)[0]
                draw.text((left, y), text, ink, font=face)
                y += int(face.size * rng.uniform(1.2, 1.6))
            y += int(rng.integers(5, 60))
    turned = image.rotate(rng.uniform(-3.0, 3.0), Image.Resampling.BICUBIC, fillcolor=paper)
    return spoil(turned, rng, 1.0, 14.0)


def network_input(image: Image.Image, width: int, height: int) -> Array:
    """BGR, resized to width x height, in [-1, 1]: [3, height, width] float32 (as all three OCR models take it)."""
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)[:, :, ::-1]
    return np.ascontiguousarray((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)
