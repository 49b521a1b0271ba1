"""ddddocr: what characters a captcha shows (convolutions, an LSTM both ways, CTC), and where they are (YOLOX).

Captchas are drawn with the package captcha, in fonts of Debian, calibration and test fonts apart. Both models are fed
as in the package. The reader's answer is read off greedily among its 8,210 characters; whether letters are capital
does not matter. The detector gives, for each of 3,549 places, a box and two scores in one output.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from apps import drawing
from apps.base import (
    Answers,
    Application,
    Array,
    Feed,
    cached_arrays,
    label_figures,
    model_file,
    package_folder,
    percent,
)
from apps.boxes import Found, detection_figures, suppressed

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGE = "ddddocr==1.6.1"
CAPTCHA = "captcha==0.7.1"
IMAGES = {"calib": 192, "test": 600}
SEEDS = {"calib": 13, "test": 14}
WIDTHS, HEIGHT = (160, 240), 60
LENGTHS = (4, 5)
ALPHABET = "23456789abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"  # without those that look alike
READ_HEIGHT = 64
SIDE, GREY, STRIDES = 416, 114, (8, 16, 32)
LOWEST, THRESHOLD, OVERLAP = 0.01, 0.1, 0.45


class Seeded:
    """What the package captcha asks the module `secrets` for, out of a generator with a seed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def randbelow(self, limit: int) -> int:
        """An integer of 0 to limit - 1."""
        return int(self._rng.integers(limit))

    def randbits(self, bits: int) -> int:
        """An integer of so many bits."""
        return int(self._rng.integers(2**bits))

    def choice(self, among: Sequence[Any]) -> Any:
        """One of several."""
        return among[self._rng.integers(len(among))]


def draw() -> dict[str, Array]:
    """The images `<half><number>` [60, columns, 3] uint8 and the texts of both halves."""
    sys.path.insert(0, str(package_folder(CAPTCHA)))
    try:
        from captcha import image as drawer
    finally:
        sys.path.pop(0)
    arrays: dict[str, Array] = {}
    for half, count in IMAGES.items():
        rng = np.random.default_rng(SEEDS[half])
        drawer.secrets = Seeded(rng)
        fonts = [str(path) for path in drawing.faces(half)]
        texts = ["".join(rng.choice(list(ALPHABET), rng.integers(LENGTHS[0], LENGTHS[1] + 1))) for _ in range(count)]
        for i, text in enumerate(texts):
            width = int(rng.integers(*WIDTHS))
            captcha = drawer.ImageCaptcha(width, HEIGHT, fonts, font_sizes=(34, 40, 46))
            arrays[f"{half}{i}"] = np.asarray(captcha.generate_image(text).convert("RGB"))
        arrays[f"{half}_texts"] = np.array(texts)
    return arrays


@lru_cache(maxsize=2)
def captchas(half: str) -> tuple[list[Image.Image], Array]:
    """(images, texts) of a half."""
    arrays = cached_arrays("captchas", draw, __file__, drawing.__file__)
    return [Image.fromarray(arrays[f"{half}{i}"]) for i in range(IMAGES[half])], arrays[f"{half}_texts"]


def reader_feeds(half: str) -> list[Feed]:
    """One captcha a feed: grey, 64 rows, in [0, 1]."""
    feeds = []
    for image in captchas(half)[0]:
        width = int(image.width * READ_HEIGHT / image.height)
        grey = image.resize((width, READ_HEIGHT), Image.Resampling.LANCZOS).convert("L")
        feeds.append({"input1": (np.asarray(grey, np.float32) / 255)[None, None]})
    return feeds


@lru_cache(maxsize=1)
def characters() -> list[str]:
    """The reader's classes, as the package lists them."""
    tree = ast.parse((package_folder(PACKAGE) / "ddddocr" / "charsets.py").read_text(encoding="utf-8"))
    lists = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    return list(ast.literal_eval(lists["CHARSET_BETA"]))


def decode(steps: Array) -> str:
    """The text of arg-max steps [T]: repeats joined, then class 0 (no character) dropped, small letters."""
    changed = np.insert(steps[1:] != steps[:-1], 0, True)
    return "".join(characters()[i] for i in steps[changed & (steps != 0)]).lower()


def read(session: InferenceSession) -> Answers:
    """Per-step classes of all test captchas one after another [steps], and the texts read [captchas]."""
    steps = [session.run(None, feed)[0][:, 0].argmax(1) for feed in reader_feeds("test")]
    return {"steps": np.concatenate(steps), "texts": np.array([decode(row) for row in steps])}


def compare_texts(reference: Answers, answers: Answers) -> dict[str, float]:
    """Share of texts read as by the float model, of those read right, and of steps kept."""
    truth = np.char.lower(captchas("test")[1])
    figures = label_figures(reference["texts"], answers["texts"], truth)
    return figures | {"steps_kept": percent(float((reference["steps"] == answers["steps"]).mean()))}


def detector_feeds(half: str) -> list[Feed]:
    """One captcha a feed: BGR, 0 to 255, the longer side 416, the rest filled with grey."""
    feeds = []
    for image in captchas(half)[0]:
        scale = SIDE / max(image.size)
        width, height = (int(side * scale) for side in image.size)
        square = np.full((SIDE, SIDE, 3), GREY, np.uint8)
        small = image.resize((width, height), Image.Resampling.BILINEAR)
        square[:height, :width] = np.asarray(small)[:, :, ::-1]
        feeds.append({"images": np.ascontiguousarray(square.transpose(2, 0, 1), np.float32)[None]})
    return feeds


def grid() -> tuple[Array, Array]:
    """(corners [places, 2], strides [places, 1]) of the detector's places."""
    cells = [np.stack(np.meshgrid(*[np.arange(SIDE // s)] * 2), 2).reshape(-1, 2) for s in STRIDES]
    return np.concatenate(cells), np.concatenate([np.full((len(c), 1), s) for c, s in zip(cells, STRIDES, strict=True)])


def decoded(rows: Array) -> Found:
    """What the output [places, 6] of one captcha says, down to LOWEST, overlapping boxes left out."""
    corners, strides = grid()
    scores = rows[:, 4] * rows[:, 5:].max(1)
    kept = scores >= LOWEST
    middle = ((rows[:, :2] + corners) * strides)[kept]
    size = (np.exp(rows[:, 2:4]) * strides)[kept]
    boxes = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
    return suppressed(Found(boxes, scores[kept], rows[kept, 5:].argmax(1)), OVERLAP)


def find(session: InferenceSession) -> Answers:
    """The raw output of every test captcha: [N, places, 6]."""
    return {"outputs": np.concatenate([session.run(None, feed)[0] for feed in detector_feeds("test")])}


def compare_boxes(reference: Answers, answers: Answers) -> dict[str, float]:
    """Average precision against what the float model finds."""
    wanted, got = ([decoded(row) for row in a["outputs"]] for a in (reference, answers))
    return detection_figures(wanted, got, THRESHOLD)


APPLICATIONS = (
    Application(
        name="captcha_rec",
        title="ddddocr, captchas read",
        model_path=partial(model_file, PACKAGE, "ddddocr/common.onnx"),
        calibration=lambda: reader_feeds("calib"),
        predict=read,
        compare=compare_texts,
        latency_feed=lambda: reader_feeds("test")[0],
        kept_by="labels",
    ),
    Application(
        name="captcha_det",
        title="ddddocr, characters found in captchas (YOLOX)",
        model_path=partial(model_file, PACKAGE, "ddddocr/common_det.onnx"),
        calibration=lambda: detector_feeds("calib"),
        predict=find,
        compare=compare_boxes,
        latency_feed=lambda: detector_feeds("test")[0],
    ),
)
