"""A weight and its transpose stay one constant; a stack of one matrix becomes that matrix."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_helpers import check, make, node, ops, ops_in_order, rand
from onnx import TensorProto

from onnxq.graph.linear import linear_of
from onnxq.kernels.held import held, readers, turned

TABLE = rand(40, 12)
IDS = np.array([[0, 5, 39]], np.int64)


def tied(head: np.ndarray | None, *, op: str = "MatMul") -> onnx.ModelProto:
    """A lookup and a product with the transpose of its table, or with ``head``."""
    first = [node("Gather", "table ids", "rows")]
    if head is None:
        nodes = [*first, node("Transpose", "table", "turned", perm=[1, 0]), node(op, "rows turned", "y")]
        return make(nodes, {"ids": (1, 3)}, ["y"], {"table": TABLE}, types={"ids": TensorProto.INT64})
    if op == "Gemm":
        first += [node("Squeeze", "rows axes", "flat")]
        nodes, more = [*first, node("Gemm", "flat head", "y")], {"axes": np.array([0])}
    else:
        nodes, more = [*first, node(op, "rows head", "y")], {}
    constants = {"table": TABLE, "head": head, **more}
    return make(nodes, {"ids": (1, 3)}, ["y"], constants, types={"ids": TensorProto.INT64})


@pytest.mark.parametrize("head", [None, TABLE.T.copy()], ids=["behind a Transpose", "as a copy"])
def test_a_table_and_its_transpose_stay_one(head: np.ndarray | None) -> None:
    found = check(tied(head), {"ids": IDS}).model
    assert sorted(ops(found)) == ["Gather", "MatMul", "Transpose"]
    assert list(found.graph.initializers) == ["table"]
    matmul = next(n for n in found.graph if n.op_type == "MatMul")
    assert turned(matmul.inputs[1])
    assert held(matmul.inputs[1]) is found.graph.initializers["table"]
    assert {(n.op_type, i) for n, i in readers(found.graph.initializers["table"])} == {("Gather", 0), ("MatMul", 1)}
    linear = linear_of(matmul)
    assert linear is not None
    assert (linear.channels, linear.inner_channels, linear.outputs_first, linear.foldable) == (40, 12, True, False)
    np.testing.assert_array_equal(linear.weight, TABLE)


def test_a_gemm_is_told_to_transpose() -> None:
    found = check(tied(TABLE.T.copy(), op="Gemm"), {"ids": IDS}).model
    gemm = next(n for n in found.graph if n.op_type == "Gemm")
    assert gemm.attributes["transB"].as_int() == 1
    assert gemm.inputs[1] is found.graph.initializers["table"]
    assert "Transpose" not in ops(found)


@pytest.mark.parametrize("place", [(0, 0), (7, 33), (11, 39)])
def test_what_differs_in_one_entry_is_another_weight(place: tuple[int, int]) -> None:
    other = TABLE.T.copy()
    other[place] += 1.0
    assert len(check(tied(other), {"ids": IDS}).model.graph.initializers) == 2


def test_a_transpose_that_others_read_is_computed_beforehand() -> None:
    nodes = [
        node("Gather", "table ids", "rows"),
        node("Transpose", "table", "turned", perm=[1, 0]),
        node("MatMul", "rows turned", "product"),
        node("ReduceMean", "rows", "mean", axes=[0, 1], keepdims=0),
        node("Unsqueeze", "mean axes", "column"),
        node("Mul", "turned column", "gated"),
        node("ReduceMean", "gated", "gate", axes=[0], keepdims=0),
        node("Add", "product gate", "y"),
    ]
    constants = {"table": TABLE, "axes": np.array([1])}
    proto = make(nodes, {"ids": (1, 3)}, ["y"], constants, types={"ids": TensorProto.INT64})
    assert "Transpose" not in ops(check(proto, {"ids": IDS}).model)


def test_a_transpose_of_what_nothing_else_reads_is_computed_beforehand() -> None:
    nodes = [node("Transpose", "w", "turned", perm=[1, 0]), node("MatMul", "x turned", "y")]
    found = check(make(nodes, {"x": (3, 12)}, ["y"], {"w": TABLE}), {"x": rand(3, 12)}).model
    assert ops(found) == ["MatMul"]


def test_factors_stay_out_of_a_shared_table() -> None:
    proto = tied(None)
    proto.graph.node.insert(2, node("Mul", "rows factor", "scaled"))
    proto.graph.node[3].input[0] = "scaled"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "factor"))
    found = check(proto, {"ids": IDS}).model
    assert [v.const_value.nbytes for v in found.graph.initializers.values() if v.const_value.nbytes > 8] == [
        40 * 12 * 4
    ]


def test_a_stack_and_its_transpose_stay_one() -> None:
    weight = rand(3, 12, 40)
    nodes = [
        node("MatMul", "x w", "a"),
        node("Transpose", "w", "turned", perm=[0, 2, 1]),
        node("MatMul", "a turned", "y"),
    ]
    found = check(make(nodes, {"x": (3, 5, 12)}, ["y"], {"w": weight}), {"x": rand(3, 5, 12)}).model
    assert list(found.graph.initializers) == ["w"]
    assert turned(list(found.graph)[-1].inputs[1])


@pytest.mark.parametrize("shape", [(1, 12, 40), (1, 1, 12, 40)])
@pytest.mark.parametrize("x", [(5, 12), (2, 5, 12), (2, 3, 5, 12)])
def test_a_stack_of_one_is_a_matrix(shape: tuple[int, ...], x: tuple[int, ...]) -> None:
    proto = make([node("MatMul", "x w", "a"), node("Relu", "a", "y")], {"x": x}, ["y"], {"w": rand(*shape)})
    found = check(proto, {"x": rand(*x)}).model
    matmul = next(n for n in found.graph if n.op_type == "MatMul")
    assert list(matmul.inputs[1].shape) == [12, 40]
    assert ("Unsqueeze" in ops(found)) == (len(x) < len(shape))


def test_a_stack_of_one_as_an_output() -> None:
    proto = make([node("MatMul", "x w", "y")], {"x": (5, 12)}, ["y"], {"w": rand(1, 12, 40)})
    found = check(proto, {"x": rand(5, 12)}).model
    assert ops_in_order(found) == ["MatMul", "Unsqueeze"]
    assert found.graph.outputs[0].name == "y"


def test_stacks_that_others_read_or_of_several_stay() -> None:
    several = make([node("MatMul", "x w", "y")], {"x": (2, 5, 12)}, ["y"], {"w": rand(2, 12, 40)})
    other = [node("MatMul", "x w", "a"), node("ReduceMax", "w", "b", axes=[1], keepdims=1), node("Add", "a b", "y")]
    nodes = make(other, {"x": (2, 5, 12), "z": (1,)}, ["y"], {"w": rand(1, 12, 40)})
    nodes.graph.node[1].input[0] = "moved"
    nodes.graph.node.insert(0, node("Mul", "w z", "moved"))
    for proto, feeds in ((several, {"x": rand(2, 5, 12)}), (nodes, {"x": rand(2, 5, 12), "z": rand(1)})):
        found = check(proto, feeds).model
        matmul = next(n for n in found.graph if n.op_type == "MatMul")
        assert len(matmul.inputs[1].shape) == 3
