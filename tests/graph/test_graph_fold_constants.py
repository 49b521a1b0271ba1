"""Constant folding, static shapes and known conditions: what becomes a constant and what must not."""

import numpy as np
import onnx_ir as ir
from graph_helpers import check, make, node, ops, rand
from onnx import helper

from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL


def test_weights_behind_other_nodes_become_plain():
    nodes = [
        node("Transpose", "w", "t", perm=[1, 0]),
        node("Identity", "t", "i"),
        node("Reshape", "i s", "r"),
        node("Cast", "r", "f", to=1),
        node("MatMul", "x f", "y"),
    ]
    constants = {"w": rand(5, 4).astype(np.float64), "s": np.array([4, -1])}
    model = check(make(nodes, {"x": (2, 4)}, ["y"], constants), {"x": rand(2, 4)}).model
    assert ops(model) == ["MatMul"]
    assert [value.const_value.shape.numpy() for value in model.graph.initializers.values()] == [(4, 5)]


def test_large_expansions_and_random_numbers_are_not_folded():
    nodes = [
        node("ConstantOfShape", "big", "a"),
        node("Expand", "one big", "b"),
        node("Tile", "one reps", "c"),
        node("RandomNormalLike", "one", "r"),
        node("Mul", "a b", "d"),
        node("ReduceSum", "d", "e"),
        node("ReduceSum", "c", "f"),
        node("Add", "e f", "h"),
        node("Add", "h x", "y"),
        node("Add", "r x", "z"),
    ]
    constants = {"big": np.array([1000, 100]), "one": np.ones((1, 1), np.float32), "reps": np.array([1000, 100])}
    found = ops(prepare(ir.from_proto(make(nodes, {"x": (1,)}, ["y", "z"], constants)), target=USUAL).model)
    assert {"ConstantOfShape", "Expand", "Tile", "RandomNormalLike"} <= set(found)


def test_shapes_of_static_dimensions_are_constants():
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s two", "c"),
        node("Unsqueeze", "c zero", "u"),
        node("Concat", "minus u", "t"),
        node("Reshape", "x t", "y"),
    ]
    nodes[3].attribute.append(helper.make_attribute("axis", 0))
    constants = {"two": np.array(2), "zero": np.array([0]), "minus": np.array([-1])}
    proto = make(nodes, {"x": ("N", 3, 8)}, ["y"], constants)
    assert ops(check(proto, {"x": rand(2, 3, 8)}).model) == ["Reshape"]
    free = make(nodes, {"x": ("N", 3, "W")}, ["y"], constants)
    assert "Shape" in ops(check(free, {"x": rand(2, 3, 8)}).model)


def test_shapes_that_the_file_claims_are_not_believed():
    nodes = [
        node("Relu", "x", "r"),
        node("Shape", "r", "s"),
        node("Gather", "s zero", "n"),
        node("Concat", "n minus", "t"),
        node("Reshape", "x t", "y"),
    ]
    nodes[3].attribute.append(helper.make_attribute("axis", 0))
    proto = make(nodes, {"x": ("N", 3, 2)}, ["y"], {"zero": np.array([0]), "minus": np.array([-1])})
    proto.graph.value_info.append(helper.make_tensor_value_info("r", 1, (1, 3, 2)))
    (reshape,) = (n for n in check(proto, {"x": rand(4, 3, 2)}).model.graph if n.op_type == "Reshape")
    assert reshape.inputs[1].const_value.numpy().tolist() == [0, 6]  # whatever the batch is: not the 1 of the claim


def test_if_with_a_constant_condition_becomes_its_branch():
    out = lambda name: [helper.make_tensor_value_info(name, 1, None)]  # noqa: E731
    then = helper.make_graph(
        [node("Constant", "", "k", value_float=2.0), node("Mul", "x k", "t")], "then", [], out("t")
    )
    other = helper.make_graph([node("Neg", "x", "e")], "else", [], out("e"))
    then.node[0].ClearField("input")
    nodes = [
        node("Shape", "x", "s"),
        node("Size", "s", "n"),
        node("Equal", "n three", "c"),
        helper.make_node("If", ["c"], ["h"], then_branch=then, else_branch=other),
        node("Relu", "h", "y"),
    ]
    for rank, expected in ((3, ["Mul", "Relu"]), (2, ["Neg", "Relu"])):
        proto = make(nodes, {"x": (2,) * rank}, ["y"], {"three": np.array(3)})
        assert ops(check(proto, {"x": rand(*(2,) * rank)}).model) == expected
