"""Counterparts of rows: two models pick other boxes, or the same in another order, and are compared by what both have.

Detections are matched by overlap: of the same class where classes are given, the best overlap first. Other rows that
are picked by their values are matched by nearness, whole numbers by equality.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Two boxes are of one thing from this overlap on, intersection over union (as in PASCAL VOC).
OVERLAP = 0.5
# A row has a counterpart if their difference has less than this share of the energy of rows about their mean.
APART = 0.5
# Up to so many rows each is compared with each; beyond, in order, and looking this far ahead.
ALL_PAIRS = 1024
AHEAD = 64
# By the width of a table, where its boxes may begin: box, score (and class); class, score, box; image, box, class,
# score; image, class, score, box.
_TABLES = {5: (0, 1), 6: (0, 2), 7: (1, 3)}
_CORNERS = 0.9  # share of rows in which the second corner lies behind the first


class Matched(NamedTuple):
    """Rows of the float model that have a counterpart, those, and how many rows the float model gave: ``rows``."""

    reference: Array
    test: Array
    rows: int


@dataclass(frozen=True)
class _Boxes:
    """The detections of one image: corners, what must be equal (classes), and by output the rows."""

    corners: npt.NDArray[np.float64]
    classes: Array
    rows: Mapping[str, Array]


def match_detections(
    reference: Mapping[str, Array], test: Mapping[str, Array], *, among: Collection[str]
) -> dict[str, Matched]:
    """By output ``among`` those given that describes detections, its ``Matched`` rows; empty where none holds boxes.

    Another output may say how many there are.
    """
    boxes = next((n for n, a in reference.items() if n in among and _boxes_at(a) is not None), None)
    if boxes is None:
        return {}
    at = _boxes_at(reference[boxes])
    assert at is not None
    form = _Form.of(boxes, reference[boxes], at)
    sides = [_images(side, form, among) for side in (reference, test)]
    if len(sides[0]) != len(sides[1]):
        return {}
    parts: dict[str, list[tuple[Array, Array, int]]] = {}
    for a, b in zip(*sides, strict=True):
        first, second = _overlapping(a, b)
        for name in a.rows.keys() & b.rows.keys():
            parts.setdefault(name, []).append((a.rows[name][first], b.rows[name][second], len(a.corners)))
    return {
        name: Matched(np.concatenate([p[0] for p in of]), np.concatenate([p[1] for p in of]), sum(p[2] for p in of))
        for name, of in parts.items()
        if name in reference
    }


def _boxes_at(array: Array) -> int | None:
    """The column at which boxes begin; None where ``array`` is none of boxes, nor a table that has them."""
    if array.dtype.kind != "f" or array.ndim not in (2, 3) or array.shape[-1] not in (4, *_TABLES):
        return None
    width = array.shape[-1]
    if width == 4:
        return 0
    flat = array.reshape(-1, width).astype(np.float64)
    # Beside a box stand its score, in [0, 1] and seldom whole, and whole numbers: the more of these, the surer.
    best: tuple[tuple[bool, int], int] | None = None
    for start in _TABLES[width]:
        others = np.delete(flat, range(start, start + 4), axis=1)
        whole = (others == np.floor(others)).all(axis=0)
        score = ((others >= 0) & (others <= 1)).all(axis=0)
        sure = (bool((score & ~whole).any()), int(whole.sum()))
        if (whole | score).all() and (best is None or sure > best[0]):
            best = (sure, start)
    return None if best is None else best[1]


@dataclass(frozen=True)
class _Form:
    """How the output ``boxes`` is read: the column ``at`` which they begin, those that hold classes.

    ``centred``: whether they are centre and size, not two corners.
    """

    boxes: str
    at: int
    classes: tuple[int, ...]
    centred: bool

    @classmethod
    def of(cls, boxes: str, array: Array, at: int) -> _Form:
        """That of the float model's ``array``."""
        flat = array.reshape(-1, array.shape[-1])
        box, others = flat[:, at : at + 4], np.delete(flat, range(at, at + 4), axis=1)
        whole = np.flatnonzero((others == np.floor(others)).all(axis=0))
        return cls(boxes, at, tuple(int(i) for i in whole), not with_corners(box))


def _images(side: Mapping[str, Array], form: _Form, among: Collection[str]) -> list[_Boxes]:
    """The detections of each image in the outputs of one model."""
    boxes, at, lead = form.boxes, form.at, side[form.boxes].shape[:-1]
    described = {n: a for n, a in side.items() if n in among and a.ndim in (len(lead), len(lead) + 1)}
    own = {n: a for n, a in described.items() if a.shape[: len(lead)] == lead}
    images = lead[0] if len(lead) == 2 else 1
    counts = [a for n, a in side.items() if n not in own and a.dtype.kind in "iu" and a.size == images]
    found = []
    for image in range(images):
        widths = {n: math.prod(a.shape[len(lead) :]) for n, a in own.items()}
        rows = {n: (a[image] if len(lead) == 2 else a).reshape(lead[-1], widths[n]) for n, a in own.items()}
        box = rows[boxes][:, at : at + 4].astype(np.float64)
        # Padded outputs: as many as are counted, or those that are any.
        used = np.arange(lead[-1]) < counts[0].reshape(-1)[image] if counts and len(lead) == 2 else box.any(axis=1)
        corners = as_corners(box) if form.centred else box
        classes = [r for n, r in rows.items() if r.dtype.kind in "iu" and r.shape[1] == 1]
        table = np.delete(rows[boxes], range(at, at + 4), axis=1)
        alike = np.concatenate([table[:, list(form.classes)], *classes], axis=1)
        found.append(_Boxes(corners[used], alike[used], {n: r[used] for n, r in rows.items()}))
    return found


def _overlapping(a: _Boxes, b: _Boxes) -> tuple[Array, Array]:
    """The indices of boxes of both that are of one thing, each used once, the best overlap first."""
    overlap = overlaps(a.corners, b.corners)
    alike = (a.classes[:, None] == b.classes[None]).all(axis=-1)
    return greedy(np.where(alike & (overlap >= OVERLAP), 1.0 - overlap, np.inf))


def overlaps(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of each box of ``a`` with each of ``b``, both ``[N, 4]`` corners."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(side[:, 2:] - side[:, :2], 0), axis=-1) for side in (a, b)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.asarray(np.where(union > 0, both / np.where(union > 0, union, 1), 0.0))


def with_corners(boxes: Array) -> bool:
    """Whether ``boxes: [N, 4]`` are two corners each, and not centre and size."""
    behind = (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
    return not len(boxes) or float(behind.mean()) >= _CORNERS


def as_corners(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``boxes: [N, 4]``, centre and size, as two corners."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def greedy(distance: npt.NDArray[np.float64]) -> tuple[Array, Array]:
    """Pairs of rows and columns of finite ``distance``, each used once, the nearest first; in the order of rows."""
    rows, columns = np.nonzero(np.isfinite(distance))
    taken: dict[int, int] = {}
    used = set[int]()
    for k in np.argsort(distance[rows, columns], kind="stable"):
        row, column = int(rows[k]), int(columns[k])
        if row not in taken and column not in used:
            taken[row] = column
            used.add(column)
    first = np.array(sorted(taken), np.intp)
    return first, np.array([taken[int(row)] for row in first], np.intp)


def match_rows(reference: Array, test: Array, axis: int) -> Matched:
    """The ``Matched`` rows, along ``axis``, of two arrays that are alike but for their length there."""
    a, b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (reference, test))
    first, second = _equal(a, b) if reference.dtype.kind != "f" else _near(a, b)
    return Matched(a[first], b[second], len(a))


def _equal(a: Array, b: Array) -> tuple[Array, Array]:
    """Indices of equal rows: of single numbers in order, as two texts have parts in common; of others in any order."""
    keys = [[str(row.tolist()) for row in x] for x in (a, b)]
    if a.shape[1] == 1 and max(len(a), len(b)) <= ALL_PAIRS:
        found = difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_matching_blocks()
        pairs = [(m.a + i, m.b + i) for m in found for i in range(m.size)]
    else:
        places: dict[str, list[int]] = {}
        for j, key in enumerate(keys[1]):
            places.setdefault(key, []).append(j)
        left = Counter(keys[1])
        pairs = []
        for i, key in enumerate(keys[0]):
            if left[key] > 0:
                pairs.append((i, places[key][len(places[key]) - left[key]]))
                left[key] -= 1
    return np.array([i for i, _ in pairs], np.intp), np.array([j for _, j in pairs], np.intp)


def _near(a: Array, b: Array) -> tuple[Array, Array]:
    """Indices of rows of ``a`` and those of ``b`` that are near them."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    about = x - x.mean(axis=0) if len(x) > 1 else x
    limit = APART * float(np.square(about).sum(axis=1).mean()) if len(x) else 0.0
    if len(x) == len(y) and (np.square(x - y).sum(axis=1) <= limit).all():
        return np.arange(len(x)), np.arange(len(x))
    if max(len(x), len(y)) <= ALL_PAIRS:
        distance = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None] - 2.0 * (x @ y.T)
        return greedy(np.where(distance <= limit, distance, np.inf))
    return _in_order(x, y, limit)


def _in_order(x: Array, y: Array, limit: float) -> tuple[Array, Array]:
    """As ``_near`` of many rows, in one order in both: where they part, the nearest place ahead is looked for."""
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(x) and j < len(y):
        ahead = np.square(y[j : j + AHEAD] - x[i]).sum(axis=1) <= limit
        if ahead[0]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
            continue
        behind = np.square(x[i : i + AHEAD] - y[j]).sum(axis=1) <= limit
        skips = [int(np.argmax(found)) if found.any() else AHEAD for found in (behind, ahead)]
        if skips[0] == skips[1] == AHEAD:
            i, j = i + 1, j + 1
        elif skips[0] <= skips[1]:
            i += skips[0]
        else:
            j += skips[1]
    return np.array([p for p, _ in pairs], np.intp), np.array([p for _, p in pairs], np.intp)
