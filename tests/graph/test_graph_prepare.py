"""The cleaning passes: constants, inputs, pass-through nodes, names, functions, unused parts, bodies."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from equivalence import equivalent, run
from graph_helpers import check, make, node, ops, rand
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.graph.io import load, serialize
from onnxq.graph.passes.identity import remove_passthrough
from onnxq.graph.passes.lift_constants import lift_constants
from onnxq.graph.passes.naming import unique_names
from onnxq.graph.passes.shapes import infer_shapes
from onnxq.graph.passes.share_constants import share_constants
from onnxq.graph.passes.unused import remove_unused
from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL


def constant(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def out(*names, kind=TensorProto.FLOAT):
    return [helper.make_tensor_value_info(name, kind, None) for name in names]


def branches(then, other, *, cond="c", output="y"):
    return helper.make_node("If", [cond], [output], then_branch=then, else_branch=other)


def test_constant_nodes_become_initializers_in_their_own_graph():
    then = helper.make_graph([constant("k", rand(4)), node("Mul", "x k", "t")], "then", [], out("t"))
    other = helper.make_graph([constant("e", rand(2, 4))], "else", [], out("e"))
    proto = make([branches(then, other)], {"x": (2, 4), "c": ()}, ["y"], types={"c": TensorProto.BOOL})
    for flag in (True, False):
        prepared = check(proto, {"x": rand(2, 4), "c": np.array(flag)}, tolerance=0)
    body = prepared.model.graph.node(0).attributes["then_branch"].as_graph()
    assert list(body.initializers) == ["k"]
    assert "Constant" in ops(prepared.model)  # the output of the other body


def test_constants_of_every_kind():
    nodes = [
        helper.make_node("Constant", [], ["a"], value_float=2.0),
        helper.make_node("Constant", [], ["b"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["c"], value_ints=[2, 1]),
        helper.make_node("Constant", [], ["s"], value_strings=["p", "q"]),
        node("Mul", "x a", "d"),
        node("Add", "d b", "e"),
        node("Tile", "e c", "y"),
        node("Identity", "s", "z"),
    ]
    model = ir.from_proto(make(nodes, {"x": (2, 2)}, ["y", "z"], types={"z": TensorProto.STRING}))
    assert lift_constants(model) == 3
    assert ops(model) == ["Add", "Constant", "Identity", "Mul", "Tile"]
    assert equivalent(model, model, {"x": rand(2, 2)}) == 0


def test_initializers_listed_as_inputs_are_constants_with_a_note():
    proto = make([node("MatMul", "x w", "y")], {"x": (2, 4), "w": (4, 3)}, ["y"], {"w": rand(4, 3)})
    prepared = prepare(ir.from_proto(proto), target=USUAL)
    assert [value.name for value in prepared.model.graph.inputs] == ["x"]
    assert "w" in prepared.notes[0]
    assert equivalent(ir.from_proto(proto), prepared.model, {"x": rand(2, 4)}) == 0


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ([node("Identity", "x", "a"), node("Relu", "a", "y")], ["Relu"]),
        ([node("Relu", "x", "a"), node("Identity", "a", "y")], ["Relu"]),
        ([node("Identity", "x", "y")], ["Identity"]),
        ([node("Relu", "x", "a"), node("Identity", "a", "y"), node("Identity", "a", "z")], ["Identity", "Relu"]),
        ([node("Relu", "x", "z"), node("Identity", "z", "y")], ["Identity", "Relu"]),
        ([node("Relu", "x", "a"), node("Identity", "a", "b"), node("Identity", "b", "y")], ["Relu"]),
        ([node("Dropout", "x r", "a"), node("Relu", "a", "y")], ["Relu"]),
        ([node("Dropout", "x r f", "a m"), node("Relu", "a", "y")], ["Relu"]),
        ([node("Dropout", "x r", "a z"), node("Relu", "a", "y")], ["Dropout", "Relu"]),
        ([node("Cast", "x", "a", to=1), node("Relu", "a", "y")], ["Relu"]),
        ([node("Reshape", "x s", "a"), node("Relu", "a", "y")], ["Relu"]),
        ([node("Transpose", "x", "a", perm=[0, 1]), node("Relu", "a", "y")], ["Relu"]),
        ([node("Transpose", "x", "a", perm=[1, 0]), node("Relu", "a", "y")], ["Relu", "Transpose"]),
        ([node("Identity", "k", "y")], ["Identity"]),
        ([node("Slice", "x zero one", "a"), node("Relu", "a", "y")], ["Relu", "Slice"]),  # along the first axis
        ([node("Slice", "x zero four one one", "a"), node("Relu", "a", "y")], ["Relu"]),
        ([node("Slice", "x zero end", "a"), node("Relu", "a", "y")], ["Relu"]),
        ([node("Slice", "x zero three one one", "a"), node("Relu", "a", "y")], ["Relu", "Slice"]),
        ([node("Slice", "x one four one one", "a"), node("Relu", "a", "y")], ["Relu", "Slice"]),
        ([node("Slice", "x zero four one two", "a"), node("Relu", "a", "y")], ["Relu", "Slice"]),
        ([node("Concat", "x", "a", axis=1), node("Relu", "a", "y")], ["Relu"]),
    ],
)
def test_nodes_that_pass_their_input_through(nodes, left):
    outputs = ["y", *(["z"] if any("z" in n.output for n in nodes) else [])]
    mask = any(n.op_type == "Dropout" and "z" in n.output for n in nodes)
    constants = {"r": np.array(0.4, np.float32), "f": np.array(False), "s": np.array([2, 4]), "k": rand(3)}
    numbers = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "end": 2**63 - 1}
    constants |= {name: np.array([value]) for name, value in numbers.items()}
    types = {"z": TensorProto.BOOL} if mask else {}
    prepared = check(make(nodes, {"x": (2, 4)}, outputs, constants, types=types), {"x": rand(2, 4)}, tolerance=0)
    assert ops(prepared.model) == left
    assert [value.name for value in prepared.model.graph.outputs] == outputs


def test_identity_of_an_outer_value_stays_in_an_if_body():
    then = helper.make_graph([node("Identity", "h", "t")], "then", [], out("t"))
    other = helper.make_graph([node("Identity", "h", "i"), node("Neg", "i", "e")], "else", [], out("e"))
    nodes = [node("Relu", "x", "h"), branches(then, other)]
    proto = make(nodes, {"x": (2, 4), "c": ()}, ["y"], types={"c": TensorProto.BOOL})
    for flag in (True, False):
        prepared = check(proto, {"x": rand(2, 4), "c": np.array(flag)}, tolerance=0)
    assert ops(prepared.model) == ["Identity", "If", "Neg", "Relu"]


def test_names_are_unique_across_graphs_and_kept_where_they_can_be():
    then = helper.make_graph([node("Neg", "x", "t"), node("Relu", "t", "r")], "then", [], out("r"))
    other = helper.make_graph([node("Abs", "x", "t"), node("Relu", "t", "r")], "else", [], out("r"))
    for inner in then.node:
        inner.name = "same"
    nodes = [branches(then, other, output="h"), node("Relu", "h", "r"), node("Exp", "r", "y")]
    proto = make(nodes, {"x": (2,), "c": ()}, ["y"], types={"c": TensorProto.BOOL})
    model = ir.from_proto(proto)
    assert unique_names(model) > 0
    everything = list(model.graph.all_nodes())
    assert len({n.name for n in everything}) == len(everything)
    values = [v.name for n in everything for v in n.outputs]
    assert len(set(values)) == len(values)
    assert {"x", "y", "r", "same"} <= {*values, *(n.name for n in everything), "x"}
    assert unique_names(model) == 0
    x = rand(2)
    for flag in (True, False):  # onnxruntime refuses the model as it was: two nodes of one name in one graph
        result = run(model, {"x": x, "c": np.array(flag)})["y"]
        np.testing.assert_allclose(result, np.exp(np.maximum(-x if flag else np.abs(x), 0)), rtol=1e-6)


def test_a_renamed_initializer_never_pushes_another_one_out():
    then = helper.make_graph(
        [node("Add", "w w_1", "t")],
        "then",
        [],
        out("t"),
        [numpy_helper.from_array(rand(2, seed=s), n) for s, n in enumerate(("w", "w_1"))],
    )
    other = helper.make_graph([node("Neg", "w", "e")], "else", [], out("e"))
    proto = make([branches(then, other)], {"c": ()}, ["y"], {"w": rand(2, seed=9)}, types={"c": TensorProto.BOOL})
    model = prepare(ir.from_proto(proto), target=USUAL).model
    # onnxruntime reads the outer w in the first body, or the inner one when it optimizes; the inner one is meant.
    np.testing.assert_array_equal(run(model, {"c": np.array(True)})["y"], rand(2, seed=0) + rand(2, seed=1))
    np.testing.assert_array_equal(run(model, {"c": np.array(False)})["y"], -rand(2, seed=9))


def test_unused_parts_go_and_inputs_stay():
    then = helper.make_graph([node("Mul", "x u", "t"), node("Neg", "x", "dead")], "then", [], out("t"))
    other = helper.make_graph([node("Relu", "x", "e")], "else", [], out("e"))
    nodes = [branches(then, other, output="gone"), node("Neg", "x", "y"), node("Abs", "spare", "q")]
    constants = {"u": rand(2), "v": rand(2)}
    proto = make(nodes, {"x": (2,), "spare": (1,), "c": ()}, ["y"], constants, types={"c": TensorProto.BOOL})
    model = ir.from_proto(proto)
    assert remove_unused(model) == 5  # If and the dead node in it, Abs, u, v
    assert [v.name for v in model.graph.inputs] == ["x", "spare", "c"]
    assert not model.graph.initializers
    assert ops(model) == ["Neg"]


def test_optional_outputs_that_nobody_reads_go():
    nodes = [node("MaxPool", "x", "p i", kernel_shape=[2]), node("LSTM", "t w r", "h yh yc", hidden_size=4)]
    nodes.append(node("Neg", "yh", "n"))
    constants = {"w": rand(1, 16, 3), "r": rand(1, 16, 4)}
    proto = make(nodes, {"x": (1, 1, 4), "t": (5, 2, 3)}, ["p", "n"], constants)
    model = check(proto, {"x": rand(1, 1, 4), "t": rand(5, 2, 3)}).model
    assert [len(n.outputs) for n in model.graph if n.op_type != "Neg"] == [1, 2]


def test_local_functions_are_inlined():
    inner = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 13)]
    )
    outer = helper.make_function(
        "mine",
        "Layer",
        ["x", "w"],
        ["y"],
        [node("MatMul", "x w", "m"), helper.make_node("Twice", ["m"], ["y"], domain="mine")],
        [helper.make_opsetid("", 13), helper.make_opsetid("mine", 1)],
    )
    nodes = [helper.make_node("Layer", [a, "w"], [b], domain="mine") for a, b in (("x", "h"), ("h", "y"))]
    proto = make(nodes, {"x": (2, 3)}, ["y"], {"w": rand(3, 3)}, functions=[inner, outer], extra_opsets={"mine": 1})
    prepared = check(proto, {"x": rand(2, 3)})
    assert ops(prepared.model) == ["Add", "Add", "MatMul", "MatMul"]
    assert not prepared.model.functions
    assert [v.name for v in prepared.model.graph.outputs] == ["y"]


def test_functions_of_another_opset_stay_with_a_note():
    twice = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 14)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="mine")]
    proto = make(nodes, {"x": (2,)}, ["y"], functions=[twice], extra_opsets={"mine": 1})
    prepared = check(proto, {"x": rand(2)})
    assert "Twice" in prepared.notes[0]
    assert len(prepared.model.functions) == 1


def test_equal_weights_of_both_branches_are_stored_once():
    weight = rand(16, 32)

    def body(name):
        nodes = [
            constant(f"{name}k", weight),
            node("Transpose", f"{name}k", f"{name}t"),
            node("MatMul", f"x {name}t", name),
        ]
        return helper.make_graph(nodes, name, [], out(name))

    proto = make([branches(body("a"), body("b"))], {"x": (2, 32), "c": ()}, ["y"], types={"c": TensorProto.BOOL})
    prepared = check(proto, {"x": rand(2, 32), "c": np.array(True)})
    assert len(prepared.model.graph.initializers) == 1
    assert len(serialize(prepared.model)) < 2 * weight.nbytes
    assert share_constants(prepared.model) == 0


def test_what_a_reader_needs_survives():
    proto = make([node("Relu", "x", "h"), node("Identity", "h", "y")], {"x": ("N", 4)}, ["y"], opset=11)
    helper.set_model_props(proto, {"character": "abc"})
    proto.doc_string, proto.producer_name, proto.graph.doc_string = "about", "maker", "graph"
    proto.graph.node[0].doc_string = "a node"
    back = onnx.load_from_string(serialize(prepare(load(proto), target=USUAL).model))
    assert [(p.key, p.value) for p in back.metadata_props] == [("character", "abc")]
    assert (back.doc_string, back.producer_name, back.graph.doc_string) == ("about", "maker", "graph")
    assert back.graph.node[0].doc_string == "a node"
    assert [i.name for i in back.graph.input] == ["x"]
    assert back.graph.input[0].type == proto.graph.input[0].type


def test_nodes_in_the_wrong_order_are_sorted_and_cycles_refused():
    proto = make([node("Neg", "h", "y"), node("Relu", "x", "h")], {"x": (2,)}, ["y"])
    model = prepare(ir.from_proto(proto), target=USUAL).model
    assert [n.op_type for n in model.graph] == ["Relu", "Neg"]
    with pytest.raises(ModelError, match="cycle"):
        prepare(ir.from_proto(make([node("Add", "h x", "y"), node("Neg", "y", "h")], {"x": (2,)}, ["y"])), target=USUAL)


def test_shape_inference_fills_in_and_is_not_stored():
    proto = make([node("Conv", "x w", "h"), node("Relu", "h", "y")], {"x": ("N", 3, 8)}, ["y"], {"w": rand(4, 3, 3)})
    model = prepare(ir.from_proto(proto), target=USUAL).model
    value = model.graph.node(0).outputs[0]
    assert str(value.shape) == "[N,4,6]"
    assert value.dtype == ir.DataType.FLOAT
    assert not onnx.load_from_string(serialize(model)).graph.value_info


def test_shape_inference_never_fails(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", broken)
    model = ir.from_proto(make([node("Relu", "x", "y")], {"x": (2,)}, ["y"]))
    assert infer_shapes(model) == 0
    assert ops(prepare(model, target=USUAL).model) == ["Relu"]


def test_custom_operators_pass_through():
    nodes = [
        node("Relu", "x", "h"),
        helper.make_node("Gelu", ["h"], ["g"], domain="com.microsoft"),
        node("Neg", "g", "y"),
    ]
    proto = make(nodes, {"x": (2, 4)}, ["y"], opset=12, extra_opsets={"com.microsoft": 1})
    prepared = check(proto, {"x": rand(2, 4)})
    assert prepared.model.opset_imports == {"": 13, "com.microsoft": 1}


def test_lstm_and_optional_inputs_pass_through():
    nodes = [node("LSTM", "x w r - - h0", "y yh -", hidden_size=4)]
    constants = {"w": rand(1, 16, 3), "r": rand(1, 16, 4), "h0": rand(1, 2, 4)}
    proto = make(nodes, {"x": (5, 2, 3)}, ["y", "yh"], constants, opset=11)
    check(proto, {"x": rand(5, 2, 3)}, tolerance=0)


def test_passthrough_leaves_dropout_in_training_mode():
    proto = make(
        [node("Dropout", "x r f", "y")], {"x": (2,)}, ["y"], {"r": np.array(0.4, np.float32), "f": np.array(True)}
    )
    model = ir.from_proto(proto)
    assert remove_passthrough(model) == 0
