"""onnxruntime's refusals become one line that names the file, the reason and the cure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from measure_models import Graph, conv_net, feeds, linear_net, one_node

from onnxq.errors import DataError, ModelError, OnnxqError, RuntimeFailure
from onnxq.measure import model_size
from onnxq.runtime.session import open_session, run


def failure(model: Path | bytes) -> str:
    with pytest.raises(OnnxqError) as caught:
        open_session(model)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_a_newer_opset_names_both_versions_and_the_cure() -> None:
    text = failure(one_node("Relu", [2], opset=99))
    assert "opset 99" in text
    assert onnxruntime.__version__ in text
    assert "upgrade onnxruntime" in text


def test_a_newer_ir_version_names_both_versions_and_the_cure() -> None:
    text = failure(one_node("Relu", [2], ir=77))
    assert "IR version 77" in text
    assert onnxruntime.__version__ in text
    assert "upgrade onnxruntime" in text


def test_foreign_truncated_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert "net.onnx" in failure(path)
    path.write_bytes(b"hello world")
    assert "net.onnx is not an ONNX model" in failure(path)
    path.write_bytes(conv_net()[:-40])
    assert "truncated" in failure(path)
    with pytest.raises(ModelError, match="no graph"):
        open_session(b"")


def test_an_unknown_operator_is_named() -> None:
    model = onnx.load_from_string(one_node("Relu", [2]))
    model.graph.node[0].domain = "my.domain"
    model.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))
    assert "my.domain:Relu" in failure(model.SerializeToString())


def external(folder: Path) -> Path:
    g = Graph()
    g.node("MatMul", ["x", g.const("w", g.random(64, 32))], "y")
    model = onnx.load_from_string(g.model({"x": [1, 64]}, {"y": [1, 32]}))
    path = folder / "big.onnx"
    onnx.save(model, path, save_as_external_data=True, location="big.data", size_threshold=16)
    return path


def test_external_data_loads_counts_and_is_missed(tmp_path: Path) -> None:
    path = external(tmp_path)
    assert run(open_session(path), {"x": np.zeros((1, 64), np.float32)})[0].shape == (1, 32)
    size = model_size(path)
    assert size.external_bytes == 64 * 32 * 4
    assert size.file_bytes == path.stat().st_size + size.external_bytes
    (tmp_path / "big.data").unlink()
    assert "big.data" in failure(path)


def test_saved_graph_is_the_optimised_one(tmp_path: Path) -> None:
    open_session(conv_net(), optimize="extended", save_optimized=tmp_path / "o.onnx")
    ops = {node.op_type for node in onnx.load(tmp_path / "o.onnx", load_external_data=False).graph.node}
    assert "QLinearConv" in ops


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({"z": np.zeros((2, 16), np.float32)}, "x"),
        ({"x": np.zeros((2, 15), np.float32)}, "15"),
        ({"x": np.zeros((2, 16, 1), np.float32)}, "rank"),
        ({"x": np.zeros((2, 16))}, "double"),
        ({"x": np.zeros((2, 16), np.float32), "z": np.zeros(1, np.float32)}, "z"),
    ],
)
def test_feeds_that_do_not_fit_are_data_errors(feed: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=words):
        run(open_session(linear_net(quantized=False)), feed)


def test_failing_runs_are_runtime_failures() -> None:
    g = Graph()
    g.node("Reshape", ["x", g.const("shape", np.array([7, 7]))], "y")
    model = g.model({"x": ["n"]}, {"y": None})
    with pytest.raises(RuntimeFailure, match="Reshape"):
        run(open_session(model), {"x": np.zeros(5, np.float32)})


def test_parameters_are_counted_in_bodies_and_constants_without_shapes() -> None:
    size = model_size(conv_net())
    weights = 8 * 4 * 9 + 8 * 8
    assert size.by_dtype["int8"] == weights + 2 * 8  # and zero points
    assert size.file_bytes == len(conv_net())
    g = Graph()
    g.node("Constant", [], "k", value=onnx.numpy_helper.from_array(np.ones((3, 5), np.float32)))
    g.node("Reshape", ["k", g.const("shape", np.array([5, 3]))], "y")
    counted = model_size(g.model({"x": [1]}, {"y": [5, 3]}))
    assert (counted.parameters, counted.by_dtype) == (15, {"float": 15, "int64": 2})


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    g = Graph()
    g.const("unused", np.ones(20, np.float32))  # onnxruntime warns of it on stderr
    g.node("Relu", ["x"], "y")
    open_session(g.model({"x": [2]}, {"y": [2]}))
    failure(one_node("Relu", [2], opset=99))
    with pytest.raises(DataError):
        run(open_session(conv_net()), feeds(1, 1, 3, 8, 8)[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "said",
    [
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for QuantizeLinear(28) node with "
        "name 'x_q_node'",
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Failed to find kernel for QuantizeLinear(28) (node:'q' ep:'CPU').",
    ],
    ids=["1.32", "1.19"],
)
def test_a_missing_kernel_names_the_operator(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded from the releases named, since which kernels are missing changes with every one of them."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    text = failure(one_node("Relu", [2], opset=28))
    assert "(opset 28) needs QuantizeLinear of opset 28" in text
    assert "upgrade onnxruntime" in text


HOST = """
import sys
import onnxruntime as ort
from onnxq.errors import OnnxqError
from onnxq.runtime.session import open_session

ort.set_default_logger_severity(1)
for path in sys.argv[1:3]:
    try:
        open_session(path if path.endswith("net.onnx") else b"broken")
    except OnnxqError:
        pass
print("onnxq is done", file=sys.stderr, flush=True)
ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize("second", ["net.onnx", "broken"])
def test_the_hosts_logger_is_as_it_was(tmp_path: Path, second: str) -> None:
    """A host that asks onnxruntime for its log hears it behind onnxq, and nothing from within."""
    path = tmp_path / "net.onnx"
    path.write_bytes(conv_net())
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(path), str(tmp_path / second)], capture_output=True, text=True, check=True
    )
    within, behind = done.stderr.split("onnxq is done\n")
    assert "[I:onnxruntime:" in behind
    assert "Initializing session" in behind
    assert "Initializing session" not in within
