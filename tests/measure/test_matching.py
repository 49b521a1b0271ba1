"""Counterparts of detections and of picked rows, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.measure.matching import ALL_PAIRS, match_detections, match_rows

Array = np.ndarray[Any, Any]

BOXES = np.array([[0, 0, 10, 10], [20, 20, 30, 40], [50, 50, 60, 60]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)
LABELS = np.array([1, 2, 1], np.int64)
AMONG = ("boxes", "scores", "labels", "table")


def detections(order: list[int], *, moved: float = 0.0, labels: Array = LABELS) -> dict[str, Array]:
    return {"boxes": BOXES[order] + np.float32(moved), "scores": SCORES[order], "labels": labels[order]}


def test_another_order_changes_nothing() -> None:
    found = match_detections(detections([0, 1, 2]), detections([2, 0, 1], moved=0.5), among=AMONG)
    assert {name: (len(m.reference), m.rows) for name, m in found.items()} == dict.fromkeys(
        ("boxes", "scores", "labels"), (3, 3)
    )
    np.testing.assert_array_equal(found["boxes"].reference, BOXES)
    np.testing.assert_array_equal(found["boxes"].test, BOXES + 0.5)
    np.testing.assert_array_equal(found["scores"].reference, found["scores"].test)


def test_what_is_missing_has_no_counterpart_and_what_is_more_does_no_harm() -> None:
    fewer = match_detections(detections([0, 1, 2]), detections([0, 2]), among=AMONG)
    assert (len(fewer["boxes"].reference), fewer["boxes"].rows) == (2, 3)
    more = match_detections(detections([0, 2]), detections([0, 1, 2]), among=AMONG)
    assert (len(more["boxes"].reference), more["boxes"].rows) == (2, 2)


def test_a_counterpart_is_of_the_same_class() -> None:
    found = match_detections(detections([0, 1, 2]), detections([0, 1, 2], labels=np.array([1, 2, 3])), among=AMONG)
    assert len(found["boxes"].reference) == 2


@pytest.mark.parametrize(("shift", "alike"), [(3.3, 1), (3.4, 0)])
def test_boxes_are_of_one_thing_from_an_overlap_of_a_half_on(shift: float, alike: int) -> None:
    """A square of 10 moved by s shares 10 (10 - s) of 10 (10 + s)."""
    box = BOXES[:1]
    moved = box + np.array([shift, 0, shift, 0], np.float32)
    assert len(match_detections({"boxes": box}, {"boxes": moved}, among=AMONG)["boxes"].reference) == alike


def test_the_best_overlap_goes_first() -> None:
    near, nearer = BOXES[:1] + 1, BOXES[:1] + np.float32(0.1)
    test = {"boxes": np.concatenate([near, nearer])}
    found = match_detections({"boxes": BOXES[:1]}, test, among=AMONG)["boxes"]
    np.testing.assert_array_equal(found.test, nearer)


def test_boxes_may_be_centre_and_size() -> None:
    centred = np.array([[5, 50, 4, 6], [30, 20, 8, 2]], np.float32)
    found = match_detections({"boxes": centred}, {"boxes": centred[::-1]}, among=AMONG)["boxes"]
    np.testing.assert_array_equal(found.reference, found.test)


@pytest.mark.parametrize(
    "columns",
    [
        (0, 1, 2, 3, 4, 5),  # box, score, class
        (5, 4, 0, 1, 2, 3),  # class, score, box
        (6, 0, 1, 2, 3, 5, 4),  # image, box, class, score
        (6, 5, 4, 0, 1, 2, 3),  # image, class, score, box
    ],
)
def test_tables_of_boxes_are_read(columns: tuple[int, ...]) -> None:
    table = np.concatenate([BOXES, SCORES[:, None], LABELS[:, None], np.zeros((3, 1))], axis=1).astype(np.float32)
    table = table[:, list(columns)]
    other = table[[1, 0]].copy()
    other[0, columns.index(5)] = 7  # of another class
    found = match_detections({"table": table}, {"table": other}, among=AMONG)["table"]
    np.testing.assert_array_equal(found.reference, table[:1])
    np.testing.assert_array_equal(found.test, table[:1])
    assert found.rows == 3


@pytest.mark.parametrize("counted", [True, False])
def test_padding_is_no_detection(counted: bool) -> None:
    """Outputs for two images, two detections in the one and three in the other, padded to four."""

    def padded(counts: list[int]) -> dict[str, Array]:
        side = {"boxes": np.zeros((2, 4, 4), np.float32), "scores": np.zeros((2, 4), np.float32)}
        for image, count in enumerate(counts):
            side["boxes"][image, :count], side["scores"][image, :count] = BOXES[:count], SCORES[:count]
        if counted:
            side["boxes"][:, 3] = 99.0  # what nobody reads
            side["count"] = np.array(counts, np.int32)
        return side

    found = match_detections(padded([2, 3]), padded([3, 2]), among=AMONG)
    assert (len(found["boxes"].reference), found["boxes"].rows) == (4, 5)
    assert found["scores"].reference.shape == (4, 1)


def test_nothing_found_is_nothing_to_match() -> None:
    found = match_detections(detections([]), detections([0]), among=AMONG)["boxes"]
    assert (len(found.reference), found.rows) == (0, 0)


def test_outputs_without_boxes_are_left_alone() -> None:
    scores = {"scores": SCORES}
    assert match_detections(scores, scores, among=AMONG) == {}
    assert match_detections(detections([0]), detections([0]), among=("scores",)) == {}


def test_whole_numbers_keep_their_order_as_texts_do() -> None:
    found = match_rows(np.array([5, 3, 8, 8, 1]), np.array([5, 8, 8, 2, 1, 3]), 0)
    assert found.reference.ravel().tolist() == [5, 8, 8, 1]
    assert found.rows == 5


def test_rows_of_whole_numbers_are_matched_in_any_order_and_once() -> None:
    a, b = np.array([[1, 2], [3, 4], [1, 2]]), np.array([[3, 4], [1, 2], [9, 9]])
    found = match_rows(a, b, 0)
    assert found.reference.tolist() == [[1, 2], [3, 4]]
    assert found.test.tolist() == found.reference.tolist()
    columns = match_rows(a.T, b.T, 1)
    assert columns.reference.tolist() == found.reference.tolist()


@pytest.mark.parametrize("count", [40, ALL_PAIRS + 40])
def test_rows_are_matched_by_nearness(count: int) -> None:
    """Rows that one model picked and the other did not are left out, wherever they stand."""
    a = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    b = np.delete(a, [3, 20], axis=0) + np.float32(0.01)
    found = match_rows(a, b, 0)
    assert (len(found.reference), found.rows) == (count - 2, count)
    np.testing.assert_allclose(found.reference, found.test - 0.01, atol=1e-6)
    back = match_rows(b, a, 0)
    assert len(back.reference) == back.rows == count - 2
    alone = match_rows(a, np.random.default_rng(1).standard_normal((count, 8)) * 9, 0)
    assert len(alone.reference) < count / 20


def test_rows_at_their_places_stay_there() -> None:
    a = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    a[7] = a[8] + np.float32(0.001)
    found = match_rows(a, a[:, ::1] + np.float32(0.01), 0)
    np.testing.assert_array_equal(found.reference, a)
    np.testing.assert_array_equal(found.test, a + np.float32(0.01))
