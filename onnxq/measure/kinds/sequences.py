"""Outputs with many rows a sample: tokens, text, boxes, attention maps, sounds."""

from __future__ import annotations

import numpy as np

from onnxq.kernels.meaning import Meaning
from onnxq.measure.kinds.detectors import detector
from onnxq.measure.kinds.kind import Kind, KindGuess
from onnxq.measure.kinds.layout import Layout
from onnxq.measure.kinds.output import Output, sizes
from onnxq.measure.kinds.sure import first_two

# Sounds have few channels and at least so many samples.
CHANNELS, LONG = 8, 2000
# A vocabulary has at least so many tokens where no table says how many.
VOCABULARY = 1000
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
    if found := detector(output):
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
