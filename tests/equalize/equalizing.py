"""Small networks with channels of very different size, and data for them. Every test begins with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import TARGETS, USUAL

RNG = np.random.default_rng(5)
_START = RNG.bit_generator.state
TARGET = TARGETS["x86-vnni"]


def reseed() -> None:
    """Makes ``RNG`` draw the same numbers again."""
    RNG.bit_generator.state = _START


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def node(op_type: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=f"{op_type}_{output}", **attributes)


def model(nodes: list[onnx.NodeProto], shape: tuple, constants: dict[str, np.ndarray], outputs=("y",)) -> ir.Model:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, shape)],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return prepare(ir.from_proto(proto), target=USUAL).model


def spread(channels: int, decades: float = 1.0) -> np.ndarray:
    """Sizes of channels from 1 to a power of ten, shuffled."""
    return RNG.permutation(np.logspace(0, decades, channels)).astype(np.float32)


def convolutions(middle: str = "Relu", *, last: tuple[str, ...] = ()) -> ir.Model:
    """Conv, ``middle``, depthwise Conv, Relu, MaxPool, Conv; channels of very different size between them."""
    size = spread(8)[:, None, None, None]
    constants = {"w1": rand(8, 3, 3, 3) * size, "b1": rand(8), "w2": rand(8, 1, 3, 3), "b2": rand(8)}
    constants |= {"w3": rand(4, 8, 1, 1) / size[:, 0, 0, 0][None, :, None, None], "b3": rand(4)}
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node(middle, "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", group=8, pads=[1, 1, 1, 1]),
        node("Relu", "c2", "r2"),
        node("MaxPool", "r2", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p w3 b3", "y"),
    ]
    return model(nodes, ("batch", 3, 8, 8), constants, ("y", *last))


def transformer(*, epsilon: bool = False) -> ir.Model:
    """LayerNormalization, whole or spelled out after its division, two MatMuls that read it, and a Gemm."""
    gamma = spread(16, 1.5)
    constants = {"g": gamma, "b": rand(16), "w1": rand(16, 8) / gamma[:, None], "w2": rand(16, 8) / gamma[:, None]}
    constants |= {"bias": rand(8), "flat": np.array([-1, 16])}
    norm = [node("LayerNormalization", "x g b", "n")]
    if epsilon:
        norm = [node("Tanh", "x", "t"), node("Mul", "t g", "m"), node("Add", "b m", "n")]
    nodes = [
        *norm,
        node("MatMul", "n w1", "a"),
        node("Add", "a bias", "y"),
        node("MatMul", "n w2", "z"),
    ]
    return model(nodes, ("batch", 5, 16), constants, ("y", "z"))


def feeds(graph: ir.Model, count: int = 16) -> list[dict[str, np.ndarray]]:
    shape = [1, *(d for d in graph.graph.inputs[0].shape if isinstance(d, int))]
    return [{"x": rand(*shape)} for _ in range(count)]
