"""Files that onnxruntime saved after it optimized them: taken back to standard operators, or named as what they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import toys
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config, ModelError, quantize
from onnxq.analysis import inspection

LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# What a jump loses (ThresholdedRelu) is not what is asked here.
CONFIG = Config(placement="all", latency_seconds=0.0, min_agreement=0.0)


def optimized(proto: onnx.ModelProto, level: str, path: Path) -> Counter[str]:
    """Has onnxruntime write what it makes of ``proto``; how many nodes of each domain that has."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.domain for node in onnx.load(path).graph.node)


def perceptron(activation: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes, constants = [], []
    for i in range(3):
        weight = (rng.standard_normal((64, 64)) / 8).astype(np.float32)
        constants += [numpy_helper.from_array(weight, f"w{i}"), numpy_helper.from_array(weight[0], f"b{i}")]
        nodes.append(helper.make_node("Gemm", [f"h{i}" if i else "x", f"w{i}", f"b{i}"], [f"p{i}"], f"gemm{i}"))
        nodes.append(helper.make_node(activation, [f"p{i}"], [f"h{i + 1}" if i < 2 else "y"], f"act{i}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


ACTIVATIONS = (
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid"),
    *("Elu", "Selu", "Softplus", "Softsign", "ThresholdedRelu"),
)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_products_with_their_activation_inside_are_spelled_out(activation: str, level: str, tmp_path: Path) -> None:
    proto, path = perceptron(activation), tmp_path / "m.onnx"
    domains = optimized(proto, level, path)
    assert (domains["com.microsoft"] > 0) == (level != "basic")
    data = {"x": np.random.default_rng(1).standard_normal((48, 64)).astype(np.float32)}
    before, after = (quantize(source, data, config=CONFIG) for source in (proto, path))
    assert len(after.plan.layers) == len(before.plan.layers) == 3
    assert before.report.sqnr_db == pytest.approx(after.report.sqnr_db, abs=0.5)


def test_layouts_of_the_kernels_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if not optimized(toys.classifier(), "all", path)["com.microsoft.nchwc"]:
        pytest.skip("onnxruntime has no blocked layout on this machine")
    with pytest.raises(ModelError, match="saved by onnxruntime after it optimized it") as caught:
        quantize(path, {"image": toys.images(16)})
    assert caught.value.hint == "give the model as it was before onnxruntime optimized it"
    assert inspection.inspect(path)  # what is in it may be looked at
