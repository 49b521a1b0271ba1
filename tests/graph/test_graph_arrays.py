"""What constant folding computes in numpy equals what onnxruntime computes."""

import numpy as np
import pytest
from graph_helpers import check, make, node, ops, rand
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from onnxq.graph.io import load
from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL

A = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
F = rand(2, 3, 4)

CASES = {
    "Add": ("a b", {"a": A, "b": A[:, :1] - 7}, {}),
    "Sub": ("a b", {"a": A, "b": A[:1]}, {}),
    "Mul": ("a b", {"a": A, "b": np.array(-3)}, {}),
    "Div": ("a b", {"a": A - 9, "b": np.array(-4)}, {}),
    "Equal": ("a b", {"a": A, "b": np.array(5)}, {}),
    "Concat": ("a b", {"a": A, "b": A}, {"axis": -2}),
    "ConstantOfShape": ("s", {"s": np.array([2, 3])}, {"value": numpy_helper.from_array(np.array([7]))}),
    "ConstantOfShape float": ("s", {"s": np.array([2, 3])}, {}),
    "Gather": ("a i", {"a": A, "i": np.array([[0, -1], [2, 1]])}, {"axis": 1}),
    "Gather scalar": ("a i", {"a": F, "i": np.array(-1)}, {"axis": 2}),
    "Reshape": ("a s", {"a": A, "s": np.array([0, -1, 2])}, {}),
    "Squeeze": ("a s", {"a": A[:1, None], "s": np.array([0, -3])}, {}),
    "Squeeze all": ("a", {"a": A[:1, :1]}, {}),
    "Unsqueeze": ("a s", {"a": A, "s": np.array([0, -1])}, {}),
    "Transpose": ("a", {"a": F}, {}),
    "Transpose perm": ("a", {"a": F}, {"perm": [1, 2, 0]}),
    "Where": ("c a b", {"c": A > 4, "a": A, "b": np.array(0)}, {}),
    "Cast to float": ("a", {"a": A}, {"to": TensorProto.FLOAT}),
    "Cast to int": ("a", {"a": F * 5}, {"to": TensorProto.INT64}),
    "Cast to bool": ("a", {"a": A}, {"to": TensorProto.BOOL}),
    "Cast to half": ("a", {"a": F}, {"to": TensorProto.FLOAT16}),
    "Identity": ("a", {"a": A}, {}),
    "Range": ("a b c", {"a": np.array(3), "b": np.array(11), "c": np.array(2)}, {}),
    "Expand": ("a s", {"a": np.array([[1], [2]]), "s": np.array([2, 5])}, {}),
    "Sqrt": ("a", {"a": np.abs(F)}, {}),
    "Shape": ("a", {"a": F}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_folded_operators_match_onnxruntime(case):
    inputs, constants, attributes = CASES[case]
    op = case.split()[0]
    nodes = [node(op, inputs, "k", **attributes), node("Cast", "k", "f", to=1), node("Mul", "x f", "y")]
    prepared = check(make(nodes, {"x": ()}, ["y"], constants), {"x": np.array(1.5, np.float32)}, tolerance=0)
    assert ops(prepared.model) == ["Mul"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-6, 6), st.sampled_from([-7, -1, 0, 1, 2, 3, 2**62]), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_folded_slices_match_onnxruntime(parts, negative_axes):
    starts, ends, steps = (np.array(column, dtype=np.int64) for column in zip(*parts, strict=True))
    axes = np.arange(len(parts)) - (3 if negative_axes else 0)
    nodes = [node("Slice", "a s e x t", "k"), node("Cast", "k", "f", to=1), node("Mul", "f z", "y")]
    constants = {"a": A, "s": starts, "e": ends, "x": axes, "t": steps}
    prepared = check(make(nodes, {"z": ()}, ["y"], constants), {"z": np.array(1.5, np.float32)}, tolerance=0)
    assert "Slice" not in ops(prepared.model)


def test_a_node_that_fails_for_its_values_is_left_to_the_runtime():
    nodes = [node("Gather", "a i", "k"), node("Cast", "k", "f", to=1), node("Mul", "f z", "y")]
    proto = make(nodes, {"z": ()}, ["y"], {"a": A, "i": np.array([9])})
    assert "Gather" in ops(prepare(load(proto), target=USUAL).model)
