"""Data whose first axes count no samples, from end to end: edge lists, time-first sequences; and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from typer.testing import CliRunner
from zoo import Net

import onnxq
from onnxq.cli.app import app

I64 = TensorProto.INT64
CONFIG = onnxq.Config(latency_seconds=0.0, placement="all")


def graph_network() -> onnx.ModelProto:
    """x [V, 16], edge_index [2, E] -> messages from source to target, added up -> y [V, 4]."""
    n = Net(1)
    n.const("from", 0, np.int64), n.const("to", 1, np.int64), n.const("second", [1], np.int64)
    source, target = (n("Gather", "edge_index", end, name=f"{end}_nodes", axis=0) for end in ("from", "to"))
    message = n("Relu", n.linear(n("Gather", "x", source, name="read"), 16, 32, name="say"), name="said")
    own = n.linear("x", 16, 32, name="own")
    at = n("Expand", n("Unsqueeze", target, "second", name="column"), n("Shape", message, name="many"), name="at")
    y = n("ScatterElements", own, at, message, name="hear", axis=0, reduction="add")
    n.linear(y, 32, 4, name="tell", out="y")
    return n.model({"x": ["V", 16], "edge_index": (I64, [2, "E"])}, {"y": ["V", 4]})


def graphs(count: int = 24) -> list[dict[str, np.ndarray]]:
    made = []
    for i in range(count):
        rng, nodes = np.random.default_rng(i), 8 + i % 5
        edges = rng.integers(0, nodes, (2, 3 * nodes))
        made.append({"x": rng.standard_normal((nodes, 16)).astype(np.float32), "edge_index": edges})
    return made


def recurrent() -> onnx.ModelProto:
    """x [T, N, 16] and lengths [N] -> LSTM -> y [T, N, 8]."""
    n = Net(2)
    n.const("second", [1], np.int64)
    w, r = n.weight("w", 1, 128, 16, fan=16), n.weight("r", 1, 128, 32, fan=32)
    (steps,) = n.many("LSTM", "x", w, r, "", "lengths", name="lstm", count=1, hidden_size=32)
    n.linear(n("Squeeze", steps, "second", name="forward"), 32, 8, name="say", out="y")
    inputs = {"x": ["T", "N", 16], "lengths": (TensorProto.INT32, ["N"])}
    return n.model(inputs, {"y": ["T", "N", 8]}, opset=14)


def sequences(count: int = 24) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {"x": rng.standard_normal((12, 3, 16)).astype(np.float32), "lengths": np.array([12, 9, 5 + i % 7], np.int32)}
        for i in range(count)
    ]


def saved(folder: Path, model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> tuple[Path, Path]:
    path, data = folder / "model.onnx", folder / "data"
    onnx.save(model, str(path))
    data.mkdir()
    for i, feed in enumerate(feeds):
        np.savez(data / f"{i:03d}.npz", **feed)
    return path, data


@pytest.mark.parametrize(
    ("model", "feeds", "reading"),
    [
        (graph_network, graphs, "read as 24 samples: x[V, 16], edge_index[2, E] each whole"),
        (recurrent, sequences, "read as 24 samples: x[T, N, 16], lengths[N] each whole"),
    ],
)
def test_each_file_is_one_sample(tmp_path: Path, model, feeds, reading: str) -> None:
    path, data = saved(tmp_path, model(), feeds())
    result = onnxq.quantize(str(path), str(data), config=CONFIG)
    assert result.good
    assert result.plan.layers
    assert result.comparison is not None
    assert result.comparison.feeds == 3
    assert result.comparison.sqnr_db is not None
    assert result.comparison.sqnr_db > 25
    assert any(note.startswith(f"{reading} (--batch-axis INPUT=AXIS") for note in result.report.notes)


@pytest.mark.parametrize("adapt", ["fast"])
def test_whole_samples_can_be_adapted_to(tmp_path: Path, adapt: str) -> None:
    config = onnxq.Config(latency_seconds=0.0, placement="all", adapt=adapt)
    assert onnxq.quantize(graph_network(), graphs(), config=config).good


def test_a_run_that_fails_says_how_the_data_was_read_and_what_to_type(tmp_path: Path) -> None:
    """The user insists that nodes are samples: edges then point to nodes that are not there."""
    path, data = saved(tmp_path, graph_network(), graphs())
    arguments = ["quantize", str(path), "--calib", str(data), "--batch-axis", "x=0", "--batch-axis", "edge_index=none"]
    done = CliRunner().invoke(app, [*arguments, "--latency", "0"])
    assert done.exit_code == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith(
        "error: onnxruntime failed while running model.onnx on x: float32[1, 16], edge_index: int64[2, "
    )
    assert "indices element out of data bounds" in error
    assert "report" not in done.stderr
    assert hint.startswith(
        "hint: the data was read as 238 samples: x[V, 16] along axis 0; edge_index[2, E] whole; --batch-axis"
    )


def test_the_axis_of_samples_can_be_said_on_the_command_line(tmp_path: Path) -> None:
    feeds = sequences()
    path = tmp_path / "model.onnx"
    onnx.save(recurrent(), str(path))
    joined = {
        "x": np.concatenate([f["x"] for f in feeds], axis=1),
        "lengths": np.concatenate([f["lengths"] for f in feeds]),
    }
    np.savez(tmp_path / "data.npz", **joined)
    arguments = ["quantize", str(path), "-c", str(tmp_path / "data.npz"), "--batch-axis", "x=1", "--latency", "0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "read as 72 samples: x[T, N, 16] along axis 1; lengths[N] along axis 0" in said


@pytest.mark.parametrize("text", ["x", "x=", "=1", "x=first", "x=1.5"])
def test_an_axis_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    done = CliRunner().invoke(app, ["quantize", str(tmp_path / "m.onnx"), "--batch-axis", text])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --batch-axis {text} names no axis\nhint: give INPUT=AXIS")


def test_outputs_of_whole_samples_are_kept_one_a_run() -> None:
    feeds = graphs(3)
    outputs = onnxq.run_model(graph_network(), feeds)
    assert [o.shape for o in outputs["y"]] == [(len(f["x"]), 4) for f in feeds]
