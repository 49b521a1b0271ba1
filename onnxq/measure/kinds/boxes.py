"""Detectors without their last step: boxes and scores in one output, or scores of the places of an image alone.

What an application does next is done here too, in the usual way: scores above a threshold, the best of overlapping
boxes of a class. Which threshold it has is not known, so that several are tried, and the worst counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from onnxq.measure.kinds.classes import decided
from onnxq.measure.kinds.judge import Array, Floats, Tally, Worst, strictest
from onnxq.measure.kinds.kind import Kind, Measured, Promise, Where
from onnxq.measure.kinds.layout import Layout
from onnxq.measure.kinds.sure import MARGIN, first_two, is_sure
from onnxq.measure.kinds.thresholds import THRESHOLDS
from onnxq.measure.matching import OVERLAP, as_corners, overlaps, with_corners
from onnxq.numerics import Noise, noise

# A detection near the threshold comes and goes: at odds of 3 to 2 five of them cost one decision (``sure``).
NEAR_TIES = 5
# So many candidates of an image at most: the usual limit before overlapping ones are dropped.
CANDIDATES = 1000
LOWEST = THRESHOLDS[0] - MARGIN


@dataclass
class Found:
    """What both kinds of detectors count: decisions at each threshold, and the largest error of a deciding score."""

    tallies: dict[float, Tally] = field(default_factory=lambda: {t: Tally() for t in THRESHOLDS})
    error: Worst = field(default_factory=Worst)

    def measured(self, what: str) -> Measured:
        """The threshold at which most changes; float's certainty is judged at each of them too."""
        threshold, tally, surest = strictest(self.tallies)
        return decided(
            Measured(
                Kind.BOXES,
                f"{what} above {threshold:g}",
                100.0 * tally.share.value,
                "%",
                rule=f"{what} above {threshold:g}",
                worst=None if self.error.value is None else -self.error.value,
                worst_what="error of a deciding score",
                worst_at=self.error.at,
            ),
            tally,
            NEAR_TIES,
            surest=surest,
        )


class Detections(NamedTuple):
    """Of one image, the best first: boxes as corners, scores, classes; ``kept``: those that no better one overlaps.

    ``clear``: where the class leads the second by odds of 3 to 2.
    """

    corners: Floats
    scores: Floats
    classes: Array
    clear: Array
    kept: Array


@dataclass
class DenseBoxes:
    """Boxes and scores in one output: what is left after the usual selection has a counterpart or not."""

    layout: Layout
    found: Found = field(default_factory=Found)
    parts: dict[str, Noise] = field(default_factory=lambda: {"scores": Noise(), "boxes": Noise()})

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        assert self.layout.scores is not None
        first, last = self.layout.scores
        for a, b, where in zip(reference, test, at, strict=True):
            x, y = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (a, b))
            self.parts["scores"] += noise(x[:, first:last], y[:, first:last])
            self.parts["boxes"] += noise(*(np.delete(v, range(first, last), axis=1) for v in (x, y)))
            scores = [scores_of(v, self.layout) for v in (x, y)]
            centred = not with_corners(x[scores[0].max(axis=1) >= LOWEST][:, self._boxes])
            both = [self._selected(v, s, centred) for v, s in zip((x, y), scores, strict=True)]
            self._count(both[0], both[1], where)
            self._note(scores[0], scores[1], where)

    @property
    def _boxes(self) -> slice:
        assert self.layout.scores is not None
        first, last = self.layout.scores
        return slice(first - 4, first) if first >= 4 else slice(last, last + 4)

    def _selected(self, rows: Floats, scores: Floats, centred: bool) -> Detections:
        classes, best = scores.argmax(axis=1), scores.max(axis=1)
        order = np.argsort(-best, kind="stable")[:CANDIDATES]
        order = order[best[order] >= LOWEST]
        box = rows[order][:, self._boxes]
        corners = as_corners(box) if centred else box
        clear = np.ones(len(order), bool)
        if scores.shape[1] > 1:
            clear = is_sure(*first_two(scores[order])[1:], probabilities=True)
        kept = _best_of_class(corners, classes[order])
        return Detections(corners, best[order], classes[order], clear, kept)

    def _count(self, a: Detections, b: Detections, at: Where) -> None:
        """Counts what float detects above each threshold and whether the other does too, and what only that detects.

        Which of several overlapping boxes is the best is no decision: any of them will do.
        """
        near = overlaps(a.corners, b.corners) >= OVERLAP
        alike = near & (a.classes[:, None] == b.classes[None])
        found = np.where(alike, b.scores[None], 0.0).max(axis=1, initial=0.0)[a.kept]
        known = np.where(alike, a.scores[:, None], 0.0).max(axis=0, initial=0.0)[b.kept]
        # Where float finds something in the same place but is not sure of which class.
        doubtful = np.where(near & ~a.clear[:, None], a.scores[:, None], 0.0).max(axis=0, initial=0.0)[b.kept]
        score, more = a.scores[a.kept], b.scores[b.kept]
        for threshold, tally in self.found.tallies.items():
            extra = (more >= threshold) & (known < threshold)
            same = np.concatenate([found >= threshold, np.zeros(len(more), bool)])
            counts = np.concatenate([score >= threshold, extra])
            sure = np.concatenate(
                [
                    (score >= threshold + MARGIN) & a.clear[a.kept],
                    np.maximum(known, doubtful) <= threshold - MARGIN,
                ]
            )
            tally.add(same, counts, sure, at)

    def _note(self, a: Floats, b: Floats, at: Where) -> None:
        deciding = np.maximum(a, b) >= THRESHOLDS[0]
        if deciding.any():
            self.found.error.note(-float(np.abs(a - b)[deciding].max()), at)

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        found = self.found.measured("detections")
        scores, boxes = (self.parts[n].sqnr_db for n in ("scores", "boxes"))
        text = f"scores {scores:.1f} dB, boxes {boxes:.1f} dB"
        return replace(found, detail=text, level_db=min(scores, boxes))


def _best_of_class(corners: Floats, classes: Array) -> Array:
    """The indices of boxes, the best first, that overlap no better one of their class."""
    kept = np.ones(len(corners), bool)
    for i in range(len(corners)):
        if kept[i]:
            later = np.arange(i + 1, len(corners))[kept[i + 1 :] & (classes[i + 1 :] == classes[i])]
            kept[later[overlaps(corners[i : i + 1], corners[later])[0] >= OVERLAP]] = False
    return np.flatnonzero(kept)


def scores_of(rows: Floats, layout: Layout) -> Floats:
    """``[P, classes]`` in [0, 1] of the rows of ``[P, channels]``."""
    chosen = rows if layout.scores is None else rows[:, slice(*layout.scores)]
    scores = probabilities(chosen, bounded=layout.bounded)
    return scores[:, :1] * scores[:, 1:] if layout.objectness and scores.shape[1] > 1 else scores


def probabilities(scores: Floats, *, bounded: bool) -> Floats:
    """``scores`` in [0, 1]: the logistic function of them where they are not there already."""
    if bounded:
        return scores
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-scores)))


@dataclass
class PlaceScores:
    """Scores of places: those that decide do so for the same class, or not.

    Boxes are in another output, or beside the scores but relative to places that only the application knows.
    """

    layout: Layout
    found: Found = field(default_factory=Found)
    noise: Noise = field(default_factory=Noise)

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            x, y = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (a, b))
            if self.layout.distribution and x.shape[1] > 1:
                nothing = self._background(x)
                x, y = (np.delete(v, nothing, axis=1) for v in (x, y))
            x, y = (scores_of(v, self.layout) for v in (x, y))
            self.noise += noise(x, y)
            best = [v.max(axis=1) for v in (x, y)]
            alike = x.argmax(axis=1) == y.argmax(axis=1)
            clear = np.ones(len(x), bool)
            if x.shape[1] > 1:
                clear = is_sure(*first_two(x)[1:], probabilities=True)
            for threshold, tally in self.found.tallies.items():
                before, after = best[0] >= threshold, best[1] >= threshold
                sure = (np.abs(best[0] - threshold) >= MARGIN) & (clear | ~before)
                tally.add(alike & before & after, before | after, sure, where)
            deciding = np.maximum(x, y) >= THRESHOLDS[0]
            if deciding.any():
                self.found.error.note(-float(np.abs(x - y)[deciding].max()), where)

    @staticmethod
    def _background(scores: Floats) -> int:
        """The class of places where nothing is: the first or the last, by which is more frequent."""
        counts = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
        return 0 if counts[0] >= counts[-1] else scores.shape[1] - 1

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        found = self.found.measured("places")
        return found if self.layout.scores is None else replace(found, level_db=self.noise.sqnr_db)


@dataclass
class LoneBoxes:
    """Boxes whose scores are in another output: how far those of both models overlap."""

    layout: Layout
    overlap: float = 0.0
    rows: int = 0
    worst: Worst = field(default_factory=Worst)

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            x, y = (v.reshape(-1, 4).astype(np.float64) for v in (a, b))
            centred = not with_corners(x)
            x, y = (
                np.concatenate([v[:, :2] - v[:, 2:] / 2, v[:, :2] + v[:, 2:] / 2], axis=1) if centred else v
                for v in (x, y)
            )
            found = row_overlaps(x, y)
            self.overlap += float(found.sum())
            self.rows += len(found)
            if len(found):
                self.worst.note(float(found.mean()), where)

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        mean = self.overlap / self.rows if self.rows else 1.0
        return Measured(
            Kind.BOXES,
            "mean IoU of boxes",
            mean,
            worst=self.worst.value,
            worst_what="mean IoU",
            worst_at=self.worst.at,
            promises=(Promise("overlap", level=mean, times=NEAR_TIES),),
        )


def row_overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of each row of ``a: [P, 4]`` with that of ``b``; 1 of two that are empty."""
    both = np.prod(np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0.0), axis=1)
    areas = [np.prod(np.maximum(v[:, 2:] - v[:, :2], 0.0), axis=1) for v in (a, b)]
    union = areas[0] + areas[1] - both
    return np.asarray(np.where(union > 0.0, both / np.where(union > 0.0, union, 1.0), 1.0))
