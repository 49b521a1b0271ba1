"""Each kind's measure against the same worked out by brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.measure.kinds import Kind, KindGuess, Layout, Measured, judges_of
from onnxq.measure.kinds.boxes import NEAR_TIES as NEAR_BOXES
from onnxq.measure.kinds.boxes import Found
from onnxq.measure.kinds.classes import SPARE
from onnxq.measure.kinds.ctc import collapsed, edit_distance
from onnxq.measure.kinds.judge import Worst
from onnxq.measure.kinds.kind import Where
from onnxq.measure.kinds.thresholds import THRESHOLDS
from onnxq.numerics import Share

Array = npt.NDArray[Any]
RNG = np.random.default_rng(7)


def judged(
    kind: Kind, pairs: Sequence[tuple[Array, Array]], layout: Layout | None = None, level_db: float | None = None
) -> Measured:
    """What ``kind`` finds of pairs of arrays of float and quantized, a feed each."""
    guess = KindGuess((kind,), "", layout or Layout())
    (judge,) = judges_of(guess, guess.layout.samples(pairs[0][0]).shape[-1])
    for feed, (a, b) in enumerate(pairs):
        x, y = guess.layout.samples(a), guess.layout.samples(b)
        judge.add(x, y, [Where(*guess.layout.where(feed, row, len(x))) for row in range(len(x))])
    return judge.measured(level_db)


def f32(x: Any) -> Array:
    return np.asarray(x, np.float32)


def shares(found: Measured) -> tuple[int, int, int, int]:
    assert found.share is not None
    assert found.sure is not None
    return found.share.same, found.share.rows, found.sure.same, found.sure.rows


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probabilities", [True, False])
@pytest.mark.parametrize("kind", [Kind.CLASSES, Kind.TOKENS])
def test_classes_by_hand(kind: Kind, probabilities: bool) -> None:
    logits = RNG.normal(0, 1, (40, 6))
    x = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) if probabilities else logits
    y = x + RNG.normal(0, 0.05 if probabilities else 0.4, x.shape)
    pairs = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 40, 4)]
    if kind is Kind.TOKENS:
        pairs = [(a[None], b[None]) for a, b in pairs]
    found = judged(kind, pairs, Layout(distribution=probabilities))
    same = [int(np.argmax(a)) == int(np.argmax(b)) for a, b in zip(x, y, strict=True)]
    odds = []
    for row in x:
        first, second = sorted(row)[::-1][:2]
        odds.append(first / second if probabilities else math.exp(first - second))
    sure = [o >= 1.5 for o in odds]
    expected = sum(same), 40, sum(s and c for s, c in zip(same, sure, strict=True)), sum(sure)
    assert shares(found) == expected
    assert 0 < expected[3] < 40
    assert expected[0] < 40
    assert found.share is not None
    assert found.share.samples == (10 if kind is Kind.TOKENS else 40)
    leads = [y[i][np.argmax(x[i])] - max(np.delete(y[i], np.argmax(x[i]))) for i in range(40)]
    if kind is Kind.CLASSES:
        assert found.worst == pytest.approx(min(leads))
        assert found.worst_at == Where(int(np.argmin(leads)) // 4, int(np.argmin(leads)) % 4)
    assert [(p.times, p.spare) for p in found.promises] == [(1, 1), (1, 0)]


def test_pixels_of_classes() -> None:
    x, y = RNG.normal(0, 1, (2, 3, 8, 8)), RNG.normal(0, 1, (2, 3, 8, 8))
    y = x + 0.5 * y
    found = judged(Kind.PIXELS, [(x, y)], Layout(channels=0))
    a, b = x.argmax(axis=1), y.argmax(axis=1)
    unions = [(((a == c) & (b == c)).sum(), ((a == c) | (b == c)).sum()) for c in range(3)]
    assert found.value == pytest.approx(np.mean([i / u for i, u in unions]))
    assert shares(found)[:2] == ((a == b).sum(), 128)
    assert found.share is not None
    assert found.share.samples == 2


def test_next_tokens() -> None:
    x = RNG.normal(0, 2, (3, 5, 30))
    y = x + RNG.normal(0, 0.3, x.shape)
    found = judged(Kind.NEXT_TOKEN, [(f32(x), f32(y))])
    p, q = (np.exp(v) / np.exp(v).sum(axis=-1, keepdims=True) for v in (x, y))
    rows = (p * np.log(p / q)).sum(axis=-1)
    assert found.value == pytest.approx(rows.mean(), rel=1e-4)
    assert found.promises[-1].level == pytest.approx(math.exp(-rows.mean()), rel=1e-4)
    assert found.worst == pytest.approx(rows.mean(axis=1).max(), rel=1e-4)
    assert shares(found)[:2] == ((x.argmax(-1) == y.argmax(-1)).sum(), 15)
    masked = f32(np.where(np.arange(30) < 20, x, -np.inf))
    assert judged(Kind.NEXT_TOKEN, [(masked, masked)]).value == pytest.approx(0.0, abs=1e-6)


def test_ids() -> None:
    found = judged(Kind.IDS, [(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 9, 4]])), (np.array([[5]]), np.array([[5]]))])
    assert found.share is not None
    assert (found.share.same, found.share.rows, found.worst, found.worst_at) == (4, 5, 0.75, Where(0))
    rounded = judged(Kind.IDS, [(np.array([[1, 2, 3, 4]]), np.array([[1, 3, 1, 4]]))], Layout(rounded=True))
    assert [(p.share.same, p.share.rows, p.times) for p in rounded.promises if p.share] == [(2, 4, 10), (3, 4, 1)]


# -- thresholds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounded", [True, False])
def test_labels_that_are_set_in_either_model_decide(bounded: bool) -> None:
    x = RNG.uniform(0, 1, (12, 9)) if bounded else RNG.normal(-1, 2, (12, 9))
    y = x + RNG.normal(0, 0.15, x.shape)
    found = judged(Kind.LABELS, [(x, y)], Layout(bounded=bounded))
    threshold, margin = (0.5, 0.1) if bounded else (0.0, math.log(1.5))
    counted = [(a, b) for a, b in zip(x.ravel(), y.ravel(), strict=True) if a > threshold or b > threshold]
    same = [(a > threshold) == (b > threshold) for a, b in counted]
    sure = [abs(a - threshold) >= margin for a, _ in counted]
    both = sum(s and c for s, c in zip(same, sure, strict=True))
    assert shares(found) == (sum(same), len(counted), both, sum(sure))
    assert found.worst == pytest.approx(max(abs(a - b) for a, b in counted))


def test_a_single_column_decides_on_either_side() -> None:
    x, y = f32([[0.1], [0.45], [0.55], [0.9]]), f32([[0.1], [0.55], [0.45], [0.2]])
    assert shares(judged(Kind.LABELS, [(x, y)], Layout(bounded=True))) == (1, 4, 1, 2)
    assert shares(judged(Kind.TOKENS, [(x[None], y[None])], Layout(bounded=True))) == (1, 4, 1, 2)


def test_the_worst_threshold_of_a_mask_counts() -> None:
    x = RNG.uniform(0, 1, (3, 1, 16, 16)) ** 3
    y = np.clip(x + RNG.normal(0, 0.05, x.shape), 0, 1)
    found = judged(Kind.PIXELS, [(x, y)], Layout(channels=0, bounded=True))
    overlap = {}
    for t in (0.2, 0.3, 0.4, 0.5, 0.6):
        overlap[t] = ((x > t) & (y > t)).sum() / ((x > t) | (y > t)).sum()
    worst = min(overlap, key=lambda t: overlap[t])
    assert found.value == pytest.approx(overlap[worst])
    assert found.rule == f"above {worst:g}"
    assert [p.times for p in found.promises] == [5, 1]


# -- text --------------------------------------------------------------------------------------------------------------


def slow_distance(a: Sequence[int], b: Sequence[int]) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return slow_distance(a[1:], b[1:])
    return 1 + min(slow_distance(a[1:], b), slow_distance(a, b[1:]), slow_distance(a[1:], b[1:]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_the_edit_distance(a: list[int], b: list[int]) -> None:
    assert edit_distance(a, b) == slow_distance(a, b)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=20), st.sampled_from([0, 3]))
def test_paths_collapse(path: list[int], blank: int) -> None:
    expected = [label for label, _ in itertools.groupby(path) if label != blank]
    assert collapsed(np.array(path, int), blank) == expected


def frames(path: Sequence[int], classes: int = 5, height: float = 5.0) -> Array:
    x = np.zeros((1, len(path), classes), np.float32)
    x[0, np.arange(len(path)), list(path)] = height
    return x


def test_texts_are_compared_and_not_frames() -> None:
    """Another frame for the same character is the same text; a character that is lost counts as one of its text."""
    blank = 4
    texts = [([1, 1, 4, 2, 4], [1, 4, 4, 2, 2]), ([1, 4, 1, 3, 4], [1, 4, 4, 3, 4]), ([4, 4, 4, 4, 4], [4, 2, 4, 4, 4])]
    found = judged(Kind.CTC, [(frames(a), frames(b)) for a, b in texts])
    assert blank == 4
    assert shares(found)[:2] == (2 + 2 + 0, 2 + 3 + 1)
    assert found.detail == "1 of 3 texts are the same"
    assert found.worst == 0.0
    assert [(p.times, p.spare) for p in found.promises] == [(1, 1), (1, 0), (10, 1)]
    unsure = judged(Kind.CTC, [(frames(a, height=0.3), frames(b)) for a, b in texts])
    assert shares(unsure)[2:] == (0, 0)


# -- maps --------------------------------------------------------------------------------------------------------------


def decisions(x: Array, y: Array) -> tuple[int, int]:
    """(rows whose largest is in the same place, rows of which it leads by more than float noise)."""
    same = total = 0
    for a, b in zip(x, y, strict=True):
        order = np.sort(a)[::-1]
        if len(a) > 1 and order[0] - order[1] > 8 * np.finfo(np.float32).eps * np.abs(a).max():
            total += 1
            same += int(a.argmax() == b.argmax())
    return same, total


def test_rows_columns_and_blocks_of_a_map() -> None:
    x = RNG.normal(0, 1, (40, 20)).astype(np.float32)
    y = (x + 0.2 * RNG.normal(0, 1, x.shape)).astype(np.float32)
    found = judged(Kind.MAP, [(x, y)], Layout(batch=None))
    pieces = [(x[:, s], y[:, s]) for s in (slice(0, 16), slice(16, 20))]
    pieces += [(x[s].T, y[s].T) for s in (slice(0, 16), slice(16, 32), slice(32, 40))]
    ways = {"rows": decisions(x, y), "columns": decisions(x.T, y.T)}
    counts = [decisions(a, b) for a, b in pieces]
    ways["rows and columns of blocks"] = (sum(c[0] for c in counts), sum(c[1] for c in counts))
    worst = min(ways, key=lambda n: ways[n][0] / ways[n][1])
    assert shares(found)[:2] == ways[worst]
    assert found.what == f"largest of {worst}"


def test_what_leads_by_float_noise_alone_decides_nothing() -> None:
    x = np.full((1, 3, 3), 1.0, np.float32)
    x[0, 0, 0] += 4 * np.finfo(np.float32).eps
    y = np.ones_like(x)
    y[0, :, 2] += 0.1
    assert judged(Kind.MAP, [(x, y)]).share is not None
    assert judged(Kind.MAP, [(x, y)]).share.rows == 0  # type: ignore[union-attr]
    x[0, 0, 0] += 100 * np.finfo(np.float32).eps
    assert shares(judged(Kind.MAP, [(x, y)]))[:2] == (0, 1)


def test_an_application_that_reads_blocks_is_not_told_by_whole_rows() -> None:
    """The largest of each row stays, in a block that is not read; where it is read, nearly half change."""
    x = RNG.uniform(0.1, 0.2, (1, 32, 32)).astype(np.float32)
    x[0, :, 31] = 1.0
    x[0, 31, :] = 1.0
    y = (x + np.where(x < 0.5, RNG.normal(0, 0.02, x.shape), 0)).astype(np.float32)
    found = judged(Kind.MAP, [(x, y)])
    assert found.what.endswith("blocks")
    assert found.share is not None
    assert found.share.value < 0.8


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_each_column_is_as_wide_as_it_spreads() -> None:
    x = RNG.normal(0, 1, (50, 3)) * [1, 100, 0.01] + [0, 1000, 5]
    y = x + RNG.normal(0, 1, x.shape) * [0.1, 1, 0.003]
    found = judged(Kind.REGRESSION, [(x[:20], y[:20]), (x[20:], y[20:])])
    kept = 1 - np.square(x - y).sum(axis=0) / np.square(x - x.mean(axis=0)).sum(axis=0)
    assert found.value == pytest.approx(kept.min(), rel=1e-6)
    assert found.what == f"R2 of column {kept.argmin()}"
    relative = np.abs(x - y) / x.std(axis=0)
    row = int(relative.max(axis=1).argmax())
    assert found.worst_at == (Where(0, row) if row < 20 else Where(1, row - 20))
    assert found.promises[0].level == found.value


def test_a_constant_is_compared_with_itself() -> None:
    x = np.full((20, 1), 4.0)
    assert judged(Kind.REGRESSION, [(x, x + 0.04)]).value == pytest.approx(1 - 1e-4)
    assert judged(Kind.REGRESSION, [(x, x)]).value == 1.0
    assert judged(Kind.REGRESSION, [(x * 0, x * 0 + 1)]).value == -math.inf


def test_an_embedding_keeps_its_direction_and_its_neighbours() -> None:
    x = RNG.normal(0, 1, (30, 16)) + 1.0
    y = (x + 0.4 * RNG.normal(0, 1, x.shape)) * 3.0
    found = judged(Kind.EMBEDDING, [(x, y)])
    cosine = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(x, y, strict=True)]
    assert found.value == pytest.approx(sorted(cosine)[1])  # the second of 30 is that of 95 %
    assert found.worst == pytest.approx(min(cosine))
    nearest = []
    for v in (x, y):
        u = v / np.sqrt(np.square(v).sum(axis=1, keepdims=True))
        nearest.append([max((j for j in range(30) if j != i), key=lambda j, i=i, u=u: u[i] @ u[j]) for i in range(30)])
    assert shares(found)[:2] == (sum(a == b for a, b in zip(*nearest, strict=True)), 30)
    u, w = (v / np.sqrt(np.square(v).sum(axis=1, keepdims=True)) for v in (x, y))
    spread = 1 - np.square(u - w).sum() / np.square(u - u.mean(axis=0)).sum()
    assert [p.level for p in found.promises[:2]] == [found.value, pytest.approx(spread)]


def test_vectors_of_zeros_are_alike() -> None:
    zeros = np.zeros((4, 8))
    assert judged(Kind.EMBEDDING, [(zeros, zeros)]).value == 1.0
    assert judged(Kind.EMBEDDING, [(zeros, zeros + 1)]).value == 0.0


@pytest.mark.parametrize(("level", "kept"), [(20.0, 0.99), (10.0, 0.9), (0.0, 0.0)])
def test_features_are_judged_by_their_noise(level: float, kept: float) -> None:
    found = judged(Kind.FEATURES, [(np.ones((1, 4)), np.array([[1, 1, 1, 1.5]]))], level_db=level)
    assert found.promises[0].level == pytest.approx(kept)
    assert (found.value, found.worst) == (level, 0.5)


# -- images and sounds -------------------------------------------------------------------------------------------------


def test_blocks_of_an_image() -> None:
    x = RNG.uniform(0, 255, (2, 3, 40, 33))
    y = x + RNG.normal(0, 10, x.shape)
    found = judged(Kind.IMAGE, [(x, y)], Layout(channels=0))
    reach = x.max() - x.min()
    assert found.value == pytest.approx(10 * np.log10(reach**2 / np.square(x - y).mean()))
    error = np.abs(x - y).max(axis=1)
    blocks = [error[i, r : r + 16, c : c + 16].max() for i in range(2) for r in (0, 16, 32) for c in (0, 16, 32)]
    assert found.share is not None
    assert (found.share.same, found.share.rows) == (sum(b <= 0.1 * reach for b in blocks), 18)
    assert 0 < found.share.same < 18
    assert found.worst == pytest.approx(error.max())
    level = 1 - np.square(x - y).sum() / np.square(x - x.mean()).sum()
    assert found.promises[1].level == pytest.approx(level)


def test_a_pixel_that_is_off_is_found_where_the_mean_is_fine() -> None:
    x = RNG.uniform(0, 255, (1, 1, 64, 64))
    y = x.copy()
    y[0, 0, 40, 50] += 97
    found = judged(Kind.IMAGE, [(x, y)], Layout(channels=0))
    assert found.value is not None
    assert found.value > 40
    assert found.worst == pytest.approx(97)
    assert str(found.share).startswith("15 of 16")


@pytest.mark.parametrize("shape", [(1, 5000), (1, 2, 5000), (1, 5000, 1)])
def test_frames_of_a_sound(shape: tuple[int, ...]) -> None:
    x = RNG.normal(0, 1, shape) * np.repeat([1.0, 0.001], 2500).reshape([5000 if n == 5000 else 1 for n in shape])
    y = x + RNG.normal(0, 0.04, shape)
    found = judged(Kind.AUDIO, [(x, y)])
    assert found.value == pytest.approx(10 * np.log10(np.square(x).sum() / np.square(x - y).sum()))
    channels = [(c, d) for c, d in zip(x.reshape(-1, 5000), y.reshape(-1, 5000), strict=True)]
    pieces = [(c[s : s + 1024], d[s : s + 1024]) for c, d in channels for s in range(0, 5000, 1024)]
    mean = np.square(x).sum() / len(pieces)
    kept = [np.square(c).sum() + 1e-3 * mean >= 10 * np.square(c - d).sum() for c, d in pieces]
    assert found.share is not None
    assert (found.share.same, found.share.rows) == (sum(kept), len(pieces))
    assert 0 < sum(kept) < len(kept)


# -- boxes -------------------------------------------------------------------------------------------------------------


def table(*rows: tuple[float, ...]) -> Array:
    """Rows of box, as centre and size, and scores of two classes; the others find nothing."""
    empty = [(float(20 * i), 500.0, 10.0, 10.0, 0.01, 0.02) for i in range(40)]
    return f32([[*rows, *empty][:40]])


DENSE = Layout(scores=(4, 6), bounded=True)
A, B, C = (100.0, 100.0, 40.0, 40.0), (200.0, 100.0, 40.0, 40.0), (300.0, 100.0, 40.0, 40.0)


def test_detections_that_stay_are_counted_at_each_threshold() -> None:
    x = table((*A, 0.9, 0.0), (*B, 0.0, 0.55), (*C, 0.35, 0.0))
    same = judged(Kind.BOXES, [(x, x)], DENSE)
    assert shares(same)[:2] == (1, 1) or same.share.value == 1.0  # type: ignore[union-attr]
    y = table((*A, 0.9, 0.0), (*B, 0.0, 0.45), (*C, 0.35, 0.0))
    found = judged(Kind.BOXES, [(x, y)], DENSE)
    assert found.rule == "detections above 0.5"
    assert shares(found)[:2] == (1, 2)  # B falls below, and float was not sure of it
    assert found.sure is not None
    assert found.sure.value == 1.0
    assert found.worst == pytest.approx(0.1)
    assert found.promises[0].times == NEAR_BOXES == 5


def test_a_sure_detection_that_is_lost_moved_or_of_another_class() -> None:
    x = table((*A, 0.9, 0.0))
    for other in (table(), table((*B, 0.9, 0.0)), table((*A, 0.0, 0.9))):
        found = judged(Kind.BOXES, [(x, other)], DENSE)
        assert found.share is not None
        assert found.sure is not None
        assert (found.share.same, found.sure.same) == (0, 0)
        assert found.sure.rows >= 1


def test_overlapping_boxes_of_a_class_are_one() -> None:
    moved = (104.0, 100.0, 40.0, 40.0)
    x = table((*A, 0.9, 0.0), (*moved, 0.8, 0.0), (*moved, 0.0, 0.7))
    y = table((*A, 0.8, 0.0), (*moved, 0.9, 0.0), (*moved, 0.0, 0.7))
    found = judged(Kind.BOXES, [(x, y)], DENSE)
    assert shares(found)[:2] == (2, 2)


def test_scores_and_boxes_have_levels_of_their_own() -> None:
    x = table((*A, 0.9, 0.0), (*B, 0.8, 0.0))
    y = x.copy()
    y[..., 4:] += 0.05
    found = judged(Kind.BOXES, [(x, y)], DENSE)
    level = 10 * np.log10(np.square(x[..., 4:]).sum() / np.square(x[..., 4:] - y[..., 4:]).sum())
    assert found.level_db == pytest.approx(level, abs=1e-3)
    assert found.detail == f"scores {level:.1f} dB, boxes 200.0 dB"


def test_objectness_multiplies_scores() -> None:
    x = table((*A, 0.9, 0.95), (*B, 0.3, 0.95))
    y = table((*A, 0.9, 0.95), (*B, 0.9, 0.95))
    found = judged(Kind.BOXES, [(x, y)], Layout(scores=(4, 6), objectness=True, bounded=True))
    assert shares(found)[:2] == (1, 2)


def test_places_beside_boxes_in_another_output() -> None:
    x = f32([[[0.9, 0.1], [0.55, 0.2], [0.0, 0.1]] + [[0.0, 0.0]] * 30])
    y = f32([[[0.1, 0.9], [0.45, 0.2], [0.0, 0.1]] + [[0.0, 0.0]] * 30])
    found = judged(Kind.BOXES, [(x, y)], Layout(bounded=True))
    assert (found.rule, *shares(found)[:2]) == ("places above 0.5", 0, 2)
    assert (found.sure.same, found.sure.rows) == (0, 1)  # type: ignore[union-attr]
    whole = np.concatenate([1 - x.sum(axis=-1, keepdims=True), x], axis=-1)
    assert judged(Kind.BOXES, [(whole, whole)], Layout(bounded=True, distribution=True)).share.rows > 0  # type: ignore[union-attr]


def test_lone_boxes() -> None:
    x = f32([[[0, 0, 10, 10], [20, 20, 30, 30]]])
    y = f32([[[0, 0, 10, 5], [20, 20, 30, 30]]])
    found = judged(Kind.BOXES, [(x, y)], Layout(scores=(4, 4)))
    assert (found.value, found.promises[0].level, found.promises[0].times) == (0.75, 0.75, 5)


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_the_worst_is_the_lowest_and_what_is_no_number_is_lower() -> None:
    worst = Worst()
    for i, value in enumerate((3.0, 2.0, 2.5, math.nan, 1.0)):
        worst.note(value, Where(i))
    assert worst.at == Where(3)
    plain = Worst()
    for i, value in enumerate((3.0, 2.0, 2.0)):
        plain.note(value, Where(i))
    assert (plain.value, plain.at) == (2.0, Where(1))


@pytest.mark.parametrize("kind", [k for k in Kind if k not in (Kind.DETECTIONS, Kind.PICKED, Kind.IDS)])
def test_what_is_the_same_loses_nothing(kind: Kind) -> None:
    shape = (2, 3, 32, 32) if kind in (Kind.PIXELS, Kind.IMAGE) else (2, 40, 6)
    x = RNG.uniform(0, 1, shape).astype(np.float32)
    layout = Layout(channels=0 if len(shape) == 4 else -1, bounded=True, scores=(4, 6) if kind is Kind.BOXES else None)
    found = judged(kind, [(x, x)], layout, level_db=200.0)
    assert found.lost == pytest.approx(0.0, abs=1e-9)
    assert found.promises


def test_near_ties_that_are_spared_are_of_the_threshold_that_is_judged() -> None:
    """At one threshold three near ties change and nothing else is there, at another one four that float is sure of."""
    found = Found()
    all_of = np.ones(10, bool)
    for threshold, tally in found.tallies.items():
        few = threshold == THRESHOLDS[0]
        changed, sure = (3, 0) if few else (4, 10) if threshold == THRESHOLDS[-1] else (0, 0)
        counts = np.arange(10) < 3 if few else all_of
        tally.add(np.arange(10) >= changed, counts, np.arange(10) < sure, Where(0, 0))
    promises = {promise.what: promise for promise in found.measured("boxes").promises}
    assert promises["decisions"].share == Share.of(0, 3)
    assert promises["decisions"].spare == SPARE
    assert promises["decisions where float is sure"].share == Share.of(6, 10)
