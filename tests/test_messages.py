"""What messages call things, and that no two of them contradict each other."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config, ModelError, quantize
from onnxq.config import preset
from onnxq.errors import RunFailure
from onnxq.graph.copying import called
from onnxq.graph.io import load
from onnxq.runtime.proto import NamedBytes, label
from onnxq.runtime.session import open_session, run


def chain(*, scale: float = 1.0, size: int = 64) -> onnx.ModelProto:
    """Two products with Tanh between; the weights of the first are about as large as ``scale``."""
    rng = np.random.default_rng(0)
    first = np.clip(rng.standard_normal((size, size)) * scale, -3e38, 3e38)
    constants = {"w": first, "v": rng.standard_normal((size, size)) / np.sqrt(size)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Tanh", ["a"], ["t"], "between"),
        helper.make_node("MatMul", ["t", "v"], ["y"], "second"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name in "xy")
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "chain", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data(size: int = 64) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((32, size)).astype(np.float32) * np.float32(1e-3)}


def test_a_model_is_called_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "chain.onnx"
    onnx.save(chain(), path)
    result = quantize(path, data(), config=Config(placement="all", latency_seconds=0.0))
    assert result.comparison is not None
    assert result.comparison.float_model == "chain.onnx"
    assert result.comparison.quantized_model == "the quantized chain.onnx"
    assert called(load(path)) == "chain.onnx"
    assert called(load(chain())) == "the model in memory"
    quantized = tmp_path / "q.onnx"
    result.save(quantized)
    with pytest.raises(ModelError, match=r"^q\.onnx is already quantized"):
        quantize(quantized, data())


def test_bytes_may_have_a_name() -> None:
    assert label(NamedBytes(b"1", "m.onnx")) == "m.onnx"
    assert NamedBytes(b"1", "m.onnx") == b"1"
    assert label(b"1") == "the model in memory"


def test_a_failing_run_says_which_model_it_was() -> None:
    nodes = [helper.make_node("Gather", ["w", "i"], ["y"], "rows")]
    ends = [helper.make_tensor_value_info(n, t, ["N"]) for n, t in (("i", TensorProto.INT64), ("y", TensorProto.FLOAT))]
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(NamedBytes(proto.SerializeToString(), "rows.onnx"))
    with pytest.raises(RunFailure, match=r"running rows\.onnx on i: int64\[1\]: .*Name:'rows'"):
        run(session, {"i": np.array([9])})


def test_what_computes_with_4_bits_is_not_said_to_compute_in_float() -> None:
    few = preset("w4")
    result = quantize(chain(size=128), data(128), config=replace(few, first_last=few.weights))
    notes = " ".join(result.report.notes)
    assert "compute with 4-bit weights" in notes
    assert "the computing is float" not in notes


@pytest.mark.parametrize("scale", [1e20, 3e38])
@pytest.mark.parametrize("adapt", ["none", "fast"])
def test_weights_at_the_end_of_their_type_give_no_warning(scale: float, adapt: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(chain(scale=scale), data(), config=Config(placement="all", adapt=adapt, latency_seconds=0.0))


def test_a_command_that_fails_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "chain.onnx"
    onnx.save(chain(), path)
    np.savez(tmp_path / "d.npz", x=np.ones((8, 63), np.float32))
    command = [sys.executable, "-m", "onnxq", "quantize", str(path), "-c", str(tmp_path / "d.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    first, *hint = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert "d.npz" in first
    assert len(hint) <= 1
