"""Outputs with many rows a sample: tokens, text, boxes, attention maps, sounds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnxq.kernels.meaning import Meaning
from onnxq.measure.kinds.kind import Kind, KindGuess
from onnxq.measure.kinds.layout import NO_SCORES, Layout
from onnxq.measure.kinds.output import Output, sizes
from onnxq.measure.kinds.seen import Array
from onnxq.measure.kinds.sure import first_two

# Sounds have few channels and at least so many samples.
CHANNELS, LONG = 8, 2000
# A vocabulary has at least so many tokens where no table says how many.
VOCABULARY = 1000
# A detector looks at so many places or more, and at several times as many as it says numbers of each.
PLACES, PLACES_A_CHANNEL = 32, 3
# Scores of detectors are near 0 in most places.
MOST_LOW, LOW = 0.6, 0.3
# A blank is the choice of this share of frames or more, and labels last this few frames in the mean.
BLANKS, SPIKE = 0.25, 3.0
CHARACTERS = 10
# Of rows with so many scores or more a network that was trained to tell them apart is sure in this share at least.
FEW_CLASSES, TRAINED = 16, 0.3
# Fewer frames and labels than that say nothing of a blank.
FRAMES, LABELS = 32, 4


def sequence(output: Output) -> KindGuess:
    """What an output is for with one or two axes a sample."""
    if len(output.shape) < 2:
        return _line(output)
    width = output.shape[-1]
    varies = output.varies[-2:] if len(output.varies) >= 2 else (False, False)
    if (word := output.says("audio") or _waves(output)) and max(output.shape) >= LONG and min(output.shape) <= CHANNELS:
        return output.guess(Kind.AUDIO, reason=f"{word}, {max(output.shape)} samples")
    if found := _map(output, varies):
        return found
    if width in output.head.tokens and width >= CHARACTERS:
        return output.guess(Kind.NEXT_TOKEN, reason=f"scores of the {width} tokens that its input is made of")
    if output.seen.tokens and width >= VOCABULARY and not output.layout().bounded and not _vague(output):
        return output.guess(Kind.NEXT_TOKEN, reason=f"scores of a vocabulary of {width}")
    if found := _detector(output, varies):
        return found
    if varies[1] and not varies[0]:
        return _rows(output, 0)
    if not varies[1] and not varies[0] and output.layout(0).distribution and not output.layout().distribution:
        return _rows(output, 0)
    return _rows(output, -1)


def _vague(output: Output) -> bool:
    return not output.says("classes") and output.vague_vector()


def _line(output: Output) -> KindGuess:
    """What a row is for whose length varies."""
    layout = output.layout()
    longest = max(output.shape, default=0)
    if longest >= LONG or output.says("audio"):
        return output.guess(Kind.AUDIO, reason=f"a row of {longest} numbers or more", layout=layout)
    if layout.distribution:
        return output.guess(Kind.CLASSES, reason="rows of any length that sum to 1", layout=layout)
    if layout.bounded:
        return output.guess(Kind.LABELS, reason="rows of any length in [0, 1]", layout=layout)
    if word := output.says("classes"):
        return output.guess(Kind.CLASSES, reason=f"'{word}' in its name, one score for each place", layout=layout)
    if word := output.says("regression"):
        return output.guess(Kind.REGRESSION, reason=f"'{word}' in its name", layout=Layout(output.batch, flat=True))
    return output.guess(Kind.FEATURES, reason="rows of any length", layout=layout)


def _waves(output: Output) -> str:
    """Words for an output that is as long as an input and signed, as sounds are; empty otherwise."""
    rows = output.rows()
    longest = max(output.shape)
    signed = bool(rows.min() < 0 < rows.max()) and float(np.abs(rows).max()) < 8.0
    same = output.seen.longest >= LONG and abs(output.seen.longest - longest) <= 0.1 * longest
    larger = output.head.meaning is Meaning.LARGER
    return "signed, as long as its input" if signed and same else "signed and enlarged" if signed and larger else ""


# -- maps --------------------------------------------------------------------------------------------------------------


def _map(output: Output, varies: tuple[bool, ...]) -> KindGuess | None:
    """Whether the rows and columns of a matrix are places of a sequence, of an image, or samples."""
    rows, width = output.shape[-2:]
    layout = output.layout()
    if rows < 2 or width < 2:
        return None
    if (word := output.says("map")) and (varies[1] or rows == width or output.batch is None or layout.distribution):
        return output.guess(Kind.MAP, reason=f"'{word}' in its name, a matrix of {sizes((rows, width))}", layout=layout)
    if all(varies):
        return output.guess(Kind.MAP, reason="a matrix of which rows and columns vary in number", layout=layout)
    if varies[1] and layout.distribution:
        return output.guess(Kind.MAP, reason="rows that sum to 1, of any length", layout=layout)
    if rows == width and rows > 2 and (layout.distribution or _symmetric(output)):
        how = "rows that sum to 1" if layout.distribution else "the same across its diagonal"
        return output.guess(Kind.MAP, reason=f"a square matrix, {how}", layout=layout)
    if output.batch is None and layout.distribution and not any(varies):
        kinds = Kind.MAP, Kind.TOKENS
        return output.guess(
            *kinds, reason="a matrix whose rows sum to 1, no axis of which counts samples", layout=layout
        )
    return None


def _symmetric(output: Output) -> bool:
    samples = [Layout(output.batch).samples(a) for a in output.arrays]
    return all(
        s.shape[-1] == s.shape[-2] and np.allclose(s, np.swapaxes(s, -1, -2), rtol=1e-3, atol=1e-5, equal_nan=True)
        for s in samples
    )


# -- detectors ---------------------------------------------------------------------------------------------------------


class _Split(NamedTuple):
    """Which channels are scores, and whether the first of them says that there is anything."""

    scores: tuple[int, int]
    objectness: bool
    bounded: bool


def _detector(output: Output, varies: tuple[bool, ...]) -> KindGuess | None:
    """Whether an output holds boxes, scores of places, or both."""
    del varies
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
    if width == 4 and (word or any(_are_scores(output, n) for n in beside)):
        if _positive_sizes(output.rows()):
            text = f"{rows} boxes" + (f", '{word}' in its name" if word else "")
            return output.guess(Kind.BOXES, reason=text, layout=Layout(output.batch, scores=NO_SCORES))
        return output.guess(Kind.REGRESSION, reason=f"4 numbers for each of {rows} places")
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
            return Layout(output.batch, channels, split.scores, split.objectness, bounded=split.bounded)
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
        told = not inside[at : at + 4].all() or (low[start] and not low[at : at + 2].any())
        if end > start and inside[start] and told and _positive_sizes(rows[:, at : at + 4]):
            return _Split((start, end), _objectness(rows[:, start:end]), True)
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
    if scores.shape[1] < 3:
        return scores.shape[1] == 2 and bool((scores[:, 1] > 0.5).mean() > 0.5)
    first, best = scores[:, 0], scores[:, 1:].max(axis=1)
    high = first >= LOW
    if not high.any():
        return bool((best >= LOW).mean() > 0.5)
    return bool(np.median(best[high]) >= LOW)


# -- one decision a row ------------------------------------------------------------------------------------------------


def _rows(output: Output, channels: int) -> KindGuess:
    """What rows are for of which there are several a sample."""
    layout, rows = output.layout(channels), output.rows(channels)
    width = rows.shape[1]
    if width == 1:
        kinds = (Kind.TOKENS,) if layout.bounded else (Kind.TOKENS, Kind.REGRESSION)
        return output.guess(*kinds, reason="one number for each place", layout=layout)
    if word := output.says("ctc"):
        return output.guess(Kind.CTC, reason=f"'{word}' in its name", layout=layout)
    if layout.distribution or output.log_distribution():
        text = "probabilities of classes for each place"
        return _reader(output, layout, text) or output.guess(Kind.TOKENS, reason=text, layout=layout)
    if layout.bounded and output.head.meaning in (Meaning.PROBABILITY, Meaning.OTHER):
        return output.guess(Kind.LABELS, reason="in [0, 1], rows do not sum to 1", layout=layout)
    classes, meaning = output.says("classes"), output.head.meaning
    if not classes:
        if (word := output.says("embedding", "features")) or meaning is Meaning.NORMALIZED:
            text = f"'{word}' in its name" if word else f"{meaning.value} behind it ({output.head.op})"
            return output.guess(Kind.FEATURES, reason=text, layout=layout)
        if word := output.says("regression", "boxes"):
            return output.guess(Kind.REGRESSION, reason=f"'{word}' in its name", layout=layout)
        unsure = width >= FEW_CLASSES and output.sure() < TRAINED
        if output.vague_vector() or unsure or (width >= 32 and rows.min() >= 0.0):
            return output.guess(Kind.FEATURES, reason=f"{width} numbers for each place, none of which stands out")
        if output.always_the_same() and not output.seen.tokens:
            text = "the same of its numbers is the largest in nearly all places"
            return _reader(output, layout, text) or output.guess(
                Kind.TOKENS, Kind.REGRESSION, reason=text, layout=layout
            )
    text = f"'{classes}' in its name" if classes else f"{width} scores for each place"
    return _reader(output, layout, text) or output.guess(Kind.TOKENS, reason=text, layout=layout)


def _reader(output: Output, layout: Layout, why: str) -> KindGuess | None:
    """Whether scores of rows are read as text: a blank is frequent, and labels are short; None where not."""
    if output.seen.tokens:
        return None
    blank, runs, changes = 0.0, [0, 0], 0
    width = output.rows(layout.channels).shape[1]
    frames = [0, 0, 0]  # all, first class, last class
    paths = []
    for array in output.arrays:
        samples = layout.samples(array)
        for sample in samples.reshape(len(samples), -1, samples.shape[-1]):
            path = first_two(sample)[0]
            paths.append(path)
            frames[0] += len(path)
            frames[1] += int(np.count_nonzero(path == 0))
            frames[2] += int(np.count_nonzero(path == width - 1))
    empty = 0 if frames[1] >= frames[2] else width - 1
    blank = max(frames[1:]) / max(frames[0], 1)
    for path in paths:
        labels = path != empty
        begins = np.ones(len(path), bool)
        begins[1:] = path[1:] != path[:-1]
        runs[0] += int(np.count_nonzero(labels))
        runs[1] += int(np.count_nonzero(labels & begins))
        changes += int(np.count_nonzero(begins[1:] & labels[1:] & labels[:-1])) if len(path) > 1 else 0
    if frames[0] < FRAMES or blank < BLANKS or runs[1] < LABELS or runs[0] / runs[1] > SPIKE:
        return None
    text = f"{why}; class {empty} is chosen in {100 * blank:.0f} % of the places, as a blank is"
    kinds = (Kind.CTC,) if width >= CHARACTERS and changes <= 0.5 * runs[1] else (Kind.CTC, Kind.TOKENS)
    return output.guess(*kinds, reason=text, layout=layout)
