"""Feeds from npz and npy files and folders of them: reading, laziness, labels, errors."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxq.calibrate import arrays as arrays_module
from onnxq.calibrate import file_array
from onnxq.calibrate.feeds import FeedOptions, open_feed
from onnxq.errors import DataError
from onnxq.graph.signature import TensorSpec

F32 = np.dtype(np.float32)
IMAGE = TensorSpec("x", F32, ("batch", 3, 4, 4))
FIXED = TensorSpec("x", F32, (4, 3))


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_files_that_cannot_be_read(tmp_path):
    good = save(tmp_path / "good.npz", x=floats(9, 3, 4, 4)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(good[:600])
    (tmp_path / "no.npz").write_text("not a zip")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], dtype=object))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "absent.npz": "there is no file or folder .*absent.npz",
        "cut.npz": "cut.npz cannot be read",
        "no.npz": "no.npz cannot be read",
        "objects.npz": "dtype object but the model wants float32",
        "cut.npy": "cut.npy cannot be read",
        "none.npz": "none.npz is empty",
        "data.csv": "data.csv is of no known kind",
        "folder": "folder .* is empty",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            list(open_feed(tmp_path / name, [IMAGE]))
        assert "\n" not in str(caught.value)


def test_a_file_truncated_after_opening(tmp_path):
    np.save(tmp_path / "x.npy", floats(9, 3, 4, 4))
    feed = open_feed(tmp_path / "x.npy", [IMAGE])
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"x.npy cannot be read \(it ends too early\)"):
        list(feed)


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [0, 2**30])
@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_rows_from_disk_stream_and_memory_are_the_same(tmp_path, monkeypatch, writer, resident):
    monkeypatch.setattr(file_array, "RESIDENT_BYTES", resident)
    x = np.random.default_rng(1).integers(0, 256, (20, 3, 4, 4), np.uint8)
    writer(tmp_path / "a.npz", x=x, f=np.asfortranarray(x), other=np.arange(3))
    arrays = arrays_module.open_arrays(tmp_path / "a.npz")
    for key in ("x", "f"):
        for rows in (slice(3, 4), slice(7, 9), slice(0, 1), slice(19, 20), slice(5, 99)):
            np.testing.assert_array_equal(arrays[key][rows], x[rows])
    kept = arrays["x"]._resident is not None
    assert kept == (writer is np.savez_compressed and resident > 0)  # an uncompressed array never enters memory whole


def test_bytes_stay_bytes_until_a_batch_needs_them(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((6, 3, 4, 4), np.uint8))
    arrays = arrays_module.open_arrays(tmp_path / "a.npz")
    assert arrays["x"][0:1].dtype == np.uint8
    (got,) = open_feed(tmp_path / "a.npz", [IMAGE], options=FeedOptions(batch_size=6))
    assert got["x"].dtype == np.float32


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_samples_and_batches_of_differing_shape(tmp_path):
    spec = TensorSpec("x", F32, ("batch", "time", 2))
    save(tmp_path / "0.npz", x=floats(5, 2), y=np.asarray(7))  # one sample
    save(tmp_path / "1.npz", x=floats(3, 4, 2), y=np.array([1, 2, 3]))  # a batch of three
    (tmp_path / "deep").mkdir()
    save(tmp_path / "deep" / "2.npz", x=floats(2, 9, 2), y=np.array([4, 5]))
    feed = open_feed(tmp_path, [spec])
    assert [f["x"].shape for f in feed] == [(1, 5, 2)] + [(1, 4, 2)] * 3 + [(1, 9, 2)] * 2
    assert (feed.samples, feed.len_hint, feed.ignored) == (6, 6, ("y",))
    assert feed.labels("y").tolist() == [7, 1, 2, 3, 4, 5]
    grouped = open_feed(tmp_path, [spec], options=FeedOptions(batch_size=2))
    assert [f["x"].shape for f in grouped] == [(1, 5, 2), (2, 4, 2), (1, 4, 2), (2, 9, 2)]
    assert [f["x"].shape for f in feed.limit(2)] == [(1, 5, 2), (1, 4, 2)]


def test_a_folder_of_npy_is_grouped_to_a_fixed_batch(tmp_path):
    x = floats(9, 3)
    for i, row in enumerate(x):
        np.save(tmp_path / f"{i}.npy", row)
    got = [f["x"] for f in open_feed(tmp_path, [FIXED])]
    np.testing.assert_array_equal(np.concatenate(got), x[:8])


def test_a_folder_is_read_file_by_file(tmp_path, monkeypatch):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", floats(3, 4, 4))
    (tmp_path / "3.npy").write_bytes(b"broken")
    (tmp_path / ".hidden.npy").write_bytes(b"broken")
    opened: list[str] = []
    real = arrays_module.open_arrays
    monkeypatch.setattr(arrays_module, "open_arrays", lambda p: opened.append(p.name) or real(p))
    feed = open_feed(tmp_path, [IMAGE])
    assert opened == ["0.npy"]
    iterator = iter(feed)
    for expected in (1, 2, 3):
        next(iterator)
        assert len(opened) == expected
    with pytest.raises(DataError, match=r"3\.npy cannot be read"):
        next(iterator)


def test_errors_in_folders_name_the_file(tmp_path):
    save(tmp_path / "0.npz", x=floats(3, 4, 4))
    save(tmp_path / "1.npz", x=floats(3, 4, 5))
    with pytest.raises(DataError, match=rf"{tmp_path.name}/1.npz.*shape \[3, 4, 5\]"):
        list(open_feed(tmp_path, [IMAGE]))
    bad = floats(2, 3, 4, 4).astype(np.float64)
    bad[1] = 1e300
    save(tmp_path / "1.npz", x=bad)
    with pytest.raises(DataError, match=r"1.npz\) has dtype float64, and sample 1 holds values"):
        list(open_feed(tmp_path, [IMAGE]))


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_that_do_not_fit():
    feed = open_feed({"x": floats(4, 3, 4, 4), "labels": np.arange(4), "short": np.arange(3)}, [IMAGE])
    with pytest.raises(DataError, match="no labels 'label'; did you mean 'labels'"):
        feed.labels("label")
    with pytest.raises(DataError, match=r"'short' of the data have shape \[3\]; give one for each of the 4 samples"):
        feed.labels("short")


def test_labels_follow_limit_and_split():
    x = np.arange(40, dtype=np.float32).reshape(40, 1)
    feed = open_feed({"x": x, "y": np.arange(40)}, [TensorSpec("x", F32, ("n", 1))])
    for part in (feed.limit(7), *feed.split(0.3, seed=5), feed.split(10)[1].limit(3)):
        assert [int(f["x"][0, 0]) for f in part] == part.labels("y").tolist()


def test_onnxruntime_runs_what_comes_out(tmp_path):
    import onnxruntime as ort
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = floats(3, 3, 4, 4)
    feed = open_feed(save(tmp_path / "a.npz", x=x), [IMAGE], options=FeedOptions(batch_size=2))
    np.testing.assert_array_equal(np.concatenate([session.run(None, f)[0] for f in feed]), x + x)


def test_a_broken_lzma_archive_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).random((64, 4), np.float32))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", buffer.getvalue())
    broken = bytearray(path.read_bytes())
    broken[200:600] = bytes(byte ^ 0x5A for byte in broken[200:600])
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"data\.npz") as caught:
        list(open_feed(path, [TensorSpec("x", np.dtype(np.float32), ("batch", 4))]))
    assert "\n" not in str(caught.value)
