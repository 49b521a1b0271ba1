"""Feeds from named arrays: names, batch rules, casts, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.calibrate.feeds import FeedOptions, open_feed
from onnxq.errors import ConfigError, DataError
from onnxq.graph.signature import TensorSpec

F32, F16, I64, U8 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int64), np.dtype(np.uint8)
IMAGE = TensorSpec("x", F32, ("batch", 3, 4, 4))
FIXED = TensorSpec("x", F32, (4, 3))
PAIR = (TensorSpec("a", F32, ("batch", 2)), TensorSpec("b", I64, ("batch", "seq")))
SILERO = (
    TensorSpec("input", F32, (None, None)),
    TensorSpec("state", F32, (2, None, 8)),
    TensorSpec("sr", I64, ()),
)


def floats(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


# ---- names, counts, batch rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_npz_gives_single_samples_again_and_again(tmp_path, writer):
    x = floats(5, 3, 4, 4)
    writer(tmp_path / "calib.npz", x=x, labels=np.arange(5))
    feed = open_feed(tmp_path / "calib.npz", [IMAGE])
    assert (feed.samples, feed.len_hint, feed.ignored, feed.warning) == (5, 5, ("labels",), None)
    assert feed.description == "calib.npz, 5 samples"
    for _ in range(2):
        got = list(feed)
        assert [list(f) for f in got] == [["x"]] * 5
        assert all(f["x"].shape == (1, 3, 4, 4) and f["x"].flags.c_contiguous for f in got)
        np.testing.assert_array_equal(np.concatenate([f["x"] for f in got]), x)
    np.testing.assert_array_equal(feed.labels("labels"), np.arange(5))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_batch_size_never_changes_the_samples(size):
    x = floats(5, 3, 4, 4)
    feed = open_feed({"x": x}, [IMAGE], options=FeedOptions(batch_size=size))
    got = [f["x"] for f in feed]
    assert len(got) == feed.len_hint == -(-5 // size)
    np.testing.assert_array_equal(np.concatenate(got), x)


def test_a_fixed_batch_axis_is_respected_and_the_rest_dropped():
    x, labels = floats(10, 3), np.arange(10)
    feed = open_feed({"x": x, "y": labels}, [FIXED], options=FeedOptions(batch_size=3))
    got = [f["x"] for f in feed]
    assert [g.shape for g in got] == [(4, 3), (4, 3)]
    assert feed.len_hint == 2
    np.testing.assert_array_equal(np.concatenate(got), x[:8])
    np.testing.assert_array_equal(feed.labels("y"), labels[:8])


def test_fewer_samples_than_the_fixed_batch_is_an_error():
    with pytest.raises(DataError, match=r"no 4 samples.*fixed at 4.*at least 4 samples"):
        list(open_feed({"x": floats(3, 3)}, [FIXED]))


def test_rank_plus_one_is_a_complete_input_a_sample():
    x = floats(3, 4, 3)
    feed = open_feed({"x": x}, [FIXED])
    assert feed.len_hint == 3
    np.testing.assert_array_equal(np.stack([f["x"] for f in feed]), x)


def test_a_rank_one_input_without_batch_axis():
    spec = TensorSpec("wave", F32, (16,))
    assert [f["wave"].shape for f in open_feed({"wave": floats(3, 16)}, [spec])] == [(16,)] * 3
    assert [f["wave"].shape for f in open_feed({"wave": floats(16)}, [spec])] == [(16,)]


def test_a_voice_detector_takes_state_and_scalar_as_constants_or_a_sample_each():
    x = floats(3, 512)
    constant = open_feed({"input": x, "state": floats(2, 1, 8), "sr": np.asarray(16000)}, SILERO)
    varying = open_feed({"input": x, "state": floats(3, 2, 1, 8), "sr": np.full(3, 16000)}, SILERO)
    for feed in (constant, varying):
        got = list(feed)
        assert [f["input"].shape for f in got] == [(1, 512)] * 3
        assert {f["state"].shape for f in got} == {(2, 1, 8)}
        assert {(f["sr"].shape, int(f["sr"]), f["sr"].dtype) for f in got} == {((), 16000, I64)}


def test_length_one_serves_all_samples():
    feed = open_feed({"a": floats(1, 2), "b": np.zeros((3, 7), np.int64)}, PAIR, options=FeedOptions(batch_size=3))
    (got,) = feed
    np.testing.assert_array_equal(got["a"], np.repeat(floats(1, 2), 3, axis=0))


def test_a_scalar_that_varies_begins_a_new_batch():
    inputs = (TensorSpec("x", F32, ("n", 2)), TensorSpec("k", I64, ()))
    data = {"x": floats(4, 2), "k": np.array([1, 1, 2, 2])}
    got = list(open_feed(data, inputs, options=FeedOptions(batch_size=4)))
    assert [(f["x"].shape[0], int(f["k"])) for f in got] == [(2, 1), (2, 2)]


def test_a_time_axis_is_no_batch_axis():
    spec = TensorSpec("x", F32, ("seq_len", 1, 4))
    other = TensorSpec("x", F32, ("s0", "batch", 4))
    for one in (spec, other):
        assert [f["x"].shape for f in open_feed({"x": floats(2, 9, 1, 4)}, [one])] == [(9, 1, 4)] * 2


def test_unnamed_array_serves_a_single_input(tmp_path):
    np.savez(tmp_path / "a.npz", floats(2, 3, 4, 4), labels=np.arange(2))
    np.save(tmp_path / "b.npy", floats(2, 3, 4, 4))
    for name in ("a.npz", "b.npy"):
        assert open_feed(str(tmp_path / name), [IMAGE]).samples == 2
    assert open_feed(floats(2, 3, 4, 4), [IMAGE]).samples == 2


def test_dims_pin_symbolic_dimensions():
    with pytest.raises(DataError, match=r"\[2, 7\] but the model wants \[batch, 8\]"):
        open_feed({"a": floats(2, 2), "b": np.zeros((2, 7), np.int64)}, PAIR, options=FeedOptions(dims={"seq": 8}))
    with pytest.raises(ConfigError, match=r"no symbolic dimension 'sek'; did you mean 'seq'"):
        open_feed({}, PAIR, options=FeedOptions(dims={"sek": 8}))


# ---- casts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.array([[0, 255]], np.uint8), F32),
        (np.array([[2**24, 2**25]], np.int64), F32),
        (np.array([[1, 2]], np.int32), I64),
        (np.array([[1, 255]], np.int64), U8),
        (np.array([[0.1, 1e30]], np.float64), F32),
        (np.array([[0.1, 6e4]], np.float32), F16),
        (np.array([[0, 1]], np.int64), np.dtype(bool)),
        (np.array([[True, False]]), F32),
        (np.array([[1.5, 2.0]], ">f4"), F32),
    ],
)
def test_lossless_casts(value, wanted):
    (got,) = open_feed({"x": value}, [TensorSpec("x", wanted, ("n", 2))])
    assert got["x"].dtype == wanted
    np.testing.assert_array_equal(got["x"], value.astype(wanted))


@pytest.mark.parametrize(
    ("value", "wanted", "message"),
    [
        (np.array([[1.0, 2.0]]), I64, r"input 'x' \(the data\) has dtype float64 but the model wants int64"),
        (np.array([[1 + 2j, 0]]), F32, "complex128"),
        (np.array([[1.0, 2.0]]), np.dtype(bool), "wants bool"),
        (np.array([[0, 256]]), U8, "sample 0 holds values .from 0 to 256. that the model's uint8 cannot hold"),
        (np.array([[2**24 + 1, 0]]), F32, "float32 cannot hold"),
        (np.array([[1e39, 0]]), F32, "float32 cannot hold"),
        (np.array([[7e4, 0]], np.float32), F16, "float16 cannot hold"),
        (np.array([[0, 2]]), np.dtype(bool), "bool cannot hold"),
        (np.array([["a", "b"]]), F32, "<U1"),
    ],
)
def test_lossy_casts_are_errors(value, wanted, message):
    with pytest.raises(DataError, match=message):
        list(open_feed({"x": value}, [TensorSpec("x", wanted, ("n", 2))]))


@pytest.mark.parametrize("wanted", [np.float32, np.float64])
def test_infinity_is_data_as_masks_hold_it(wanted):
    mask = np.where(np.arange(12).reshape(3, 4) % 3, 0.0, -np.inf)
    (feed,) = open_feed({"mask": mask}, [TensorSpec("mask", wanted, ("n", 4))], options=FeedOptions(batch_size=3))
    np.testing.assert_array_equal(feed["mask"], mask.astype(wanted))
    with pytest.raises(DataError, match="cannot hold"):
        list(open_feed({"mask": np.array([[1e300, -np.inf]])}, [TensorSpec("mask", np.float32, ("n", 2))]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_data(dtype):
    x = floats(6, 3, 4, 4).astype(dtype)
    x[4, 0, 0, 0] = np.nan
    got = np.concatenate([f["x"] for f in open_feed({"x": x}, [IMAGE])])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, x.astype(np.float32))


def test_strings_pass_as_objects():
    (got,) = open_feed({"s": np.array(["hello"])}, [TensorSpec("s", np.dtype(object), ("n",))])
    assert got["s"].tolist() == ["hello"]
    assert got["s"].dtype == object


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"X_": floats(2, 3, 4, 4)}, "no array for the input 'x'.*holds 'X_'.*wants 'x'; rename 'X_' to 'x'"),
        ({"p": floats(2), "q": floats(2)}, "add an array named 'x'"),
        ({"arr_0": floats(2), "arr_1": floats(2)}, "no array for the input 'x'"),
        ({}, "holds nothing"),
        ({"x": floats(3, 4, 4)}, r"shape \[3, 4, 4\], the model wants \[batch, 3, 4, 4\].*array\[None\]"),
        ({"x": floats(2, 4)}, r"shape \[2, 4\].*rank 4"),
        ({"x": floats(2, 3, 4, 5)}, r"shape \[2, 3, 4, 5\] but the model wants \[batch, 3, 4, 4\]"),
        ({"x": floats(0, 3, 4, 4)}, "is empty: it holds 0 samples"),
        ({"x": [[1, 2], [3]]}, "array 'x' of the data is not an array"),
        ({"x": [object()]}, "holds list objects, not numbers"),
    ],
)
def test_mappings_that_do_not_fit(data, message):
    with pytest.raises(DataError, match=message) as caught:
        open_feed(data, [IMAGE])
    assert "\n" not in str(caught.value)


def test_different_sample_counts():
    with pytest.raises(DataError, match=r"different numbers of samples \('a' 2, 'b' 3\)"):
        open_feed({"a": floats(2, 2), "b": np.zeros((3, 7), np.int64)}, PAIR)


def test_near_names_are_suggested():
    with pytest.raises(DataError, match="rename 'input_id' to 'input_ids'"):
        open_feed(
            {"input_id": np.zeros((2, 7), np.int64), "y": np.zeros(2)},
            [TensorSpec("input_ids", I64, ("batch", "seq"))],
        )


def test_one_array_for_two_inputs():
    with pytest.raises(DataError, match="one array, but the model has the inputs 'a', 'b'"):
        open_feed(floats(2, 2), PAIR)
