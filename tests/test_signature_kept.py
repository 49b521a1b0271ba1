"""What goes in and comes out of a quantized model is what went in and came out before: number, names, order, types."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config, ModelError, quantize
from onnxq.graph.signature import keep_signature

Dims = "list[int | str | None] | None"
SIZES = {"x": 64, "r": 128, "h": 32}
SAME = {
    "transpose": [("Transpose", [], {"perm": [0, 1]})],
    "identity": [("Identity", [], {})],
    "dropout": [("Dropout", [], {})],
    "there and back": [("Transpose", [], {"perm": [1, 0]}), ("Transpose", [], {"perm": [1, 0]})],
    "reshape": [("Reshape", [[0, -1]], {})],
    "reshaped twice": [("Reshape", [[0, 4, -1]], {}), ("Reshape", [[0, -1]], {})],
    "reshape, transpose, reshape": [
        ("Reshape", [[0, 4, -1]], {}),
        ("Transpose", [], {"perm": [0, 1, 2]}),
        ("Reshape", [[0, -1]], {}),
    ],
    "slice": [("Slice", [[0], [2**31 - 1], [1]], {})],
    "cast": [("Cast", [], {"to": TensorProto.FLOAT})],
    "pad": [("Pad", [[0, 0, 0, 0]], {})],
    "squeeze": [("Unsqueeze", [[1]], {}), ("Squeeze", [[1]], {})],
    "concat": [("Concat", [], {"axis": 0})],
}


def network(extra: dict[str, tuple[str, str]] | None = None, dims: dict[str, Dims] | None = None) -> onnx.ModelProto:
    """``x`` - MatMul - Relu ``r`` - MatMul ``h``, and outputs made of one of these that change nothing: ``SAME``."""
    rng, dims = np.random.default_rng(0), {"x": ["N", 64], "h": ["N", 32], **(dims or {})}
    arrays = {name: (rng.standard_normal(s) / 8).astype(np.float32) for name, s in (("w", (64, 128)), ("v", (128, 32)))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["h"]),
    ]
    for output, (source, kind) in (extra or {}).items():
        last = source
        for step, (op, constants, how) in enumerate(SAME[kind]):
            made = output if step + 1 == len(SAME[kind]) else f"{output}_{step}"
            names = [f"{made}_c{i}" for i in range(len(constants))]
            arrays.update({name: np.array(c) for name, c in zip(names, constants, strict=True)})
            nodes.append(helper.make_node(op, [last, *names], [made], **how))
            last = made
        dims[output] = ["N", SIZES[source]]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in dims.items()]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32)}


def kept(proto: onnx.ModelProto, feeds: dict[str, np.ndarray] | None) -> None:
    """Inputs and outputs are written as before, to the byte, and answers agree."""
    result = quantize(proto, feeds, config=Config(placement="all")).proto()
    for before, after in ((proto.graph.input, result.graph.input), (proto.graph.output, result.graph.output)):
        written = [[(v.name, v.type.SerializeToString(deterministic=True)) for v in end] for end in (before, after)]
        assert written[0] == written[1]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    answers = [
        ort.InferenceSession(p.SerializeToString(), options).run(None, {"x": data()["x"][:4]}) for p in (proto, result)
    ]
    for wanted, found in zip(*answers, strict=True):
        assert np.square(wanted - found).sum() < 0.01 * np.square(wanted).sum()


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("source", ["x", "r", "h"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_an_output_that_is_another_tensor_is_kept(kind, source, calibrated):
    kept(network({"z": (source, kind)}), data() if calibrated else None)


def test_several_such_outputs_are_kept():
    kinds = ("transpose", "there and back", "identity", "reshape")
    several = {f"z{source}{i}": (source, kind) for source in SIZES for i, kind in enumerate(kinds)}
    kept(network(several), data())


@pytest.mark.parametrize(
    "dims",
    [["N", 32], [None, 32], [None, None], None, ["batch", "features"], ["unk__0", "unk__1"], ["B", 32], ["?", 32]],
)
def test_dimensions_are_called_as_before(dims):
    kept(network(dims={"h": dims}), data())


@pytest.mark.parametrize("dims", [[None, 64], ["rows", 64], ["rows", "columns"]])
def test_dimensions_of_inputs_are_called_as_before(dims):
    kept(network(dims={"x": dims}), data())


def test_a_model_whose_ends_changed_is_never_handed_out():
    source = ir.from_proto(network({"z": ("h", "identity")}))
    keep_signature(ir.from_proto(network({"z": ("h", "transpose")})), source)
    for change, message in (
        (lambda g: g.outputs.pop(), "outputs"),
        (lambda g: g.outputs.reverse(), "outputs"),
        (lambda g: setattr(g.outputs[0], "name", "other"), "outputs"),
        (lambda g: setattr(g.inputs[0], "name", "other"), "inputs"),
        (lambda g: setattr(g.outputs[1], "dtype", ir.DataType.DOUBLE), "'z'"),
    ):
        model = ir.from_proto(network({"z": ("h", "transpose")}))
        change(model.graph)
        with pytest.raises(RuntimeError, match=message):
            keep_signature(model, source)


def test_nodes_of_one_name_are_told_apart():
    proto = network()
    for node in proto.graph.node:
        node.name = "same"
    for feeds in (data(), None):
        plan = quantize(proto, feeds, config=Config(placement="all")).plan
        assert [w.node for w in plan.weights] == ["same", "same_2"]
    assert [n.name for n in proto.graph.node] == ["same"] * 3


def test_inputs_of_one_name_are_refused():
    proto = network()
    proto.graph.input.append(proto.graph.input[0])
    with pytest.raises(ModelError, match="two inputs are called 'x'") as caught:
        quantize(proto, data())
    assert "export it again" in caught.value.hint


def test_sequences_of_unequal_parts_come_out_unharmed():
    proto = network()
    proto.graph.initializer.append(numpy_helper.from_array(np.array([20, 12]), "parts"))
    proto.graph.node.append(helper.make_node("SplitToSequence", ["h", "parts"], ["s"], axis=1))
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    proto.graph.output.append(helper.make_value_info("s", kind))
    result = quantize(proto, data(), config=Config(placement="all"))
    h, parts = result.comparison.outputs
    assert (h.name, parts.name) == ("h", "s")
    assert parts.elements == h.elements
    assert parts.sqnr_db == pytest.approx(h.sqnr_db, abs=1e-6)
