"""Text read by connectionist temporal classification: largest score of each frame, repeats collapsed, blanks dropped.

Graves et al., Connectionist Temporal Classification (ICML 2006), section 3.2: best path decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.measure.kinds.classes import SPARE
from onnxq.measure.kinds.judge import Array, Tally
from onnxq.measure.kinds.kind import Kind, Measured, Promise, Where
from onnxq.measure.kinds.layout import Layout
from onnxq.measure.kinds.sure import first_two, is_sure
from onnxq.numerics import Share

# Texts that may change for each decision that may: one of ten characters is another text.
TEXTS = 10


@dataclass
class Texts:
    """Counts the characters of the float model's texts that the quantized model's keep, and whole texts."""

    layout: Layout
    blank: int | None = None  # None: the first or the last class, by which is more frequent
    paths: list[tuple[Array, Array, bool, Where]] = field(default_factory=list)
    frames: dict[int, int] = field(default_factory=dict)  # by class, in the float model
    classes: int = 0

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        self.classes = reference.shape[-1]
        for a, b, where in zip(reference, test, at, strict=True):
            rows, others = (x.reshape(-1, x.shape[-1]) for x in (a, b))
            if not len(rows):
                continue
            choice, first, second = first_two(rows)
            sure = bool(is_sure(first, second, probabilities=self.layout.distribution).all())
            self.paths.append((choice.astype(np.int32), others.argmax(axis=-1).astype(np.int32), sure, where))
            for c, count in zip(*np.unique(choice, return_counts=True), strict=True):
                self.frames[int(c)] = self.frames.get(int(c), 0) + int(count)

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        blank = self._blank()
        tally, texts = Tally(), Share()
        for path, other, sure, at in self.paths:
            a, b = collapsed(path, blank), collapsed(other, blank)
            wrong = edit_distance(a, b)
            # A text in the place of none is wrong by as many characters as it has.
            length = max(len(a), wrong)
            tally.note(length - wrong, length, at)
            texts += Share.of(int(wrong == 0), 1)
            if sure and length:
                tally.sure += Share.of(length - wrong, length)
        return Measured(
            Kind.CTC,
            "characters",
            100.0 * tally.share.value,
            "%",
            detail=f"{texts.same:,} of {texts.rows:,} texts are the same",
            rule="characters",
            share=tally.share,
            sure=tally.sure,
            worst=tally.worst.value,
            worst_what="characters kept",
            worst_at=tally.worst.at,
            promises=(
                Promise("characters", tally.share, spare=SPARE),
                Promise("characters of sure texts", tally.sure),
                Promise("texts", texts, TEXTS, spare=SPARE),
            ),
        )

    def _blank(self) -> int:
        if self.blank is not None:
            return self.blank
        last = self.classes - 1
        return last if self.frames.get(last, 0) > self.frames.get(0, 0) else 0


def collapsed(path: Array, blank: int) -> list[int]:
    """The labels of ``path: [T] int`` without repeats and blanks."""
    begins = np.ones(len(path), bool)
    begins[1:] = path[1:] != path[:-1]
    return [int(label) for label in path[begins] if label != blank]


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """How many labels have to be put in, taken out or replaced to make ``b`` of ``a`` (Levenshtein)."""
    if len(a) < len(b):
        a, b = b, a
    before = np.arange(len(b) + 1)
    steps = np.arange(len(b) + 1)
    other = np.asarray(b)
    for i, label in enumerate(a, start=1):
        row = np.empty_like(before)
        row[0] = i
        row[1:] = np.minimum(before[:-1] + (other != label), before[1:] + 1)
        # Putting in: the least of all to the left, a step dearer each.
        before = np.minimum.accumulate(row - steps) + steps
    return int(before[-1])
