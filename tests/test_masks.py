"""Masks of minus infinity, or of numbers that stand for it, are data: nothing quantized takes its range from them."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config, quantize
from onnxq.calibrate.observers import MASK, is_mask

D, T = 32, 6
LOW = [-np.inf, -3.4028235e38, -1e30, -1e9]
EVERYTHING = Config(placement="all")


def attention(low: float, *, inside: bool, read_by_layer: bool = False) -> onnx.ModelProto:
    """Attention with a mask [N, 1, T]: an input, or made of a boolean one inside."""
    rng, nodes = np.random.default_rng(0), []
    arrays = {"zero": np.float32(0), "low": np.float32(low), "half": np.float32(D**-0.5)}

    def op(kind: str, inputs: str, output: str, **how: object) -> None:
        nodes.append(helper.make_node(kind, inputs.split(), [output], name=output, **how))

    def layer(x: str, y: str, inputs: int = D, outputs: int = D) -> None:
        arrays[f"{y}_w"] = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        op("MatMul", f"{x} {y}_w", y)

    if inside:
        op("Where", "keep zero low", "mask")
    for name in "qkv":
        layer("x", name)
    op("Transpose", "k", "kt", perm=[0, 2, 1])
    op("MatMul", "q kt", "qk")
    op("Mul", "qk half", "scaled")
    op("Add", "scaled mask", "scores")
    op("Softmax", "scores", "p", axis=-1)
    op("MatMul", "p v", "pv")
    layer("pv", "y")
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", T, D])]
    if read_by_layer:
        layer("scores", "z", T, T)
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", T, T]))
    mask = ("keep", TensorProto.BOOL) if inside else ("mask", TensorProto.FLOAT)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", T, D]),
        helper.make_tensor_value_info(*mask, ["N", 1, T]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data(low: float, *, inside: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    keep = rng.random((32, 1, T)) < 0.7
    keep[..., 0] = True
    x = rng.standard_normal((32, T, D)).astype(np.float32)
    return {"x": x, "keep": keep} if inside else {"x": x, "mask": np.where(keep, 0, low).astype(np.float32)}


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("inside", [True, False])
def test_the_layers_around_a_mask_run_on_integers(low, inside):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = quantize(attention(low, inside=inside), data(low, inside=inside), config=EVERYTHING)
    assert {a.node for a in result.report.integer} >= set("qkvy")
    assert result.good
    assert result.comparison.sqnr_db > 25
    assert not result.comparison.problems


@pytest.mark.parametrize("low", LOW[1:])
def test_a_layer_that_reads_a_mask_stays_float_and_says_why(low):
    proto = attention(low, inside=False, read_by_layer=True)
    result = quantize(proto, data(low, inside=False), config=EVERYTHING)
    assert result.report.reason_codes["z"] == "mask"
    assert "a mask has no range" in result.report.reasons["z"]
    assert min(o.sqnr_db for o in result.comparison.outputs) > 25


def test_infinities_that_both_models_have_are_no_problem():
    proto = attention(-np.inf, inside=False)
    proto.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", T, T]))
    result = quantize(proto, data(-np.inf, inside=False), config=EVERYTHING)
    assert not result.comparison.problems
    assert result.good
    assert result.comparison.outputs[1].sqnr_db > 25


@pytest.mark.parametrize(
    ("values", "masks"),
    [([0, -np.inf], True), ([np.inf], True), ([MASK], True), ([-0.99e9, 1e30], False), ([], False), ([1, -1], False)],
)
def test_what_counts_as_a_mask(values, masks):
    assert is_mask(np.array(values, np.float32)) is masks
