"""What passes must leave alone: each would change what onnxruntime computes, or what it takes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graph_helpers import check, make, node, ops, rand

from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL


def test_large_weights_that_only_begin_alike_stay_two() -> None:
    first = rand(32, 32, seed=1)
    second = first.copy()
    second[2:] = rand(30, 32, seed=2)  # shape and the first 64 numbers agree
    nodes = [node("MatMul", "x a", "p"), node("Relu", "p", "r"), node("MatMul", "r b", "y")]
    check(make(nodes, {"x": (3, 32)}, ["y"], {"a": first, "b": second}), {"x": rand(3, 32)})


def test_padding_as_large_as_the_kernel_stays_a_pad() -> None:
    pads = np.array([0, 0, 2, 2, 0, 0, 2, 2])
    nodes = [node("Relu", "x", "r"), node("Pad", "r pads", "p"), node("MaxPool", "p", "y", kernel_shape=[2, 2])]
    proto = make(nodes, {"x": (1, 2, 6, 6)}, ["y"], {"pads": pads})
    assert "Pad" in ops(check(proto, {"x": rand(1, 2, 6, 6)}).model)


def test_a_mask_that_another_constant_lifts_hides_no_deeper() -> None:
    constants = {"mask": np.array([[0, -100, 0]], np.float32), "lift": np.array([[0, 100, 0]], np.float32)}
    nodes = [node("Add", "x mask", "m"), node("Add", "m lift", "l"), node("Softmax", "l", "y")]
    proto = make(nodes, {"x": (2, 3)}, ["y"], constants)
    check(proto, {"x": rand(2, 3)})


def test_masks_of_minus_infinity_hide_whatever_the_scores() -> None:
    constants = {"mask": np.array([[0, -np.inf, 0]], np.float32)}
    proto = make([node("Add", "x mask", "m"), node("Softmax", "m", "y")], {"x": (1, 3)}, ["y"], constants)
    check(proto, {"x": np.array([[-5e4, 0, -5e4]], np.float32)})


def test_a_normalisation_whose_mean_is_read_stays_fused() -> None:
    fused = node("SkipLayerNormalization", "x z g b", "n mean", domain="com.microsoft")
    proto = make(
        [fused, node("Identity", "mean", "u")],
        {"x": (1, 2, 8), "z": (1, 2, 8)},
        ["n", "u"],
        {"g": rand(8), "b": rand(8)},
        opset=17,
        extra_opsets={"com.microsoft": 1},
    )
    model = prepare(ir.from_proto(proto), target=USUAL).model
    (kept,) = (n for n in model.graph if n.op_type == "SkipLayerNormalization")
    assert len(kept.outputs) >= 2
    assert kept.outputs[1].name
