"""Which axis of which input counts samples: by names, by arrays, by the user's word; and how that is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.calibrate.feeds import Feed, FeedOptions, open_feed
from onnxq.errors import ConfigError, DataError, RunFailure
from onnxq.graph.signature import TensorSpec

Dim = int | str | None


def spec(name: str, *shape: Dim, dtype: Any = np.float32) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


def ints(name: str, *shape: Dim) -> TensorSpec:
    return spec(name, *shape, dtype=np.int64)


def arrays(inputs: list[TensorSpec], shapes: tuple[tuple[int, ...], ...]) -> dict[str, np.ndarray]:
    """By input, an array of these shapes in which each element is another one."""
    made = {}
    for one, shape in zip(inputs, shapes, strict=True):
        made[one.name] = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(one.dtype)
    return made


def shapes_of(feed: Feed) -> list[tuple[tuple[int, ...], ...]]:
    return [tuple(a.shape for a in arrays.values()) for arrays in feed]


EDGES = ints("edge_index", 2, "E")
# name: inputs, shapes of the arrays in one file, shapes of the feeds in order
ONE_FILE: dict[str, tuple[list[TensorSpec], tuple[tuple[int, ...], ...], list[tuple[tuple[int, ...], ...]]]] = {
    "nodes and edges": ([spec("x", "V", 32), EDGES], ((20, 32), (2, 60)), [((20, 32), (2, 60))]),
    "the same called N": ([spec("x", "N", 32), EDGES], ((20, 32), (2, 60)), [((20, 32), (2, 60))]),
    "nameless": ([spec("x", None, 32), ints("e", 2, None)], ((20, 32), (2, 60)), [((20, 32), (2, 60))]),
    "attributes of edges": (
        [spec("x", "V", 32), EDGES, spec("edge_attr", "E", 4), ints("batch", "V")],
        ((20, 32), (2, 60), (60, 4), (20,)),
        [((20, 32), (2, 60), (60, 4), (20,))],
    ),
    "edges first": ([spec("x", "V", 8), ints("e", "E", 2)], ((5, 8), (9, 2)), [((5, 8), (9, 2))]),
    "nameless edges first": ([spec("x", None, 8), ints("e", None, 2)], ((5, 8), (9, 2)), [((5, 8), (9, 2))]),
    "adjacency": ([spec("x", "A", 8), spec("adj", "A", "A")], ((5, 8), (5, 5)), [((5, 8), (5, 5))]),
    "graphs stacked": (
        [spec("x", "V", 32), EDGES],
        ((3, 20, 32), (3, 2, 60)),
        [((20, 32), (2, 60))] * 3,
    ),
    "two clouds": ([spec("p", "P", 3), spec("q", "Q", 3)], ((50, 3), (20, 3)), [((50, 3), (20, 3))]),
    "time first": ([spec("x", "T", "N", 4), ints("lens", "N")], ((9, 3, 4), (3,)), [((9, 3, 4), (3,))]),
    "time first, other names": ([spec("x", "A", "B", 4), ints("n", "B")], ((9, 3, 4), (3,)), [((9, 3, 4), (3,))]),
    "time first, batch": ([spec("x", "t", "batch", 4), ints("n", "batch")], ((9, 3, 4), (3,)), [((9, 3, 4), (3,))]),
    "time first, nameless": ([spec("x", None, None, 4), ints("n", None)], ((9, 3, 4), (3,)), [((9, 3, 4), (3,))]),
    "time first, a state": (
        [spec("x", "T", "N", 4), ints("n", "N"), spec("h0", 1, "N", 8)],
        ((9, 3, 4), (3,), (1, 3, 8)),
        [((9, 3, 4), (3,), (1, 3, 8))],
    ),
    "source, target and mask": (
        [spec("src", "S", "N", 4), spec("tgt", "T", "N", 4), spec("mask", "N", "S", dtype=bool)],
        ((5, 2, 4), (7, 2, 4), (2, 5)),
        [((5, 2, 4), (7, 2, 4), (2, 5))],
    ),
    # samples, as ever
    "a state for all": ([spec("x", "N", 4), spec("h0", 2, "N", 8)], ((3, 4), (2, 1, 8)), [((1, 4), (2, 1, 8))] * 3),
    "a state each": ([spec("x", "N", 4), spec("h0", 2, "N", 8)], ((3, 4), (2, 3, 8)), [((1, 4), (2, 1, 8))] * 3),
    "states stacked": ([spec("x", "N", 4), spec("h0", 2, "N", 8)], ((3, 4), (3, 2, 1, 8)), [((1, 4), (2, 1, 8))] * 3),
    "a nameless state each": (
        [spec("x", None, 4), spec("h0", 2, None, 8)],
        ((3, 4), (2, 3, 8)),
        [((1, 4), (2, 1, 8))] * 3,
    ),
    "a nameless state for all": (
        [spec("x", None, 4), spec("h0", 2, None, 8)],
        ((3, 4), (2, 1, 8)),
        [((1, 4), (2, 1, 8))] * 3,
    ),
    "masks": (
        [spec("x", "N", "T", 4), spec("m", "N", 1, "T", "T")],
        ((3, 5, 4), (3, 1, 5, 5)),
        [((1, 5, 4), (1, 1, 5, 5))] * 3,
    ),
    "one mask for all": (
        [spec("x", "N", "T", 4), spec("m", "N", 1, "T", "T")],
        ((3, 5, 4), (1, 1, 5, 5)),
        [((1, 5, 4), (1, 1, 5, 5))] * 3,
    ),
    "anchors": (
        [spec("x", "N", 3, 8, 8), spec("anchors", "A", 4)],
        ((3, 3, 8, 8), (10, 4)),
        [((1, 3, 8, 8), (10, 4))] * 3,
    ),
    "anchors and one image": (
        [spec("x", "N", 3, 8, 8), spec("anchors", "A", 4)],
        ((1, 3, 8, 8), (10, 4)),
        [((1, 3, 8, 8), (10, 4))],
    ),
    "another symbol, as many": ([spec("x", "a", 4), spec("y", "b", 5)], ((3, 4), (3, 5)), [((1, 4), (1, 5))] * 3),
    "image and its size": (
        [spec("x", "N", 3, 8, 8), ints("size", 2)],
        ((3, 3, 8, 8), (2,)),
        [((1, 3, 8, 8), (2,))] * 3,
    ),
    "image and sizes": (
        [spec("x", "N", 3, 8, 8), ints("size", 2)],
        ((3, 3, 8, 8), (3, 2)),
        [((1, 3, 8, 8), (2,))] * 3,
    ),
    "a rate [1] given as a number": ([spec("x", "N", 4), ints("sr", 1)], ((3, 4), ()), [((1, 4), (1,))] * 3),
    "a rate [] given as [1]": ([spec("x", "N", 4), ints("sr")], ((3, 4), (1,)), [((1, 4), ())] * 3),
    "fixed batch of 1": ([spec("x", 1, 4), spec("y", 1, 2, 2)], ((3, 4), (3, 2, 2)), [((1, 4), (1, 2, 2))] * 3),
    "fixed batch of 2": ([spec("x", 2, 4), spec("y", 2, 3)], ((4, 4), (4, 3)), [((2, 4), (2, 3))] * 2),
    "fixed batch of 2, stacked": ([spec("x", 2, 4)], ((3, 2, 4),), [((2, 4),)] * 3),
    "a picture without batch": ([spec("x", 3, "h", "w")], ((3, 20, 30),), [((3, 20, 30),)]),
    "pictures without batch": ([spec("x", 3, 20, 30)], ((4, 3, 20, 30),), [((3, 20, 30),)] * 4),
    "tokens of other names": (
        [ints("ids", "ids_dynamic_axes_1", "a"), ints("mask", "mask_dynamic_axes_1", "b")],
        ((3, 7), (3, 7)),
        [((1, 7), (1, 7))] * 3,
    ),
    "one name for all dimensions": ([spec("x", "None", 3, "None", "None")], ((2, 3, 8, 8),), [((1, 3, 8, 8),)] * 2),
}


@pytest.mark.parametrize("kind", ONE_FILE)
def test_one_file(tmp_path, kind):
    inputs, shapes, expected = ONE_FILE[kind]
    given = arrays(inputs, shapes)
    np.savez(tmp_path / "data.npz", **given)
    for source in (given, tmp_path / "data.npz"):
        feed = open_feed(source, inputs)
        assert shapes_of(feed) == expected
        assert feed.samples == len(expected) * (
            feed.layout.rows if feed.layout.fixed and not feed.source.complete else 1
        )


# name: inputs, shapes of the arrays in each file, shapes of the feeds in order
FOLDERS: dict[str, tuple[list[TensorSpec], list[tuple[tuple[int, ...], ...]], list[tuple[tuple[int, ...], ...]]]] = {
    "graphs": (
        [spec("x", "V", 32), EDGES],
        [((5, 32), (2, 7)), ((4, 32), (2, 4))],
        [((5, 32), (2, 7)), ((4, 32), (2, 4))],
    ),
    "graphs, one with as many edges": (
        [spec("x", None, 3), ints("e", 2, None)],
        [((5, 3), (2, 5)), ((4, 3), (2, 9))],
        [((5, 3), (2, 5)), ((4, 3), (2, 9))],
    ),
    "time first": (
        [spec("x", "T", "N", 4), ints("lens", "N")],
        [((9, 3, 4), (3,)), ((7, 2, 4), (2,))],
        [((9, 3, 4), (3,)), ((7, 2, 4), (2,))],
    ),
    "sequences": ([spec("x", "time", 4)], [((9, 4),), ((7, 4),)], [((9, 4),), ((7, 4),)]),
    "batches": ([spec("x", "N", 4)], [((3, 4),), ((2, 4),)], [((1, 4),)] * 5),
    "single samples": ([spec("x", "N", "T", 4)], [((5, 4),), ((7, 4),)], [((1, 5, 4),), ((1, 7, 4),)]),
    "images and anchors": (
        [spec("x", "N", 3, 4, 4), spec("anchors", "A", 4)],
        [((3, 4, 4), (9, 4)), ((1, 3, 4, 4), (9, 4))],
        [((1, 3, 4, 4), (9, 4))] * 2,
    ),
    "two ragged inputs": (
        [spec("a", "N", "S", 4), ints("b", "N", "T")],
        [((1, 5, 4), (1, 9)), ((1, 2, 4), (1, 3))],
        [((1, 5, 4), (1, 9)), ((1, 2, 4), (1, 3))],
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_files(tmp_path, kind):
    inputs, files, expected = FOLDERS[kind]
    for number, shapes in enumerate(files):
        np.savez(tmp_path / f"{number}.npz", **arrays(inputs, shapes))
    assert shapes_of(open_feed(tmp_path, inputs)) == expected


def test_samples_along_a_later_axis_are_the_users_own(tmp_path):
    inputs = [spec("x", "T", "N", 4), ints("lens", "N")]
    given = arrays(inputs, ((5, 3, 4), (3,)))
    for options in (FeedOptions(batch_axes={"x": 1}), FeedOptions(batch_axes={"x": -2, "lens": 0})):
        got = list(open_feed(given, inputs, options=options))
        assert [f["x"].shape for f in got] == [(5, 1, 4)] * 3
        np.testing.assert_array_equal(np.concatenate([f["x"] for f in got], axis=1), given["x"])
        np.testing.assert_array_equal(np.concatenate([f["lens"] for f in got]), given["lens"])
    (whole, rest) = open_feed(given, inputs, options=FeedOptions(batch_axes={"x": 1}, batch_size=2))
    np.testing.assert_array_equal(whole["x"], given["x"][:, :2])
    np.testing.assert_array_equal(rest["lens"], given["lens"][2:])


def test_a_fixed_batch_along_a_later_axis_is_respected():
    inputs = [spec("x", 5, 2, 4)]
    given = arrays(inputs, ((5, 7, 4),))
    got = list(open_feed(given, inputs, options=FeedOptions(batch_axes={"x": 1})))
    assert [f["x"].shape for f in got] == [(5, 2, 4)] * 3
    dicts = [{"x": given["x"]}]  # more rows than the model takes
    got = list(open_feed(dicts, inputs, options=FeedOptions(batch_axes={"x": 1})))
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in got], axis=1), given["x"][:, :6])


def test_a_dict_may_lack_the_batch_axis_wherever_that_is():
    inputs = [spec("x", "T", "N", 4)]
    (got,) = open_feed([{"x": np.zeros((5, 4), np.float32)}], inputs, options=FeedOptions(batch_axes={"x": 1}))
    assert got["x"].shape == (5, 1, 4)


@pytest.mark.parametrize("axes", [{"x": None}, {"": None}])
def test_the_user_may_say_that_inputs_are_whole(axes):
    inputs = [spec("x", "N", 4)]
    assert shapes_of(open_feed(arrays(inputs, ((3, 4),)), inputs, options=FeedOptions(batch_axes=axes))) == [((3, 4),)]


def test_the_user_may_say_that_first_axes_count_samples_after_all():
    inputs = [spec("x", "N", 32), EDGES]
    options = FeedOptions(batch_axes={"x": 0, "edge_index": None})
    assert shapes_of(open_feed(arrays(inputs, ((3, 32), (2, 5))), inputs, options=options)) == [((1, 32), (2, 5))] * 3


@pytest.mark.parametrize(
    ("axes", "message"),
    [({"y": 0}, "'y': the model has no such input.*'x'"), ({"x": 2}, "batch axis 2 of 'x': the input has the shape")],
)
def test_a_wrong_axis_is_named(axes, message):
    with pytest.raises(ConfigError, match=message):
        open_feed({}, [spec("x", "N", 4)], options=FeedOptions(batch_axes=axes))


@pytest.mark.parametrize("inputs", [[spec("x", "N", 4), spec("y", "N", 5)], [spec("x", None, 4), spec("y", None, 5)]])
def test_numbers_of_samples_that_differ_are_an_error_that_names_the_option(inputs):
    with pytest.raises(DataError, match=r"different numbers of samples \('x' 3, 'y' 2\).*--batch-axis INPUT=AXIS"):
        open_feed(arrays(inputs, ((3, 4), (2, 5))), inputs)


@pytest.mark.parametrize(
    ("inputs", "shapes", "text"),
    [
        ([spec("x", "V", 32), EDGES], ((20, 32), (2, 60)), "read as 1 sample: x[V, 32], edge_index[2, E] each whole"),
        ([spec("x", "N", 4), spec("y", "N", 4)], ((3, 4), (3, 4)), "read as 3 samples: x[N, 4], y[N, 4] along axis 0"),
        (
            [spec("x", "N", 4), spec("y", 2, 4)],
            ((3, 4), (2, 4)),
            "read as 3 samples: x[N, 4] along axis 0; y[2, 4] the same for all",
        ),
        (
            [spec("x", "N", 4), spec("h", 1, "N", 4)],
            ((3, 4), (1, 3, 4)),
            "read as 3 samples: x[N, 4] along axis 0; h[1, N, 4] along axis 1",
        ),
    ],
)
def test_the_reading_is_said_in_one_line(inputs, shapes, text):
    assert open_feed(arrays(inputs, shapes), inputs).reading == text


def test_the_reading_counts_what_is_used_and_knows_dicts_and_streams():
    inputs = [spec("x", "N", 4)]
    given = arrays(inputs, ((30, 4),))
    assert open_feed(given, inputs).limit(8).reading == "read as 8 samples: x[N, 4] along axis 0"
    assert open_feed([given], inputs).reading == "read as 1 sample: x[N, 4] whole"
    assert open_feed(lambda: iter([given]), inputs).reading == "read sample by sample: x[N, 4] whole"
    assert open_feed("random", inputs).reading == ""


def test_a_run_that_fails_says_how_the_data_was_read():
    inputs = [spec("x", "N", 4)]
    feed = open_feed(arrays(inputs, ((3, 4),)), inputs)
    with pytest.raises(RunFailure) as caught, feed.explaining():
        raise RunFailure("onnxruntime failed while running the model on x: float32[1, 4]: reason")
    assert "read as 3 samples: x[N, 4] along axis 0; --batch-axis" in caught.value.hint
    made_up = open_feed("random", inputs)
    with pytest.raises(RunFailure) as caught, made_up.explaining():
        raise RunFailure("what")
    assert caught.value.hint == ""


def test_a_feed_knows_which_sample_of_the_data_it_is_made_of():
    inputs = [spec("x", "N", 4)]
    feed = open_feed(arrays(inputs, ((30, 4),)), inputs)
    assert feed.limit(3).place(1) == "sample 10 of the data"
    assert feed.limit(3).limit(2).place(1) == "sample 10 of the data"
    assert feed.batches(4).place(1) == "one of the samples 4 to 7 of the data"
    assert feed.batches(4).place(1, 2) == "sample 6 of the data"
    assert feed.place(3, 0) == "row 0 of sample 3 of the data"
    assert feed.place(999) == "feed 999"
    stream = open_feed(lambda: [arrays(inputs, ((1, 4),))] * 9, inputs)
    assert stream.split(0.5)[1].limit(4).place(2) == "sample 5 of the data"
