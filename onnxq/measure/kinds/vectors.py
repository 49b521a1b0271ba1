"""Outputs with one row a sample: classes, labels, embeddings, numbers."""

from __future__ import annotations

from onnxq.kernels.meaning import Meaning
from onnxq.measure.kinds.kind import Kind, KindGuess
from onnxq.measure.kinds.output import ENDS, STANDS_OUT, SURELY_STANDS_OUT, Output

# From so many numbers on a vector is rather an embedding than a few readings.
WIDE = 32
# A column of logits has values on both sides of 0 at least this often.
BOTH_SIDES = 0.05
# So long a row is a sound where classes are not what it says.
LONG = 2000


def vector(output: Output, axis: int) -> KindGuess:
    """What an output is for whose samples have a length along ``axis`` alone."""
    layout = output.layout(axis)
    rows = output.rows(axis)
    flat = Output(output.name, output.seen, output.head, output.others)
    if rows.shape[1] == 1:
        return _column(flat, axis)
    if layout.distribution:
        return output.guess(Kind.CLASSES, reason="its rows sum to 1", layout=layout)
    if output.log_distribution():
        return output.guess(Kind.CLASSES, reason="its rows are logarithms of probabilities", layout=layout)
    if output.unit():
        return output.guess(Kind.EMBEDDING, reason="its rows have length 1", layout=layout)
    for subject, kind in (("embedding", Kind.EMBEDDING), ("features", Kind.EMBEDDING), ("audio", Kind.AUDIO)):
        if (word := output.says(subject)) and rows.shape[1] >= WIDE:
            return output.guess(kind, reason=f"'{word}' in its name, {rows.shape[1]} numbers a sample", layout=layout)
    if rows.shape[1] >= LONG and output.head.meaning in (Meaning.BOUNDED, Meaning.LARGER) and rows.min() < 0:
        return output.guess(Kind.AUDIO, reason=f"{rows.shape[1]} numbers a sample on both sides of 0", layout=layout)
    if word := output.says("boxes", "regression"):
        return output.guess(Kind.REGRESSION, reason=f"'{word}' in its name", layout=layout)
    if layout.bounded:
        return _bounded(output, axis)
    if rows.min() >= 0.0:
        if rows.shape[1] >= WIDE:
            return output.guess(Kind.EMBEDDING, reason="never negative, and no probabilities", layout=layout)
        few = Kind.FEATURES if output.head.meaning in (Meaning.MEAN, Meaning.NORMALIZED) else Kind.REGRESSION
        return output.guess(few, reason="never negative, and no probabilities", layout=layout)
    if word := output.says("classes"):
        return output.guess(Kind.CLASSES, reason=f"'{word}' in its name", layout=layout)
    return _plain(output, axis)


def _column(output: Output, axis: int) -> KindGuess:
    """What a single number a sample is for."""
    layout, rows = output.layout(axis), output.rows(axis)
    if output.head.meaning is Meaning.PROBABILITY or (layout.bounded and output.says("classes")):
        return output.guess(Kind.LABELS, reason="one probability a sample", layout=layout)
    if word := output.says("regression"):
        return output.guess(Kind.REGRESSION, reason=f"'{word}' in its name", layout=layout)
    if layout.bounded:
        ends = rows.min() < ENDS and rows.max() > 1.0 - ENDS
        kinds = (Kind.LABELS,) if ends or not output.head.op else (Kind.LABELS, Kind.REGRESSION)
        return output.guess(*kinds, reason="one number a sample in [0, 1]", layout=layout)
    if word := output.says("classes"):
        return output.guess(Kind.LABELS, reason=f"'{word}' in its name, one logit a sample", layout=layout)
    positive = float((rows > 0).mean())
    if min(positive, 1.0 - positive) >= BOTH_SIDES:
        return output.guess(
            Kind.LABELS, Kind.REGRESSION, reason="one number a sample: a logit, or read as it is", layout=layout
        )
    return output.guess(Kind.REGRESSION, reason="one number a sample, nearly always on one side of 0", layout=layout)


def _bounded(output: Output, axis: int) -> KindGuess:
    """What rows in [0, 1] are for that do not sum to 1."""
    layout, width = output.layout(axis), output.rows(axis).shape[1]
    known = output.head.op and output.head.meaning is not Meaning.PROBABILITY
    if not known or output.says("classes"):
        return output.guess(Kind.LABELS, reason="in [0, 1], rows do not sum to 1", layout=layout)
    other = Kind.EMBEDDING if width >= WIDE else Kind.REGRESSION
    return output.guess(
        Kind.LABELS, other, reason=f"in [0, 1], rows do not sum to 1, behind {output.head.op}", layout=layout
    )


def _plain(output: Output, axis: int) -> KindGuess:
    """What numbers without bounds are for of which the name says nothing."""
    layout, width, meaning = output.layout(axis), output.rows(axis).shape[1], output.head.meaning
    if meaning in (Meaning.NORMALIZED, Meaning.MEAN, Meaning.UNIT, Meaning.BOUNDED, Meaning.NOT_NEGATIVE):
        few = Kind.REGRESSION if meaning is Meaning.BOUNDED else Kind.FEATURES
        kind = Kind.EMBEDDING if width >= WIDE else few
        return output.guess(kind, reason=f"{meaning.value} behind it ({output.head.op})", layout=layout)
    lead = output.stands_out()
    if width >= 64 and width % 16 == 0 and lead < SURELY_STANDS_OUT:
        reason = f"{width} numbers a sample, none of which stands out"
        kinds = (Kind.EMBEDDING,) if lead < STANDS_OUT else (Kind.CLASSES, Kind.EMBEDDING)
        return output.guess(*kinds, reason=reason, layout=layout)
    if output.always_the_same():
        reason = "the same of its numbers is the largest in nearly all samples"
        return output.guess(Kind.CLASSES, Kind.REGRESSION, reason=reason, layout=layout)
    return output.guess(Kind.CLASSES, reason=f"{width} scores a sample", layout=layout)
