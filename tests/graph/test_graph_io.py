"""Loading changes nothing and explains itself; saving is all or nothing."""

import errno
import hashlib
import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from equivalence import equivalent
from graph_helpers import make, node, rand
from onnx import helper

from onnxq.errors import ModelError, OutputError
from onnxq.files import atomic
from onnxq.graph.io import fitting_ir_version, load, save, serialize
from onnxq.graph.kinds import quantized_ops, require_not_quantized


def small(opset=13, **more):
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "y")]
    return make(nodes, {"x": ("N", 32)}, ["y"], {"w": rand(32, 16), "b": rand(16)}, opset=opset, **more)


def write(path, proto):
    path.write_bytes(proto.SerializeToString())
    return path


def write_external(folder, proto=None):
    path = folder / "big.onnx"
    onnx.save_model(proto or small(), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    return path


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("kind", ["path", "str", "proto", "ir"])
def test_every_kind_of_source_loads_the_same(tmp_path, kind):
    proto = small()
    path = write(tmp_path / "m.onnx", proto)
    source = {"path": path, "str": str(path), "proto": proto, "ir": ir.from_proto(proto)}[kind]
    model = load(source)
    assert equivalent(ir.from_proto(proto), model, {"x": rand(3, 32)}) == 0


def test_what_was_given_is_not_changed(tmp_path):
    proto = small()
    before = proto.SerializeToString(deterministic=True)
    given = ir.from_proto(small())
    for source in (proto, given):
        model = load(source)
        for value in list(model.graph.initializers.values()):
            value.name = f"{value.name}_new"
        model.graph.node(0).name = "new"
        model.metadata_props["k"] = "v"
        model.graph.node(0).replace_input_with(0, None)
    assert proto.SerializeToString(deterministic=True) == before
    assert ir.to_proto(given).graph.node == small().graph.node
    assert [t.name for t in ir.to_proto(given).graph.initializer] == ["w", "b"]
    assert not given.metadata_props


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an ONNX model, or is truncated"),
        (b"hello, this is a text file, not a model\n" * 9, "not an ONNX model, or is truncated"),
        (b"\x00" * 64, "not an ONNX model, or is truncated"),
        (small().SerializeToString()[:900], "not an ONNX model, or is truncated"),
        (small().SerializeToString()[:-8], "not an ONNX model, or is truncated"),
    ],
    ids=["empty", "text", "zeros", "cut", "cut at the end"],
)
def test_files_that_are_no_models(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)


def test_graphs_that_cannot_run():
    with pytest.raises(ModelError, match="no nodes"):
        load(make([], {"x": (1,)}, ["x"]))
    with pytest.raises(ModelError, match="no outputs"):
        load(make([node("Relu", "x", "y")], {"x": (1,)}, []))
    with pytest.raises(ModelError, match="'gone', which nothing makes"):
        load(make([node("Add", "x gone", "y")], {"x": (1,)}, ["y"]))
    with pytest.raises(ModelError, match="opset 99, newer than"):
        load(small(opset=99))
    with pytest.raises(ModelError, match="opset 3"):
        load(small(opset=3))


def test_external_data_is_read_and_missing_or_short_files_are_named(tmp_path):
    path = write_external(tmp_path)
    feeds = {"x": rand(2, 32)}
    model = load(path)
    assert equivalent(ir.from_proto(small()), model, feeds) == 0
    assert "external" not in str(onnx.load_from_string(serialize(model)).graph.initializer[0].data_location)
    data = tmp_path / "weights.bin"
    content = data.read_bytes()
    data.write_bytes(content[:-100])
    with pytest.raises(ModelError, match=r"weights\.bin.*truncated: tensor '(w|b)'"):
        load(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"weights\.bin.*of tensor '(w|b)' is missing"):
        load(path)
    with pytest.raises(ModelError, match="path of the model instead of the object"):
        load(onnx.load(path, load_external_data=False))


def test_external_data_behind_a_symbolic_link_is_found_and_outside_the_folder_refused(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    path = write_external(tmp_path / "blobs")
    link = tmp_path / "snapshot" / "model.onnx"
    link.symlink_to(path)
    (tmp_path / "snapshot" / "weights.bin").symlink_to(tmp_path / "blobs" / "weights.bin")
    assert load(link).graph.initializers["w"].const_value.numpy().shape == (32, 16)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.bin"
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(write(path, proto))


def test_saved_models_keep_everything(tmp_path):
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 13)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="mine", name="call", doc_string="node text")]
    proto = make(nodes, {"x": (2,)}, ["y"], functions=[function], extra_opsets={"mine": 1})
    proto.doc_string, proto.producer_name, proto.producer_version, proto.domain = "text", "maker", "1.5", "here"
    proto.model_version = 7
    proto.graph.doc_string = "graph text"
    helper.set_model_props(proto, {"big": "x" * 5000, "labels": "a\nb"})
    save(load(proto), tmp_path / "m.onnx")
    back = onnx.load(tmp_path / "m.onnx")
    back.ir_version = proto.ir_version
    assert back == proto


def test_save_with_and_without_a_data_file(tmp_path):
    model = load(small())
    feeds = {"x": rand(2, 32)}
    target = tmp_path / "out.onnx"
    assert save(model, target) == (target,)
    assert save(model, target, external_above=1000) == (target, tmp_path / "out.onnx.data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    proto = onnx.load(target, load_external_data=False)
    assert [len(t.external_data) for t in proto.graph.initializer] == [3, 0]  # small ones stay inside
    assert equivalent(model, load(target), feeds) == 0
    again = tmp_path / "again.onnx"
    save(load(target), again)
    assert equivalent(model, load(again), feeds) == 0


def test_save_refuses_to_write_over_its_input(tmp_path):
    path = write_external(tmp_path)
    model = load(path)
    before = digest(tmp_path)
    with pytest.raises(OutputError, match="belongs to the input model"):
        save(model, path)
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    with pytest.raises(OutputError, match="belongs to the input model"):
        save(model, link)
    link.unlink()
    (tmp_path / "weights.bin").rename(tmp_path / "out.onnx.data")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "out.onnx.data" if entry.key == "location" else entry.value
    write(path, proto)
    with pytest.raises(OutputError, match=r"out\.onnx\.data belongs"):
        save(load(path), tmp_path / "out.onnx", external_above=10)
    assert digest(tmp_path)["out.onnx.data"] == before["weights.bin"]


def test_folders_that_are_missing_are_made_and_go_again_if_nothing_is_written(tmp_path, monkeypatch):
    target = tmp_path / "some" / "where" / "m.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_full)
        with pytest.raises(OutputError):
            save(load(small()), target)
    assert list(tmp_path.iterdir()) == []
    assert save(load(small()), target) == (target,)


def fail_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_save_refuses_bad_targets(tmp_path):
    model = load(small())
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="is no folder"):
        save(model, tmp_path / "file" / "m.onnx")
    with pytest.raises(OutputError, match="it is a folder"):
        save(model, tmp_path)
    kept = tmp_path / "kept.onnx"
    kept.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        save(model, kept, overwrite=False)
    with pytest.raises(OutputError, match="belongs to the input"):
        save(model, kept, keep=[kept])
    assert kept.read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_save_into_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        save(load(small()), tmp_path / "m.onnx")


@pytest.mark.parametrize("external_above", [10, 10**9])
@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
def test_a_failed_save_leaves_everything_as_it_was(tmp_path, monkeypatch, external_above, failing, error):
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old model")
    (tmp_path / "out.onnx.data").write_bytes(b"old data")
    model = load(small())
    before = digest(tmp_path)

    def fail(*_, **__):
        raise error

    if failing == "write":
        monkeypatch.setattr(atomic, "write_file", fail)
        monkeypatch.setattr("onnxq.graph.io.write_file", fail)
    else:
        monkeypatch.setattr(os, failing, fail)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left on device" if expected is OutputError else None) as caught:
        save(model, target, external_above=external_above)
    assert digest(tmp_path) == before
    assert "\n" not in str(caught.value)


def test_what_came_with_external_data_leaves_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxq.graph.io.EXTERNAL_AS_READ", 100)
    onnx.save(small(), tmp_path / "whole.onnx")
    onnx.save(small(), tmp_path / "split.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert len(save(load(tmp_path / "whole.onnx"), tmp_path / "a.onnx")) == 1
    assert save(load(tmp_path / "split.onnx"), tmp_path / "b.onnx") == (tmp_path / "b.onnx", tmp_path / "b.onnx.data")


def test_permissions_are_those_of_a_normal_file(tmp_path):
    mask = os.umask(0o022)
    try:
        save(load(small()), tmp_path / "m.onnx")
        assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o644
        (tmp_path / "m.onnx").chmod(0o600)
        save(load(small()), tmp_path / "m.onnx")
        assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(mask)


@pytest.mark.parametrize(
    ("opset", "version"), [(7, 4), (13, 7), (15, 8), (18, 8), (19, 9), (20, 9), (21, 10), (22, 10), (23, 11)]
)
def test_ir_version_is_the_oldest_that_fits(opset, version):
    model = load(small(opset=opset, ir_version=13))
    assert fitting_ir_version(model) == version
    assert onnx.load_from_string(serialize(model)).ir_version == version


def test_large_models_do_not_serialize(monkeypatch):
    monkeypatch.setattr("onnxq.graph.io.EXTERNAL_ABOVE", 100)
    with pytest.raises(OutputError, match="2 GB"):
        serialize(load(small()))


def test_quantized_models_are_told_from_float_ones():
    q = make(
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
        {"x": (2,)},
        ["y"],
        {"s": np.array(0.1, np.float32), "z": np.array(3, np.uint8)},
    )
    model = load(q)  # inspect needs it
    assert quantized_ops(model) == {"DequantizeLinear": 1, "QuantizeLinear": 1}
    with pytest.raises(ModelError, match="already quantized"):
        require_not_quantized(model)
    require_not_quantized(load(small()))
