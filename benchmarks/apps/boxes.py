"""What detectors have in common: overlap, what is left of overlapping boxes, and how well boxes match others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apps.base import Array, percent

OVERLAPS = tuple(np.arange(0.5, 1.0, 0.05).round(2))  # those that COCO averages over


@dataclass(frozen=True)
class Found:
    """What a detector finds in one image, surest first: corners [N, 4] (x0, y0, x1, y1), scores [N], classes [N]."""

    boxes: Array
    scores: Array
    classes: Array

    def above(self, threshold: float) -> Found:
        """Those that score at least `threshold`."""
        kept = self.scores >= threshold
        return Found(self.boxes[kept], self.scores[kept], self.classes[kept])


def overlap(a: Array, b: Array) -> Array:
    """Intersection over union of every box in a [N, 4] with every box in b [M, 4]: [N, M]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1) for boxes in (a, b)]
    return both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-9)


def suppressed(found: Found, most: float) -> Found:
    """Without boxes that overlap a surer one by more than `most`, whatever its class."""
    order = np.argsort(-found.scores, kind="stable")
    boxes, kept = found.boxes[order], []
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            kept.append(i)
            alive &= overlap(boxes[i : i + 1], boxes)[0] <= most
    chosen = order[kept]
    return Found(found.boxes[chosen], found.scores[chosen], found.classes[chosen])


def matches(wanted: Found, got: Found, least: float) -> Array:
    """For each of `got`, surest first, the one of `wanted` that it is, else -1: one to one, same class, overlap."""
    ratio = overlap(got.boxes, wanted.boxes) * (got.classes[:, None] == wanted.classes[None])
    taken = np.full(len(got.scores), -1)
    for i in range(len(taken)):
        row = np.where(np.isin(np.arange(ratio.shape[1]), taken), 0.0, ratio[i])
        if len(row) and row.max() >= least:
            taken[i] = int(row.argmax())
    return taken


def average_precision(wanted: list[Found], got: list[Found], least: float) -> float:
    """Area under precision over recall, all images and classes ranked together, every point interpolated."""
    hits = np.concatenate([matches(w, g, least) >= 0 for w, g in zip(wanted, got, strict=True)])
    scores = np.concatenate([g.scores for g in got])
    hits = hits[np.argsort(-scores, kind="stable")]
    total = sum(len(w.scores) for w in wanted)
    right = np.cumsum(hits)
    precision = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((precision * hits).sum() / total)


def detection_figures(wanted: list[Found], got: list[Found], threshold: float) -> dict[str, float]:
    """How well `got` (down to low scores) finds what `wanted` finds above `threshold`.

    The loss is that of average precision at an overlap of one half. `f1` is of what both find above the threshold;
    the worst are the score of the surest box that is not found again, and the largest change of a score.
    """
    truth = [found.above(threshold) for found in wanted]
    shown = [found.above(threshold) for found in got]
    pairs = [matches(w, g, OVERLAPS[0]) for w, g in zip(truth, shown, strict=True)]
    hits = sum(int((pair >= 0).sum()) for pair in pairs)
    count = sum(len(w.scores) + len(g.scores) for w, g in zip(truth, shown, strict=True))
    lost = [np.delete(w.scores, p[p >= 0]) for w, p in zip(truth, pairs, strict=True)]
    gaps = [abs(w.scores[p[p >= 0]] - g.scores[p >= 0]) for w, g, p in zip(truth, shown, pairs, strict=True)]
    precisions = [average_precision(truth, got, least) for least in OVERLAPS]
    return {
        "loss": round(100 - percent(precisions[0]), 2),
        "ap_50": percent(precisions[0]),
        "ap_50_95": percent(float(np.mean(precisions))),
        "f1": percent(2 * hits / count),
        "surest_lost": round(float(np.concatenate(lost).max(initial=0)), 4),
        "largest_gap": round(float(np.concatenate(gaps).max(initial=0)), 4),
        "boxes_float": sum(len(w.scores) for w in truth),
    }
