"""The kernel map and the assignment of each node, against what onnxruntime is known to do with hand-made QDQ models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from measure_models import Graph, conv_net, if_net, linear_net, residual_net

from onnxq.measure import assignments, kernel_map


@pytest.mark.parametrize("level", ["extended", "all"])
def test_conv_relu_conv_runs_on_integers(level: str) -> None:
    kernels = kernel_map(conv_net(), level=level)
    assert [k.op for k in kernels.integer_compute] == ["QLinearConv", "QLinearConv"]
    assert kernels.float_compute == ()
    assert kernels.waste == ()
    found = [(f.node, f.kernel, f.integer, f.why) for f in assignments(conv_net(), kernels)]
    assert found == [("conv1", "QLinearConv", True, ""), ("conv2", "QLinearConv", True, "")]


@pytest.mark.parametrize("level", ["extended", "all"])
def test_nodes_without_names_are_traced_by_their_outputs(level: str) -> None:
    model = conv_net(named=False)
    found = assignments(model, kernel_map(model, level=level))
    assert [(f.output, f.kernel, f.integer) for f in found] == [
        ("c1", "QLinearConv", True),
        ("c2", "QLinearConv", True),
    ]
    assert all(f.found_by in ("output", "weight") for f in found)


def test_missing_output_quantization_leaves_float_convs_and_says_why() -> None:
    model = conv_net(broken=True)
    kernels = kernel_map(model)
    assert kernels.integer_compute == ()
    first, second = assignments(model, kernels)
    assert (first.kernel, second.kernel) == ("FusedConv", "Conv")
    assert "QuantizeLinear" in first.why
    assert "r1" in second.why
    # Both weights are dequantized anew on every run.
    assert sorted(node.waste for node in kernels.waste) == [8 * 8, 8 * 4 * 9]
    assert kernels.float_compute[0].weights == ("w1_q",)


def test_matmul_with_bias_and_gemm() -> None:
    model = linear_net(quantized=True)
    found = assignments(model, kernel_map(model))
    assert [(f.node, f.op, f.integer) for f in found] == [("matmul", "MatMul", True), ("gemm", "Gemm", True)]
    assert found[1].kernel == "QGemm"


def test_float_model_is_all_float_even_where_layouts_rename_nodes() -> None:
    model = conv_net(quantized=False)
    for level in ("extended", "all"):
        found = assignments(model, kernel_map(model, level=level))
        assert [f.node for f in found] == ["conv1", "conv2"]
        assert all(f.kernel is not None and not f.integer and f.why for f in found)


def test_elementwise_and_movement_are_told_from_compute() -> None:
    counts = kernel_map(residual_net()).counts()
    assert counts["integer compute"] == {"QLinearConv": 1}
    assert counts["integer elementwise"] == {"QLinearAdd": 1}
    assert counts["integer movement"] == {"MaxPool": 1}
    assert "float compute" not in counts


def test_bodies_are_looked_into() -> None:
    kernels = kernel_map(if_net())
    found = {f.scope: (f.node, f.kernel, f.integer) for f in assignments(if_net(), kernels)}
    assert found == {
        "branch/then_branch": ("inner", "QLinearMatMul", True),
        "branch/else_branch": ("inner", "MatMul", False),
    }


def attention(*, named: bool) -> bytes:
    """A quantized MatMul, and a float one whose output QuantizeLinear onnxruntime moves up past a Transpose."""
    g = Graph(5)
    g.node("MatMul", [g.qdq("x"), g.weight("w", g.random(16, 16), axis=1)[0]], "m", name="first" if named else "")
    g.node("Tanh", [g.qdq("m")], "t")
    g.node("Reshape", ["t", g.const("turn", np.array([16, 5]))], "u")
    g.node("MatMul", ["t", "u"], "a", name="second" if named else "")
    g.node("Transpose", ["a"], "b", perm=[1, 0])
    g.qdq("b", out="y")
    return g.model({"x": [5, 16]}, {"y": [5, 5]})


@pytest.mark.parametrize("named", [True, False])
def test_values_renamed_by_moving_q_are_traced(named: bool) -> None:
    model = attention(named=named)
    found = assignments(model, kernel_map(model))
    assert [(f.output, f.kernel, f.integer) for f in found] == [
        ("m", "QLinearMatMul", True),
        ("a", "MatMul", False),
    ]


def test_a_nameless_weight_only_matmul_is_traced_by_its_weight() -> None:
    """Current releases make MatMulNBits of it, behind a Reshape, with the weight renamed; older ones leave it float."""
    g = Graph(6)
    g.node("MatMul", ["x", g.weight("w", g.random(64, 32), axis=1)[0]], "m", name="")
    g.node("Add", ["m", g.const("b", g.random(32))], "y", name="")
    model = g.model({"x": [1, 5, 64]}, {"y": [1, 5, 32]})
    (assignment,) = assignments(model, kernel_map(model))
    assert assignment.kernel in ("MatMulNBits", "MatMul", "Gemm")
    assert assignment.integer == (assignment.kernel == "MatMulNBits")


def test_an_inlined_branch_is_traced_and_the_dead_one_is_not() -> None:
    model = onnx.load_from_string(if_net())
    model.graph.node[1].CopyFrom(onnx.helper.make_node("Identity", ["always"], ["condition"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "always"))
    changed = model.SerializeToString()
    found = {f.scope: (f.kernel, f.integer) for f in assignments(changed, kernel_map(changed))}
    assert found == {"branch/then_branch": ("QLinearMatMul", True), "branch/else_branch": (None, False)}


def test_paths_and_bytes_agree_and_the_map_is_json(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(conv_net())
    a, b = kernel_map(path), kernel_map(conv_net())
    assert a.nodes == b.nodes
    assert json.loads(json.dumps(a.to_dict()))["counts"]["integer compute"] == {"QLinearConv": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]  # nothing is left beside the model
