"""A YOLOv8 of 320 pixels out of nudenet: faces and parts of bodies in photographs, boxes and scores in one output.

The output holds, for each of 2,100 places, a box in pixels and 18 scores between 0 and 1. Squares of photographs of
people that ship in packages; scaled and thresholded as in the package.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from apps.base import Answers, Application, Array, Feed, model_file
from apps.boxes import Found, detection_figures, suppressed
from apps.photographs import PEOPLE, squares

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MODEL = ("nudenet==3.4.2", "nudenet/320n.onnx")
SIDE = 320
SQUARES = {"calib": 128, "test": 320}
SHARE = (0.3, 1.0)
SEED = 12
LOWEST, THRESHOLD, OVERLAP = 0.01, 0.25, 0.45


def network_input(pixels: Array) -> Array:
    """[rows, columns, 3] uint8 as [1, 3, rows, columns] float32 in [0, 1]."""
    return np.ascontiguousarray(pixels.astype(np.float32) / 255).transpose(2, 0, 1)[None]


def feeds(half: str) -> list[Feed]:
    """One square a feed."""
    return [{"images": network_input(p)} for p in squares(PEOPLE, half, SQUARES[half], SIDE, share=SHARE, seed=SEED)]


def decoded(rows: Array) -> Found:
    """What the output [22, places] of one image says, down to LOWEST, overlapping boxes left out."""
    scores = rows[4:].max(0)
    kept = scores >= LOWEST
    middle, size = rows[:2, kept].T, rows[2:4, kept].T
    boxes = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
    return suppressed(Found(boxes, scores[kept], rows[4:, kept].argmax(0)), OVERLAP)


def predict(session: InferenceSession) -> Answers:
    """The raw output of every test square: [N, 22, places]."""
    return {"outputs": np.concatenate([session.run(None, feed)[0] for feed in feeds("test")])}


def compare(reference: Answers, answers: Answers) -> dict[str, float]:
    """Average precision against what the float model finds, and the largest difference of any score."""
    wanted, got = reference["outputs"], answers["outputs"]
    figures = detection_figures([decoded(row) for row in wanted], [decoded(row) for row in got], THRESHOLD)
    return figures | {"largest_gap_anywhere": round(float(abs(wanted[:, 4:] - got[:, 4:]).max()), 4)}


APPLICATIONS = (
    Application(
        name="bodies",
        title="YOLOv8 of nudenet, faces and bodies",
        model_path=partial(model_file, *MODEL),
        calibration=lambda: feeds("calib"),
        predict=predict,
        compare=compare,
        latency_feed=lambda: feeds("test")[0],
    ),
)
