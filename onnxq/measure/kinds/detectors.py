"""Outputs of detectors: boxes and scores of many places, in one output or beside each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnxq.measure.kinds.kind import Kind, KindGuess
from onnxq.measure.kinds.layout import NO_SCORES, Layout
from onnxq.measure.kinds.output import Output
from onnxq.measure.kinds.seen import Array

# A detector looks at so many places or more, and at several times as many as it says numbers of each.
PLACES, PLACES_A_CHANNEL = 32, 3
# Scores of detectors are near 0 in most places.
MOST_LOW, LOW = 0.6, 0.3


class _Split(NamedTuple):
    """Which channels are scores, whether the first says that there is anything, and whether boxes are encoded."""

    scores: tuple[int, int]
    objectness: bool
    encoded: bool


def detector(output: Output) -> KindGuess | None:
    """What an output is for that holds boxes, scores of places, or both; None of any other."""
    layout = boxed(output)
    if layout is not None and layout.scores is not None:
        first, last = layout.scores
        text = f"channels {first} to {last - 1} are scores, boxes beside them"
        return output.guess(Kind.BOXES, reason=text, layout=layout)
    rows, width = output.shape[-2:]
    beside = {n: s for n, s in output.others.items() if n != output.name and len(s) == 2 and s[0] == rows}
    if rows < PLACES:
        return None
    word = output.says("boxes")
    if width == 4 and (word or any(_are_scores(output, n) for n in beside)) and _positive_sizes(output.rows()):
        text = f"{rows} boxes" + (f", '{word}' in its name" if word else "")
        return output.guess(Kind.BOXES, reason=text, layout=Layout(output.batch, scores=NO_SCORES))
    scores = next((n for n in beside if _are_scores(output, n)), "")
    if scores and width % 4 == 0 and not _are_scores(output, output.name):
        return output.guess(Kind.FEATURES, reason=f"{width} numbers for each of the places of '{scores}'")
    boxes = [n for n, s in beside.items() if s[1] % 4 == 0 and s[1] > 0 and n != output.name]
    if boxes and _are_scores(output, output.name):
        return output.guess(Kind.BOXES, reason=f"scores of {rows} places, beside '{boxes[0]}'", layout=output.layout())
    return None


def _are_scores(output: Output, name: str) -> bool:
    """Whether the output ``name`` holds scores of places: in [0, 1], or by its name."""
    other = output if name == output.name else Output(name, output.seen, output.head, output.others)
    if not other.arrays or other.arrays[0].dtype.kind != "f":
        return False
    return other.layout().bounded or bool(other.says("classes") and not other.says("boxes"))


def boxed(output: Output) -> Layout | None:
    """How an output is read that holds boxes and scores in one; None where it does not."""
    if len(output.shape) != 2:
        return None
    for channels in sorted((0, -1), key=lambda axis: output.shape[axis]):
        count, places = output.shape[channels], output.shape[-1 if channels == 0 else 0]
        if count < 5 or places < max(PLACES, PLACES_A_CHANNEL * count):
            continue
        split = _split(output.rows(channels))
        if split is not None:
            return Layout(output.batch, channels, split.scores, split.objectness, bounded=True, encoded=split.encoded)
    return None


def _split(rows: Array) -> _Split | None:
    """Which columns of ``rows: [P, C]`` are scores: in [0, 1], and low in most places; boxes are not."""
    inside = np.asarray(((rows >= -1e-6) & (rows <= 1.0 + 1e-6)).all(axis=0))
    low = np.asarray((rows < LOW).mean(axis=0) >= MOST_LOW)
    width = rows.shape[1]
    for start in (4, 0):
        end = start + int(np.argmin(np.append(inside[start:], False)))
        end = end if start else min(end, width - 4)
        at = 0 if start else end
        # Beside pixels all that is in [0, 1] is a score. Where boxes are shares of the image, scores are those that are
        # low; places are spread over all of it.
        pixels, sized = not inside[at : at + 4].all(), _positive_sizes(rows[:, at : at + 4])
        told = pixels or (low[start] and not low[at : at + 2].any())
        # Relative to places that the model does not say: then there are no overlaps, and only low scores tell.
        encoded = not sized and not inside[at : at + 4].any() and low[start]
        if end > start and inside[start] and (encoded or (told and sized)):
            return _Split((start, end), _objectness(rows[:, start:end]), bool(encoded))
    return None


def _positive_sizes(box: Array) -> bool:
    """Whether ``box: [P, 4]`` are boxes: corners in order, or sizes that are not negative."""
    behind = (box[:, 2] >= box[:, 0]) & (box[:, 3] >= box[:, 1])
    sized = (box[:, 2] >= 0) & (box[:, 3] >= 0)
    return bool(len(box)) and max(float(behind.mean()), float(sized.mean())) >= 0.9


def _objectness(scores: Array) -> bool:
    """Whether the first of ``scores: [P, C]`` says that there is anything, and the others which of classes it is.

    Then some class is likely wherever the first is high, and classes are said where it is low too.
    """
    if scores.shape[1] < 2:
        return False
    first, best = scores[:, 0], scores[:, 1:].max(axis=1)
    high = first >= LOW
    if not high.any():
        return bool((best >= LOW).mean() > 0.5)
    return bool(np.median(best[high]) >= LOW)
