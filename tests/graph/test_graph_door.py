"""What the check at the door refuses, in which words, and what it lets through because onnxruntime runs it."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graph_helpers import make, node
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxq.errors import ModelError, RuntimeFailure
from onnxq.graph.io import load, serialize
from onnxq.graph.runtime_model import or_refused
from onnxq.pipeline import quantize
from onnxq.runtime.schemas import schema

WEIGHT = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)


def good() -> onnx.ModelProto:
    """x -> Conv -> Softmax -> y, with a constant beside: something of every kind to spoil."""
    nodes = [
        node("Reshape", "x to", "image"),
        node("Conv", "image w b", "h", kernel_shape=[1, 1], name="conv"),
        node("Constant", "", "one", value=numpy_helper.from_array(np.ones(1, np.float32), "t"), name="constant"),
        node("Add", "h one", "s", name="add"),
        node("Softmax", "s", "y", axis=1, name="softmax"),
    ]
    constants = {"to": np.array([0, 8, 1, 1]), "w": WEIGHT.reshape(8, 8, 1, 1), "b": WEIGHT[0]}
    return make(nodes, {"x": ("n", 8)}, ["y"], constants, opset=17)


def loads_in_runtime(proto: onnx.ModelProto) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def weight(proto: onnx.ModelProto) -> TensorProto:
    return next(t for t in proto.graph.initializer if t.name == "w")


def tensor(proto: onnx.ModelProto) -> TensorProto:
    return proto.graph.node[2].attribute[0].t


def attribute(proto: onnx.ModelProto, name: str) -> AttributeProto:
    return next(a for n in proto.graph.node for a in n.attribute if a.name == name)


def _as_floats(t: TensorProto, count: int) -> None:
    t.ClearField("raw_data")
    t.float_data.extend([1.0] * count)


def _in_another_field(t: TensorProto) -> None:
    t.ClearField("raw_data")
    t.int64_data.extend(range(64))


def _of_a_type(proto: onnx.ModelProto, kind: int) -> None:
    weight(proto).data_type = kind


def _without(proto: onnx.ModelProto, name: str) -> None:
    for n in proto.graph.node:
        kept = [a for a in n.attribute if a.name != name]
        del n.attribute[:]
        n.attribute.extend(kept)


def _text(proto: onnx.ModelProto, good: str, bad: bytes) -> None:
    """Puts bytes that are no text where a name stands."""
    content = proto.SerializeToString().replace(good.encode(), bad)
    assert len(good) == len(bad)
    proto.ParseFromString(content)


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "bytes missing": (lambda m: setattr(weight(m), "raw_data", b"\0" * 10), "'w' has 10 bytes, .* takes 256"),
    "shape too large": (lambda m: weight(m).dims.append(9), r"has 256 bytes, and its shape \[8, 8, 1, 1, 9\] takes"),
    "shape negative": (lambda m: weight(m).dims.extend([-1, -1]), r"has the shape \[8, 8, 1, 1, -1, -1\]"),
    "no data at all": (lambda m: weight(m).ClearField("raw_data"), "'w' has 0 numbers"),
    "numbers missing": (lambda m: _as_floats(weight(m), 63), "has 63 numbers, .* takes 64"),
    "numbers of another type": (lambda m: _in_another_field(weight(m)), "keeps FLOAT in int64_data"),
    "no element type": (lambda m: _of_a_type(m, 0), "'w' has no element type"),
    "unknown element type": (lambda m: _of_a_type(m, 77), "77 is not a valid DataType"),
    "texts": (lambda m: _of_a_type(m, TensorProto.STRING), "'w' has 0 texts"),
    "attribute's bytes": (
        lambda m: tensor(m).dims.append(3),
        "Constant node 'constant' has the attribute 'value', which",
    ),
    "too few inputs": (
        lambda m: m.graph.node[1].input.__delitem__(slice(1, 3)),
        "Conv node 'conv' has 1 input, and 2 to",
    ),
    "too many inputs": (lambda m: m.graph.node[3].input.append("h"), "Add node 'add' has 3 inputs, and 2 are"),
    "empty input": (lambda m: m.graph.node[1].input.__setitem__(1, ""), "Conv node 'conv' lacks input 1"),
    "too many outputs": (lambda m: m.graph.node[3].output.append("more"), "'add' has 2 outputs, and 1"),
    "attribute's type": (
        lambda m: attribute(m, "axis").CopyFrom(helper.make_attribute("axis", 1.0)),
        "Softmax node 'softmax' has the attribute 'axis' as FLOAT, and the operator takes INT",
    ),
    "attribute without type": (lambda m: attribute(m, "axis").ClearField("type"), "'axis' without a type"),
    "required attribute": (
        lambda m: m.graph.node.append(node("Cast", "y", "z", name="cast")),
        "Cast node 'cast' lacks the attribute 'to'",
    ),
    "input read by nobody's making": (lambda m: m.graph.node[3].input.__setitem__(1, "gone"), "'gone', which nothing"),
    "output that nothing makes": (lambda m: setattr(m.graph.output[0], "name", "gone"), "makes the output 'gone'"),
    "two inputs of a name": (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs are called 'x'"),
    "input without type": (lambda m: m.graph.input[0].ClearField("type"), "input 'x' has no type"),
    "elements without type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 0),
        "the elements of 'x' have no type",
    ),
}


def test_the_model_to_spoil_is_good() -> None:
    assert loads_in_runtime(good())
    load(good())


@pytest.mark.parametrize("kind", REFUSED)
def test_what_onnxruntime_would_refuse_is_refused_with_what_and_where(kind: str) -> None:
    spoil, message = REFUSED[kind]
    proto = good()
    spoil(proto)
    assert not loads_in_runtime(proto), "the door must not be stricter than onnxruntime"
    with pytest.raises(ModelError, match=message) as refusal:
        load(proto)
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("good_text", "bad", "what"),
    [
        ("Softmax", b"Soft\xff\xfex", "an operator"),
        ("softmax", b"soft\xff\xfex", "a node"),
        ("image", b"im\xff\xfee", "a value"),
    ],
)
def test_names_that_are_no_text_are_refused(good_text: str, bad: bytes, what: str) -> None:
    """ONNX asks for UTF-8, and no other program could write such a name; onnxruntime runs some of them all the same."""
    proto = good()
    _text(proto, good_text, bad)
    with pytest.raises(ModelError, match=f"the name of {what} is not UTF-8: b'"):
        load(proto)


def _no_text_in_a_note(proto: onnx.ModelProto) -> None:
    proto.graph.node[3].doc_string = "ABCDEFG"
    entry = proto.graph.node[3].metadata_props.add()
    entry.key, entry.value = "where", "HIJKLMN"
    _text(proto, "ABCDEFG", b"caf\xe9 ba")
    _text(proto, "HIJKLMN", b"caf\xe9 fo")


ACCEPTED: dict[str, Callable[[onnx.ModelProto], object]] = {
    "numbers in place of bytes": lambda m: _as_floats(weight(m), 64) if weight(m).raw_data else None,
    "numbers beside bytes": lambda m: weight(m).float_data.extend([1.0, 2.0]),
    "an attribute for the runtime alone": lambda m: m.graph.node[3].attribute.append(helper.make_attribute("__a", 1)),
    "contributed operator without its domain": lambda m: m.graph.node.append(
        helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft")
    ),
    "an older operator of onnxruntime": lambda m: m.graph.node.append(node("SimplifiedLayerNormalization", "y w", "z")),
    "a note that is no text": _no_text_in_a_note,
    "an output twice": lambda m: m.graph.output.append(m.graph.output[0]),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_onnxruntime_loads_passes_and_can_be_written(kind: str) -> None:
    proto = good()
    ACCEPTED[kind](proto)
    assert loads_in_runtime(proto)
    assert loads_in_runtime(onnx.ModelProto.FromString(serialize(load(proto))))


def test_packed_elements_are_counted_as_they_are_packed() -> None:
    """4-bit elements take half a byte, rounded up, in either field; float16 and bool one number each."""
    for kind, numbers in (
        (TensorProto.INT4, 2),
        (TensorProto.FLOAT16, 3),
        (TensorProto.BOOL, 3),
        (TensorProto.INT8, 3),
    ):
        stored = TensorProto(dims=[3], data_type=kind, name="c", int32_data=[1] * numbers)
        proto = make([node("Relu", "x", "y")], {"x": (1,)}, ["y"], opset=21, ir_version=10)
        proto.graph.initializer.append(stored)
        load(proto)
        proto.graph.initializer[0].int32_data.append(1)
        with pytest.raises(ModelError, match=rf"'c' has {numbers + 1} numbers, .* takes {numbers}"):
            load(proto)


def test_operators_that_nobody_knows_or_that_the_model_defines_are_left_alone() -> None:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("own", "Softmax", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Softmax", ["x"], ["h"], domain="own", axis="any"),
        helper.make_node("Anything", ["h", "", "h"], ["y"], domain="acme", axis=1.0),
    ]
    load(make(nodes, {"x": (1, 8)}, ["y"], functions=[function], extra_opsets={"own": 1, "acme": 1}, opset=17))


def test_bodies_and_functions_are_checked_too() -> None:
    bad = helper.make_graph([node("Add", "x", "b", name="inner")], "g", [], [helper.make_empty_tensor_value_info("b")])
    proto = make([node("If", "c", "y", then_branch=bad, else_branch=bad)], {"x": (1,), "c": ()}, ["y"])
    with pytest.raises(ModelError, match="Add node 'inner' has 1 input"):
        load(proto)
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", "a", "b", name="within")], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="own")]
    with pytest.raises(ModelError, match="Add node 'within' has 1 input"):
        load(make(nodes, {"x": (1, 8)}, ["y"], functions=[function], extra_opsets={"own": 1}, opset=17))


def test_external_data_of_another_length_is_refused(tmp_path) -> None:
    proto = good()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=100, location="d")
    broken = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    entry = next(e for e in weight(broken).external_data if e.key == "length")
    load(tmp_path / "m.onnx")
    for value, message in (
        ("128", "takes 256 bytes by its shape, and 128 in its file"),
        ("-1", "must be non-negative"),
    ):
        entry.value = value
        (tmp_path / "broken.onnx").write_bytes(broken.SerializeToString())
        with pytest.raises(ModelError, match=message):
            load(tmp_path / "broken.onnx")


def test_what_onnxruntime_sees_only_when_it_runs_is_refused_too() -> None:
    """An empty name among any number of inputs ends the process in Einsum; weights of an LSTM by their shapes."""
    with pytest.raises(ModelError, match="Einsum node 'e' lacks input 1"):
        load(make([node("Einsum", "x -", "y", equation="ab,bc->ac", name="e")], {"x": (2, 8)}, ["y"]))
    for w, r in (((1, 32, 8), (256,)), ((1, 32, 8), (1, 16, 8)), ((32, 8), (32, 8))):
        constants = {"w": np.ones(w, np.float32), "r": np.ones(r, np.float32)}
        layer = node("LSTM", "x w r", "y", hidden_size=8, name="l")
        with pytest.raises(ModelError, match="LSTM node 'l' has weights of the shapes"):
            load(make([layer], {"x": (2, 1, 8)}, ["y"], constants))
    for shape in ((8,), (8, 8), (8, 8, 3, 3)):
        layer = node("Conv", "x w", "y", kernel_shape=[1, 1], name="c")
        with pytest.raises(ModelError, match="Conv node 'c' has weights of the shapes"):
            load(make([layer], {"x": (2, 8, 4, 4)}, ["y"], {"w": np.ones(shape, np.float32)}))


def test_schemas_are_those_of_the_opset() -> None:
    old, new = schema("", "Clip", 6), schema("ai.onnx", "Clip", 13)
    assert old is not None
    assert new is not None
    assert (old.inputs.most, new.inputs.most) == (1, 3)
    assert old.attributes["min"] == "FLOAT"
    assert schema("", "Clip", 0) is None
    assert schema("", "Upsample", 10) is None  # retired
    gelu = schema("com.microsoft", "BiasGelu", 1)
    assert gelu is not None
    assert gelu.inputs.required == (0, 1)


def test_what_does_not_fit_is_refused_in_the_words_of_onnxruntime() -> None:
    """Whether shapes fit is onnxruntime's to judge, and its reason is told."""
    proto = make([node("MatMul", "x w", "y", name="c")], {"x": (1, 8, 4, 4)}, ["y"], {"w": WEIGHT})
    with pytest.raises(RuntimeFailure, match="cannot load"):
        quantize(proto, {"x": np.ones((8, 8, 4, 4), np.float32)})


def test_an_accident_with_a_good_model_stays_one() -> None:
    with pytest.raises(ZeroDivisionError), or_refused(load(good())):
        _ = 1 / 0
    bad = load(make([node("MatMul", "x w", "y")], {"x": (1, 8, 4, 4)}, ["y"], {"w": WEIGHT}))
    with pytest.raises(RuntimeFailure), or_refused(bad):
        _ = 1 / 0
    with pytest.raises(ModelError, match=re.escape("on purpose")), or_refused(bad):
        raise ModelError("on purpose")
