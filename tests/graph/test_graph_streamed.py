"""Large models written a tensor at a time are the same models."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.graph import io as graph_io
from onnxq.graph import streamed
from onnxq.graph.io import load, save, serialize


def wide(kind: type = np.float32) -> onnx.ModelProto:
    """Initializers of several sizes and types, one of them packed, in an order that is not that of their sizes."""
    rng = np.random.default_rng(0)
    arrays = {
        "small": rng.standard_normal((4, 4)).astype(np.float32),
        "first": rng.standard_normal((256, 200)).astype(kind),
        "codes": rng.integers(-128, 128, (400, 300)).astype(np.int8),
        "tiny": np.array(1, np.int64),
        "second": rng.standard_normal((200, 256)).astype(np.float32),
    }
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    held.append(helper.make_tensor("packed", TensorProto.INT4, [301, 501], rng.integers(-8, 8, 301 * 501)))
    nodes = [helper.make_node("MatMul", ["x", "second"], ["y"], "product")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", 200), ("y", 256))]
    graph = helper.make_graph(nodes, "wide", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_io, "STREAMED_ABOVE", 1)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_the_file_holds_what_a_message_would(kind: type, tmp_path: Path) -> None:
    model = load(wide(kind))
    (path,) = save(model, tmp_path / "m.onnx")
    found, wanted = onnx.load(path), onnx.ModelProto.FromString(serialize(model))
    tensors = [{t.name: t.SerializeToString() for t in proto.graph.initializer} for proto in (found, wanted)]
    assert tensors[0] == tensors[1]
    for proto in (found, wanted):
        del proto.graph.initializer[:]
    assert found == wanted
    assert path.stat().st_size == len(serialize(model))


def test_what_is_written_can_be_read_lazily_and_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.graph.lazy.LARGE_FILE", 1)
    (first,) = save(load(wide()), tmp_path / "a.onnx")
    model = load(first)
    assert isinstance(model.graph.initializers["second"].const_value, ir.ExternalTensor)
    (second,) = save(model, tmp_path / "b.onnx", external_above=10**9)
    assert second.read_bytes() == first.read_bytes()
    onnx.checker.check_model(onnx.load(second))


def test_a_model_is_not_changed_by_being_written(tmp_path: Path) -> None:
    model = load(wide())
    before = serialize(model)
    save(model, tmp_path / "m.onnx")
    assert serialize(model) == before


def test_writing_takes_the_memory_of_a_tensor() -> None:
    rng = np.random.default_rng(0)
    model = load(wide())
    for i in range(16):
        value = ir.Value(name=f"large{i}", const_value=ir.tensor(rng.standard_normal(250_000).astype(np.float32)))
        model.graph.initializers.add(value)  # 1 MB each
    tracemalloc.start()
    with open("/dev/null", "wb") as file:
        streamed.write_streamed(model, file, ir.to_proto)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


def test_a_tensor_that_lies_about_its_size_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "write_tensor", lambda tensor, file: tensor.nbytes - 1)
    with pytest.raises(ValueError, match=r"not the \d+ that it claims"):
        streamed.write_streamed(load(wide()), io.BytesIO(), ir.to_proto)
