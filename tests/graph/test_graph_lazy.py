"""Large model files whose weights stay in the file: the same model, and the usual errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from zoo import residual

from onnxq.errors import ModelError
from onnxq.graph import lazy
from onnxq.graph.io import load, save, serialize


@pytest.fixture
def lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is large, and every tensor but the smallest."""
    monkeypatch.setattr(lazy, "LARGE_FILE", 0)
    monkeypatch.setattr(lazy, "_LARGE_TENSOR", 64)


def written(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(residual(), path)
    return path


@pytest.mark.usefixtures("lazily")
def test_weights_stay_in_the_file_and_the_model_is_the_same(tmp_path: Path) -> None:
    path = written(tmp_path)
    model = load(path)
    tensors = [v.const_value for v in model.graph.initializers.values()]
    assert any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    assert serialize(model) == serialize(load(onnx.load(path)))


@pytest.mark.usefixtures("lazily")
def test_the_file_itself_is_not_written_over(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="belongs to the input model"):
        save(load(path), path)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("lazily")
def test_what_came_in_one_file_leaves_in_one(tmp_path: Path) -> None:
    assert [p.name for p in save(load(written(tmp_path)), tmp_path / "q.onnx")] == ["q.onnx"]


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused_as_ever(tmp_path: Path, cut: float) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(ModelError, match=r"truncated|not an ONNX model"):
        load(path)


@pytest.mark.usefixtures("lazily")
def test_a_weight_with_too_few_bytes_never_takes_those_of_its_neighbour(tmp_path: Path) -> None:
    proto = residual()
    tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.raw_data = tensor.raw_data[:-4]
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert lazy.read_lazily(path) is None


@pytest.mark.usefixtures("lazily")
def test_graphs_in_parts_are_left_to_the_parser(tmp_path: Path) -> None:
    """Protobuf joins a field that comes twice: numbers of initializers would be those of one part."""
    path = written(tmp_path)
    more = onnx.ModelProto()
    more.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(100, np.float32), "unused"))
    path.write_bytes(path.read_bytes() + more.SerializeToString())
    assert lazy.read_lazily(path) is None


def test_small_files_are_read_as_they_are(tmp_path: Path) -> None:
    assert lazy.read_lazily(written(tmp_path)) is None
