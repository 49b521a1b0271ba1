"""Outputs and inputs that are no tensors, and constants that are sparse: all stay what they were."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config, DataError, ModelError, quantize
from onnxq.graph.io import load, serialize
from onnxq.graph.signature import signature
from onnxq.runtime.contents import contents
from onnxq.runtime.session import open_session, run

INTEGERS = Config(placement="all", latency_seconds=0.0)
RNG = np.random.default_rng(0)
ML = helper.make_opsetid("ai.onnx.ml", 1)
FLOATS = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
LOGITS = [
    helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
    helper.make_node("Relu", ["a"], ["r"]),
    helper.make_node("MatMul", ["r", "v"], ["b"], name="second"),
]


def weights() -> list[onnx.TensorProto]:
    rng = np.random.default_rng(0)
    shapes = {"w": (64, 128), "v": (128, 32)}
    return [numpy_helper.from_array((rng.standard_normal(s) / 8).astype(np.float32), n) for n, s in shapes.items()]


def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)}


def tensor(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    constants: list[onnx.TensorProto] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    held = weights() if constants is None else constants
    graph = helper.make_graph(nodes, "g", inputs or [tensor("x", "N", 64)], outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), ML], ir_version=8)


def probabilities(key: int, **classes: object) -> onnx.ModelProto:
    """A classifier as scikit-learn exports it: the winner, and a map from class to probability for each row."""
    of = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    nodes = [
        *LOGITS,
        helper.make_node("Softmax", ["b"], ["p"], axis=1),
        helper.make_node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
        helper.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", **classes),
    ]
    outputs = [
        tensor("label", "N", kind=TensorProto.INT64),
        helper.make_value_info("maps", helper.make_sequence_type_proto(of)),
    ]
    return model(nodes, outputs)


def split(*sizes: int) -> onnx.ModelProto:
    node = helper.make_node("SplitToSequence", ["b", "sizes"], ["s"], axis=1)
    constants = [*weights(), numpy_helper.from_array(np.array(sizes), "sizes")]
    return model([*LOGITS, node], [helper.make_value_info("s", FLOATS)], constants=constants)


def optional(kind: onnx.TypeProto, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    return model([*LOGITS, *nodes], [helper.make_value_info("s", helper.make_optional_type_proto(kind))])


CONSTRUCT = helper.make_node("SequenceConstruct", ["b", "r"], ["q"])
MODELS = {
    "maps by number": probabilities(TensorProto.INT64, classlabels_int64s=list(range(32))),
    "maps by name": probabilities(TensorProto.STRING, classlabels_strings=[f"class {i}" for i in range(32)]),
    "equal parts": split(16, 16),
    "unequal parts": split(20, 12),
    "optional tensor": optional(
        helper.make_tensor_type_proto(TensorProto.FLOAT, None), helper.make_node("Optional", ["b"], ["s"])
    ),
    "optional sequence": optional(FLOATS, CONSTRUCT, helper.make_node("Optional", ["q"], ["s"])),
}


@pytest.mark.parametrize("proto", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_outputs_that_are_no_tensors_are_kept_and_compared(proto: onnx.ModelProto, calibrated: bool) -> None:
    result = quantize(proto, data() if calibrated else None, config=INTEGERS)
    assert len(result.plan.layers) == 2
    assert [(o.name, o.type) for o in result.proto().graph.output] == [(o.name, o.type) for o in proto.graph.output]
    if calibrated:
        assert result.report.sqnr_db is not None
        assert 30 < result.report.sqnr_db < 100
        assert result.good
        assert result.comparison is not None
        assert all(o.agreement in (None, 1.0) for o in result.comparison.outputs)
        assert not result.comparison.problems


def test_probabilities_in_maps_are_judged_as_classes() -> None:
    result = quantize(MODELS["maps by name"], data(), config=INTEGERS)
    assert result.comparison is not None
    label, maps = result.comparison.outputs
    assert (label.agreement_rule, maps.agreement_rule) == ("equal", "arg-max")
    assert maps.kind == "classes"
    assert maps.elements % 32 == 0


def test_contents() -> None:
    two, three = np.ones((2, 3), np.float32), np.zeros((2, 1), np.float32)
    assert contents(two) is two
    assert contents(None).size == 0
    assert contents([]).size == 0
    np.testing.assert_array_equal(contents({"b": 2.0, "a": 1.0}), [1.0, 2.0])
    np.testing.assert_array_equal(contents([{1: 2.0, 0: 1.0}, {0: 3.0, 1: 4.0}]), [[1.0, 2.0], [3.0, 4.0]])
    assert contents([two, two]).shape == (2, 2, 3)
    np.testing.assert_array_equal(contents([two, three]), [1] * 6 + [0] * 2)
    assert contents(["a", "b"]).tolist() == ["a", "b"]
    one, other = contents([{0: 1.0}, {1: 1.0}]), contents([{0: 1.0}, {2: 1.0}])
    assert one.shape == other.shape
    assert (one != other).any()  # the same numbers of other classes


def fed(kind: onnx.TypeProto, *nodes: onnx.NodeProto, opset: int = 17) -> onnx.ModelProto:
    inputs = [helper.make_value_info("q", kind)]
    constants = [*weights(), numpy_helper.from_array(np.array(0), "i")]
    return model([*nodes, *LOGITS], [tensor("b", "N", 32)], inputs=inputs, constants=constants, opset=opset)


WORDS = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
VECTORIZER = helper.make_node(
    "DictVectorizer", ["q"], ["x"], domain="ai.onnx.ml", string_vocabulary=[str(i) for i in range(64)]
)


@pytest.mark.parametrize(
    ("proto", "kind"),
    [
        (fed(FLOATS, helper.make_node("SequenceAt", ["q", "i"], ["x"])), "sequence"),
        (fed(WORDS, VECTORIZER), "map"),
    ],
)
def test_inputs_that_no_array_is_are_quantized_without_data(proto: onnx.ModelProto, kind: str) -> None:
    assert signature(load(proto)).inputs[0].kind == kind
    with pytest.raises(DataError, match=f"takes a {kind}.*without data"):
        quantize(proto, {"q": data()["x"]}, config=INTEGERS)
    result = quantize(proto, config=INTEGERS)
    assert len(result.plan.layers) == 2
    assert result.proto().graph.input[0] == proto.graph.input[0]
    open_session(result.proto().SerializeToString())


def test_an_optional_tensor_may_be_fed() -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 64]))
    proto = fed(kind, helper.make_node("OptionalGetElement", ["q"], ["x"]), opset=18)
    result = quantize(proto, {"q": data()["x"]}, config=INTEGERS)
    assert result.good
    assert len(result.plan.layers) == 2


def sparse(dense: np.ndarray, *, linear: bool, name: str = "w") -> onnx.SparseTensorProto:
    where = np.flatnonzero(dense)
    indices = where if linear else np.stack(np.unravel_index(where, dense.shape), axis=1)
    values = numpy_helper.from_array(dense.reshape(-1)[where], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), "i"), dense.shape)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("as_node", [True, False])
def test_sparse_constants_are_quantized_as_dense_ones(as_node: bool, linear: bool) -> None:
    dense = numpy_helper.to_array(weights()[0]) * (RNG.random((64, 128)) < 0.2)
    held, nodes = sparse(dense, linear=linear), LOGITS
    if as_node:
        nodes = [helper.make_node("Constant", [], ["w"], sparse_value=held), *LOGITS]
    proto = model(nodes, [tensor("b", "N", 32)], constants=weights()[1:])
    if not as_node:
        proto.graph.sparse_initializer.append(held)
    given = proto.SerializeToString()
    feed = {"x": data()["x"][:4]}
    expected = run(open_session(given), feed)[0]
    np.testing.assert_allclose(run(open_session(serialize(load(proto))), feed)[0], expected, rtol=1e-5, atol=1e-5)
    result = quantize(proto, data(), config=INTEGERS)
    assert len(result.plan.layers) == 2
    assert result.good
    assert proto.SerializeToString() == given


@pytest.mark.parametrize(
    ("dims", "where"), [((64, 128), [64 * 128]), ((64, 128), [-1]), ((2**40, 2**20), [0]), ((-1, 4), [0])]
)
def test_sparse_constants_that_make_no_sense_are_refused(dims: tuple[int, int], where: list[int]) -> None:
    values = numpy_helper.from_array(np.ones(len(where), np.float32), "w")
    broken = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(where), "i"), dims)
    proto = model(LOGITS, [tensor("b", "N", 32)], constants=weights()[1:])
    proto.graph.sparse_initializer.append(broken)
    with pytest.raises(ModelError, match="sparse constant 'w' cannot be read"):
        load(proto)
