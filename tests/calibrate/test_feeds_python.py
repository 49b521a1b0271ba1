"""Feeds from lists, iterables, functions and ``random``; limit and split of every kind of source."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibrate.feeds import Feed, FeedOptions, open_feed
from onnxq.errors import ConfigError, DataError
from onnxq.graph.signature import TensorSpec

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
X = TensorSpec("x", F32, ("n", 2))
FIXED = TensorSpec("x", F32, (4, 2))


def numbered(count: int) -> np.ndarray:
    """[count, 2] float32, each row its number."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)


def order(feed: Feed) -> list[int]:
    return [int(v) for f in feed for v in f["x"][:, 0]]


def rows(count: int):
    for row in numbered(count):
        yield {"x": row, "label": int(row[0]) % 3}


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_a_list_of_dicts():
    feed = open_feed(list(rows(5)), [X])
    assert order(feed) == order(feed) == [0, 1, 2, 3, 4]
    assert (feed.samples, feed.len_hint, feed.ignored) == (5, 5, ("label",))
    assert feed.labels("label").tolist() == [0, 1, 2, 0, 1]


def test_a_dict_is_a_feed_with_its_own_rows():
    feed = open_feed([{"x": numbered(5)}, {"x": numbered(2)}], [X])
    assert [f["x"].shape for f in feed] == [(5, 2), (2, 2)]
    fixed = open_feed([{"x": numbered(5)}, {"x": numbered(3)}], [FIXED])
    assert [f["x"][:, 0].tolist() for f in fixed] == [[0, 1, 2, 3], [4, 0, 1, 2]]


def test_several_rows_of_a_state_that_is_no_batch_stay_together():
    inputs = (TensorSpec("x", F32, ("batch", 2)), TensorSpec("h", F32, (2, "batch", 3)))
    (got,) = open_feed([{"x": numbered(4), "h": np.zeros((2, 4, 3), np.float32)}], inputs)
    assert got["x"].shape == (4, 2)
    assert got["h"].shape == (2, 4, 3)


def test_a_function_is_called_anew_for_every_pass():
    calls = []
    feed = open_feed(lambda: calls.append(1) or rows(3), [X], options=FeedOptions(batch_size=2))
    assert calls == []
    assert [f["x"].shape[0] for f in feed] == [2, 1]
    assert order(feed) == [0, 1, 2]
    assert (len(calls), feed.samples, feed.len_hint) == (2, None, None)
    assert feed.labels("label").tolist() == [0, 1, 2]


def test_a_re_iterable_is_read_lazily():
    reached = []

    class Loader:
        def __iter__(self):
            for item in rows(100):
                reached.append(1)
                yield item

        def __len__(self):
            return 100

    feed = open_feed(Loader(), [X])
    assert (feed.samples, feed.len_hint) == (100, 100)
    next(iter(feed))
    assert len(reached) == 1
    assert order(feed.limit(3)) == [0, 1, 2]
    assert feed.limit(3).samples == 3


def test_a_feed_passes_through():
    feed = open_feed(numbered(2), [X])
    assert open_feed(feed, [X]) is feed


MODULE = """
import numpy as np

def make():
    for i in range(4):
        yield {"x": np.full(2, i, np.float32)}

def broken():
    yield {"x": np.zeros(2, np.float32)}
    raise RuntimeError("disk on\\nfire")

def at_once():
    raise KeyError("nope")

def number():
    return 3

def arrays():
    return [np.zeros(2)]

listed = [{"x": np.zeros(2, np.float32)}]
"""


def test_module_and_file_references(tmp_path, monkeypatch):
    (tmp_path / "onnxq_test_feed_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    module, file = "onnxq_test_feed_module", str(tmp_path / "onnxq_test_feed_module.py")
    for place in (module, file):
        feed = open_feed(f"{place}:make", [X])
        assert order(feed) == order(feed) == [0, 1, 2, 3]
        assert feed.description == f"{place}:make"
        assert open_feed(f"{place}:listed", [X]).samples == 1
    assert sys.path == before
    (tmp_path / "wrong.py").write_text("import no_such_module_at_all")
    for name, message in {
        f"{module}:broken": r"broken raised RuntimeError at sample 1: disk on fire",
        f"{module}:at_once": r"at_once raised KeyError",
        f"{module}:number": r"number returns int; return an iterable",
        f"{module}:arrays": r"arrays yields ndarray, not dicts",
        f"{module}:absent": r"no function 'absent'",
        "no_such_module_at_all:f": r"cannot be imported: ModuleNotFoundError",
        "wrong.py:f": r"cannot be imported: ModuleNotFoundError",
        "absent.py:f": r"there is no file absent.py",
        "no such thing": r"no file or folder no such thing",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            list(open_feed(name, [X]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the data is empty"),
        (lambda: iter(()), "is empty: .*anew in every pass"),
        ((r for r in rows(2)), r"only once \(generator\); give a list"),
        (3, "the data is int"),
        ([numbered(2)], "yields ndarray, not dicts"),
        ([{"x": numbered(1)[0]}, {"z": 1}], "sample 1 of the data has no array for the input 'x'.*rename 'z'"),
        ([{"x": np.zeros((2, 3), np.float32)}], r"sample 0, has shape \[2, 3\] but the model wants \[n, 2\]"),
        ([{"x": np.zeros((1, 1, 2), np.float32)}], r"shape \[1, 1, 2\]"),
        ([{"x": np.full(2, 1e300)}], "input 'x' .the data. has dtype float64, and sample 0 holds values"),
        ([{"x": np.zeros((0, 2))}], "0 rows"),
    ],
)
def test_python_values_that_do_not_fit(source, message):
    with pytest.raises(DataError, match=message) as caught:
        list(open_feed(source, [X]))
    assert "\n" not in str(caught.value)


def test_labels_missing_from_dicts():
    feed = open_feed([{"x": numbered(1), "labels": 1}], [X])
    with pytest.raises(DataError, match="did you mean 'labels'"):
        feed.labels("label")


# ---- random ----------------------------------------------------------------------------------------------------------


def test_random_only_by_name_and_with_a_warning():
    inputs = (
        TensorSpec("x", F32, ("batch", 3, "height", None)),
        TensorSpec("ids", I64, ("batch", "height")),
        TensorSpec("attention_mask", I64, ("batch", "height")),
        TensorSpec("k", np.dtype(np.uint8), ("batch", 2)),
    )
    options = FeedOptions(dims={"height": 5, "x.3": 6}, limit=3, seed=1)
    feed = open_feed("random", inputs, options=options)
    first, again = list(feed), list(feed)
    assert len(first) == feed.samples == 3
    assert feed.warning is not None
    assert "\n" not in feed.warning
    assert first[0]["x"].shape == (1, 3, 5, 6)
    assert set(np.unique(first[0]["ids"])) <= {0, 1}
    assert (first[0]["attention_mask"] == 1).all()
    assert {k: v.dtype for k, v in first[0].items()} == {s.name: s.dtype for s in inputs}
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(first, again, strict=True) for k in a)
    assert not np.array_equal(first[0]["x"], first[1]["x"])
    other = open_feed("random", inputs, options=FeedOptions(dims=options.dims, limit=3, seed=2))
    assert not np.array_equal(first[0]["x"], next(iter(other))["x"])


def test_random_needs_numbers_for_symbolic_dimensions():
    with pytest.raises(DataError, match=r"dimension 'height' of the input x.*dims=\{'height': ...\}"):
        open_feed("random", [TensorSpec("x", F32, ("batch", 3, "height", 8))])
    with pytest.raises(DataError, match=r"dims=\{'x.1': ...\}"):
        open_feed("random", [TensorSpec("x", F32, ("batch", None))])
    with pytest.raises(DataError, match="cannot be made for the input s"):
        open_feed("random", [TensorSpec("s", np.dtype(object), (1,))])


def test_random_fills_a_fixed_batch():
    assert {f["x"].shape for f in open_feed("random", [TensorSpec("x", F32, (32, 2))])} == {(32, 2)}


# ---- limit and split -------------------------------------------------------------------------------------------------


def test_limit_is_evenly_spaced():
    feed = open_feed(numbered(10), [X])
    assert order(feed.limit(5)) == [0, 2, 4, 6, 8]
    assert order(feed.limit(3)) == [0, 3, 6]
    assert feed.limit(99) is feed
    assert feed.limit(4).description == "the data, 10 samples (4 used)"
    assert order(open_feed(numbered(10), [X], options=FeedOptions(limit=2))) == [0, 5]
    assert order(feed.limit(6).limit(2)) == [0, 5]
    with pytest.raises(ConfigError, match="at least 1"):
        feed.limit(0)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(2, 60), share=st.one_of(st.floats(0.01, 0.99), st.integers(1, 59)), seed=st.integers(0, 99))
def test_split_is_disjoint_complete_and_repeatable(count, share, seed):
    feed = open_feed(numbered(count), [X])
    if share >= count:
        with pytest.raises(DataError, match="too few to hold out"):
            feed.split(share, seed=seed)
        return
    rest, held = feed.split(share, seed=seed)
    a, b = order(rest), order(held)
    assert sorted(a + b) == list(range(count))
    assert a == sorted(a)
    assert b == sorted(b)
    assert len(b) == (share if share >= 1 else max(1, int(share * count)))
    assert [order(part) for part in feed.split(share, seed=seed)] == [a, b]
    assert (rest.samples, held.samples) == (len(a), len(b))


def test_split_depends_on_the_seed():
    feed = open_feed(numbered(50), [X])
    assert order(feed.split(0.5, seed=0)[1]) != order(feed.split(0.5, seed=1)[1])


def test_split_keeps_whole_batches_with_a_fixed_batch_axis():
    feed = open_feed(numbered(18), [FIXED])
    rest, held = feed.split(0.25)
    a, b = order(rest), order(held)
    assert (len(a), len(b)) == (12, 4)
    assert sorted(a + b) == list(range(16))
    assert len(order(feed.split(5)[1])) == 8


@pytest.mark.parametrize(("share", "held"), [(0.5, [1, 3, 5, 7, 9]), (0.25, [3, 7]), (2, [1, 3])])
def test_split_of_a_callable_goes_by_number(share, held):
    feed = open_feed(lambda: rows(10), [X])
    rest, kept = feed.split(share, seed=3)
    assert order(kept) == order(kept) == held
    assert order(rest) == [i for i in range(10) if i not in held]
    assert kept.labels("label").tolist() == [i % 3 for i in held]
    assert order(rest.limit(2)) == order(rest)[:2]


def test_split_of_a_callable_with_a_fixed_batch_deals_whole_batches():
    rest, held = open_feed(lambda: rows(16), [FIXED]).split(0.5)
    assert order(rest) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert order(held) == [4, 5, 6, 7, 12, 13, 14, 15]


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_split_refuses_nonsense(share):
    with pytest.raises(ConfigError, match="fraction"):
        open_feed(numbered(10), [X]).split(share)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"limit": 0}, {"max_length": 0}, {"dims": {"n": 0}}])
def test_options_refuse_nonsense(bad):
    with pytest.raises(ConfigError, match="at least 1"):
        FeedOptions(**bad)
