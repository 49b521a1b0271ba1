"""Samples that nothing was fitted to, and samples beside their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnxq.calibrate.feeds import Feed, FeedOptions, open_feed
from onnxq.calibrate.unused import LabelledFeed, unused
from onnxq.graph.signature import TensorSpec

X = TensorSpec("x", np.dtype(np.float32), ("n", 2))
FIXED = TensorSpec("x", np.dtype(np.float32), (4, 2))


def rows(count: int) -> np.ndarray[Any, Any]:
    return np.arange(count, dtype=np.float32)[:, None].repeat(2, axis=1)


def numbers(feed: Feed) -> list[int]:
    return [int(row) for arrays in feed for row in arrays["x"][:, 0]]


@pytest.mark.parametrize(("used", "most", "left"), [(6, 100, 4), (6, 2, 2), (9, 100, 1)])
def test_the_rest_of_arrays(used: int, most: int, left: int) -> None:
    feed = open_feed({"x": rows(10)}, [X]).limit(used)
    found = unused(feed, most)
    assert found is not None
    assert len(numbers(found)) == left
    assert not set(numbers(found)) & set(numbers(feed))


def test_the_rest_of_what_was_limited_before() -> None:
    feed = open_feed({"x": rows(10), "y": np.arange(10)}, [X], options=FeedOptions(limit=6)).limit(512)
    found = unused(feed, 100)
    assert found is not None
    assert set(numbers(found)) | set(numbers(feed)) == set(range(10))
    assert found.labels("y").tolist() == numbers(found)


def test_nothing_is_left_of_what_was_used() -> None:
    assert unused(open_feed({"x": rows(10)}, [X]).limit(512), 100) is None
    assert unused(open_feed("random", [X], options=FeedOptions(limit=6)).limit(4), 100) is None  # it says no more


def test_too_few_for_a_batch_are_none() -> None:
    feed = open_feed({"x": rows(10)}, [FIXED]).limit(8)
    assert unused(feed, 100) is None
    more = unused(open_feed({"x": rows(12)}, [FIXED]).limit(8), 100)
    assert more is not None
    assert len(numbers(more)) == 4


def test_the_next_of_a_stream() -> None:
    def endless() -> Iterator[dict[str, Any]]:
        number = 0
        while True:
            yield {"x": rows(number + 1)[-1:], "y": number}
            number += 1

    def short() -> Iterator[dict[str, Any]]:
        yield from ({"x": rows(n + 1)[-1:]} for n in range(5))

    found = unused(open_feed(endless, [X]).limit(5), 3)
    assert found is not None
    assert numbers(found) == [5, 6, 7]
    assert unused(open_feed(short, [X]).limit(5), 3) is None


def test_a_stream_that_breaks_off_behind_what_is_used_has_no_more() -> None:
    def breaking() -> Iterator[dict[str, Any]]:
        yield from ({"x": rows(n + 1)[-1:]} for n in range(5))
        raise OSError("gone")

    assert unused(open_feed(breaking, [X]).limit(5), 3) is None


def test_feeds_beside_their_labels() -> None:
    feed = open_feed({"x": rows(10), "y": np.arange(10) * 10}, [X]).limit(4)
    found = list(LabelledFeed(feed, "y"))
    assert [(int(arrays["x"][0, 0]), labels, names) for arrays, labels, names in found] == [
        (n, [10 * n], [n]) for n in numbers(feed)
    ]
    assert [labels for _, labels, _ in LabelledFeed(feed)] == [[None]] * 4


def test_batches_beside_the_labels_of_all_their_samples() -> None:
    feed = open_feed({"x": rows(10), "y": np.arange(10) * 10}, [FIXED])
    found = [(labels, names) for _, labels, names in LabelledFeed(feed, "y")]
    assert found == [([0, 10, 20, 30], [0, 1, 2, 3]), ([40, 50, 60, 70], [4, 5, 6, 7])]
