"""Redirecting values: the outside sees the same outputs, by number, name, type and order; and making nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_helpers import check, make, node, ops_in_order, rand
from onnx import TensorProto, helper, numpy_helper

from onnxq.graph.edit import bypass, can_bypass, redirect, supersede
from onnxq.graph.nodes import After, AtEnd, Before, NodeBuilder


def model_of(proto: onnx.ModelProto) -> tuple[ir.Model, dict[str, ir.Value]]:
    model = ir.from_proto(proto)
    values = {v.name or "": v for n in model.graph for v in n.outputs}
    return model, values | {v.name or "": v for v in (*model.graph.inputs, *model.graph.initializers.values())}


def outputs(model: ir.Model) -> list[str | None]:
    return [output.name for output in model.graph.outputs]


def chain() -> onnx.ModelProto:
    nodes = [node("Relu", "x", "a"), node("Abs", "a", "b"), node("Neg", "b", "c"), node("Exp", "b", "d")]
    return make(nodes, {"x": (2, 3)}, ["d", "b", "c"])


def test_a_computed_value_takes_the_name_of_the_output_that_it_becomes() -> None:
    model, values = model_of(chain())
    redirect(values["b"], values["a"])
    assert outputs(model) == ["d", "b", "c"]
    assert model.graph.outputs[1] is values["a"]
    assert {n.op_type for n, _ in values["a"].uses()} == {"Abs", "Neg", "Exp"}


@pytest.mark.parametrize("source", ["x", "c", "w"])
def test_what_is_known_outside_keeps_its_name_behind_an_identity(source: str) -> None:
    proto = chain()
    proto.graph.initializer.append(numpy_helper.from_array(rand(2, 3), "w"))
    model, values = model_of(proto)
    redirect(values["d"], values[source])
    assert outputs(model) == ["d", "b", "c"]
    made = model.graph.outputs[0].producer()
    assert made is not None
    assert made.op_type == "Identity"
    assert made.inputs[0] is values[source]
    assert values[source].name == source


def test_nodes_that_make_the_new_value_go_on_reading_the_old_one() -> None:
    model, values = model_of(chain())
    add = NodeBuilder(After(model.graph[1])).node("Add", [values["b"], values["b"]], name="twice")
    redirect(values["b"], add.outputs[0], but=[add])
    assert [v is values["b"] for v in add.inputs] == [True, True]
    assert outputs(model) == ["d", "b", "c"]
    assert model.graph.outputs[1] is add.outputs[0]


def test_an_outputs_type_and_shape_outlive_it() -> None:
    model, values = model_of(chain())
    values["b"].type, values["b"].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 3])
    redirect(values["b"], values["a"])
    assert model.graph.outputs[1].shape == ir.Shape(["n", 3])
    assert model.graph.outputs[1].dtype == ir.DataType.FLOAT


def test_an_input_keeps_its_name_where_it_takes_the_place_of_a_value() -> None:
    _, values = model_of(make([node("Abs", "x", "a"), node("Neg", "a", "y")], {"x": (2,)}, ["y"]))
    supersede(values["a"], values["x"])
    assert values["x"].name == "x"
    assert values["y"].producer().inputs[0] is values["x"]  # type: ignore[union-attr]


def test_a_new_value_has_the_old_name() -> None:
    model, values = model_of(make([node("Abs", "x", "a"), node("Neg", "a", "y")], {"x": (2,)}, ["y"]))
    new = NodeBuilder(Before(model.graph[0]))("Relu", [values["x"]], name="r")
    supersede(values["a"], new)
    assert new.name == "a"
    assert values["a"].name is None


def test_no_node_goes_that_would_leave_an_identity() -> None:
    model, values = model_of(make([node("Abs", "x", "y"), node("Neg", "y", "z")], {"x": (2,)}, ["y", "z"]))
    first, second = tuple(model.graph)
    assert not can_bypass(first, keep=values["x"])  # a graph input
    assert not bypass(second, keep=values["y"])  # an output itself
    assert outputs(model) == ["y", "z"]
    assert len(tuple(model.graph)) == 2


def test_nodes_stand_in_the_order_in_which_they_are_made() -> None:
    for place in (Before, After, AtEnd):
        model, values = model_of(make([node("Abs", "x", "a"), node("Neg", "a", "y")], {"x": (2,)}, ["y"]))
        build = NodeBuilder(AtEnd(model.graph) if place is AtEnd else place(model.graph[1]))
        build("Exp", [build("Relu", [values["a"]], name="one")], name="two")
        found = [n.op_type for n in model.graph]
        assert found == (["Abs", "Relu", "Exp", "Neg"] if place is Before else ["Abs", "Neg", "Relu", "Exp"])


def test_names_and_attributes_of_new_nodes() -> None:
    model, values = model_of(make([node("Abs", "x", "y")], {"x": (2,)}, ["y"]))
    taken = {"n", "n_output"}
    build = NodeBuilder(AtEnd(model.graph), fresh=lambda name: f"{name}_2" if name in taken else name)
    made = build.node("Split", [values["y"]], name="n", outputs=(None, "given"), axis=0, num_outputs=None)
    assert (made.name, [v.name for v in made.outputs]) == ("n_2", ["n_output_2", "given"])
    assert list(made.attributes) == ["axis"]
    plain = build("Relu", [values["y"]], name="p", like=values["x"], domain="com.microsoft")
    assert (plain.name, plain.shape, plain.producer().domain) == ("p_output", values["x"].shape, "com.microsoft")  # type: ignore[union-attr]


# -- chains that move nothing -----------------------------------------------------------------------------------------


def still(nodes: list[onnx.NodeProto], outs: list[str], shape: tuple[int, ...] = (2, 3)) -> list[str]:
    """The operators that are left of ``nodes``, whose outputs are checked."""
    constants = {"w": rand(3, 3), "there": np.array([3, 2]), "back": np.array([2, 3])}
    proto = make(nodes, {"x": shape}, outs, constants)
    prepared = check(proto, {"x": rand(*shape)}).model
    assert [v.name for v in prepared.graph.outputs] == outs
    assert [v.name for v in prepared.graph.inputs] == ["x"]
    return ops_in_order(prepared)


STAYS = node("Transpose", "x", "y", perm=[0, 1])
TWICE = [node("Transpose", "x", "t", perm=[1, 0]), node("Transpose", "t", "y", perm=[1, 0])]


@pytest.mark.parametrize("nodes", [[STAYS], TWICE], ids=["one", "two"])
def test_from_an_input_to_an_output(nodes: list[onnx.NodeProto]) -> None:
    assert still(nodes, ["y"]) in (["Identity"], ["Transpose"])


def test_from_an_input_to_an_output_beside_a_layer() -> None:
    assert "MatMul" in still([node("MatMul", "x w", "z"), *TWICE], ["z", "y"])
    assert "MatMul" in still([node("MatMul", "x w", "z"), *TWICE], ["y", "z"])


def test_from_an_input_to_a_node() -> None:
    nodes = [*TWICE[:1], node("Transpose", "t", "u", perm=[1, 0]), node("Relu", "u", "y")]
    assert still(nodes, ["y"]) == ["Relu"]


def test_from_an_output_to_an_output() -> None:
    back = [node("Transpose", "h", "t", perm=[1, 0]), node("Transpose", "t", "z", perm=[1, 0])]
    assert "MatMul" in still([node("MatMul", "x w", "h"), *back], ["h", "z"])
    assert "MatMul" in still([node("MatMul", "x w", "h"), *back], ["z", "h"])
    assert "MatMul" in still([node("MatMul", "x w", "h"), node("Transpose", "h", "z", perm=[0, 1])], ["h", "z"])


def test_an_output_that_is_read_on() -> None:
    back = [node("Transpose", "h", "t", perm=[1, 0]), node("Transpose", "t", "z", perm=[1, 0])]
    assert "Relu" in still([node("MatMul", "x w", "h"), *back, node("Relu", "z", "r")], ["z", "r", "h"])


@pytest.mark.parametrize("perms", [[[0, 1]], [[1, 0], [1, 0]]], ids=["one", "two"])
def test_from_an_outer_value_to_an_output_of_a_body(perms: list[list[int]]) -> None:
    names = ["m", *(f"t{i}" for i in range(len(perms)))]
    nodes = [node("Transpose", a, b, perm=p) for a, b, p in zip(names[:-1], names[1:], perms, strict=True)]
    value = helper.make_tensor_value_info
    then = helper.make_graph(nodes, "then", [], [value(names[-1], TensorProto.FLOAT, [2, 3])])
    other = helper.make_graph([node("Neg", "m", "e")], "other", [], [value("e", TensorProto.FLOAT, [2, 3])])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    nodes, inputs = [node("MatMul", "x w", "m"), branch], {"x": (2, 3), "c": ()}
    proto = make(nodes, inputs, ["y"], {"w": rand(3, 3)}, types={"c": TensorProto.BOOL})
    for flag in (True, False):
        check(proto, {"x": rand(2, 3), "c": np.array(flag)})
