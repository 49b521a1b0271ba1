"""Small models, and files of them, for the tests of the command line and of the thin API above it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 6


def classifier(
    *, dtype: type = np.float32, opset: int = 17, batch: int | str = "batch", seed: int = 0
) -> onnx.ModelProto:
    """image [batch, 3, 8, 8] -> Conv, Relu, GlobalAveragePool, Flatten, Gemm -> logits [batch, CLASSES]."""
    rng = np.random.default_rng(seed)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {
        "conv.weight": rng.standard_normal((16, 3, 3, 3)) / 5,
        "conv.bias": rng.standard_normal(16) / 10,
        "fc.weight": rng.standard_normal((CLASSES, 16)) / 2,
        "fc.bias": rng.standard_normal(CLASSES) / 10,
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight", "conv.bias"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]
    return _model(
        nodes,
        {"image": (kind, [batch, 3, 8, 8])},
        {"logits": (kind, [batch, CLASSES])},
        {name: value.astype(dtype) for name, value in weights.items()},
        opset=opset,
    )


def adder() -> onnx.ModelProto:
    """a + b with no weights: nothing in it can be quantized."""
    shape = (TensorProto.FLOAT, ["batch", 4])
    return _model([helper.make_node("Add", ["a", "b"], ["sum"], "add")], {"a": shape, "b": shape}, {"sum": shape}, {})


def cutter() -> onnx.ModelProto:
    """x [1, T] -> its positive entries [K], T ahead of them as a scalar: shapes that no batch axis explains."""
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], "relu"),
        helper.make_node("Cast", ["y"], ["mask"], "cast", to=TensorProto.BOOL),
        helper.make_node("Compress", ["x", "flat"], ["kept"], "compress"),
        helper.make_node("Reshape", ["mask", "minus_one"], ["flat"], "reshape"),
        helper.make_node("ReduceSum", ["x"], ["total"], "sum", keepdims=0),
    ]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    return _model(
        nodes,
        {"x": (TensorProto.FLOAT, [1, "time"])},
        {"kept": (TensorProto.FLOAT, ["k"]), "total": (TensorProto.FLOAT, [])},
        {"minus_one": np.array([-1], np.int64)},
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, tuple[int, list[int | str]]],
    constants: dict[str, np.ndarray],
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def images(count: int = 32, *, seed: int = 1) -> np.ndarray:
    """[count, 3, 8, 8] float32, each with a brightness and a colour of its own so that the classes differ."""
    rng = np.random.default_rng(seed)
    tint = rng.standard_normal((count, 3, 1, 1)) * 2
    return (tint + rng.standard_normal((count, 3, 8, 8)) / 2).astype(np.float32)


def write(model: onnx.ModelProto, path: Path) -> Path:
    """``path``, where ``model`` now lies."""
    onnx.save_model(model, path)
    return path
