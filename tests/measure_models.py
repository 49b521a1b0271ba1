"""Small QDQ models for the tests of measure/, built by hand so that every name and scale is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxq.numerics import INT8, PerAxis, params, round_half_even

Dims = Sequence[int | str]


class Graph:
    """Nodes and initialisers in the making; every method returns the name of the value it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)
        self.weights: dict[str, npt.NDArray[np.float32]] = {}

    def random(self, *shape: int) -> npt.NDArray[np.float32]:
        return (self.rng.standard_normal(shape) * 0.3).astype(np.float32)

    def const(self, name: str, value: npt.ArrayLike) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, *, name: str | None = None, **attributes: Any) -> str:
        label = f"{output}_node" if name is None else name
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=label, **attributes))
        return output

    def qdq(self, x: str, *, scale: float = 0.03, zero: int = 128, out: str | None = None) -> str:
        s, z = self.const(f"{x}_scale", np.float32(scale)), self.const(f"{x}_zero", np.uint8(zero))
        self.node("QuantizeLinear", [x, s, z], f"{x}_q")
        return self.node("DequantizeLinear", [f"{x}_q", s, z], out or f"{x}_dq")

    def weight(
        self, name: str, value: npt.NDArray[np.float32], *, axis: int = 0
    ) -> tuple[str, npt.NDArray[np.float32]]:
        """(dequantized weight, its scale for each channel)."""
        others = tuple(i for i in range(value.ndim) if i != axis)
        p = params(INT8, np.abs(value).max(axis=others) / 127, granularity=PerAxis(axis))
        self.weights[name] = value
        inputs = [
            self.const(f"{name}_q", p.quantize(value)),
            self.const(f"{name}_s", p.scale),
            self.const(f"{name}_z", p.zero_point),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}_dq", axis=axis), p.scale

    def bias(self, name: str, scale: npt.NDArray[np.float32]) -> str:
        codes = self.const(f"{name}_q", self.rng.integers(-99, 99, scale.shape).astype(np.int32))
        return self.node("DequantizeLinear", [codes, self.const(f"{name}_s", scale)], f"{name}_dq", axis=0)

    def body(self, name: str, outputs: Sequence[str]) -> onnx.GraphProto:
        return helper.make_graph(self.nodes, name, [], [value(o, None) for o in outputs], self.initializers)

    def model(self, inputs: dict[str, Dims], outputs: dict[str, Dims | None], *, opset: int = 17, ir: int = 8) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [value(n, d) for n, d in inputs.items()],
            [value(n, d) for n, d in outputs.items()],
            self.initializers,
        )
        imports = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir).SerializeToString()


def value(name: str, dims: Dims | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


X_SCALE = np.float32(0.03)


def conv_net(*, quantized: bool = True, broken: bool = False, named: bool = True) -> bytes:
    """Conv+Relu -> Conv; ``broken``: no QuantizeLinear between them; ``named``: whether nodes have names."""
    g = Graph()
    w1, w2 = g.random(8, 4, 3, 3), g.random(8, 8, 1, 1)
    if not quantized:
        g.node("Conv", ["x", g.const("w1", w1)], "c1", name="conv1")
        g.node("Relu", ["c1"], "r1", name="relu")
        g.node("Conv", ["r1", g.const("w2", w2)], "y", name="conv2")
    else:
        g.node("Conv", [g.qdq("x"), g.weight("w1", w1)[0]], "c1", name="conv1" if named else "")
        g.node("Relu", ["c1"], "r1", name="relu" if named else "")
        middle = "r1" if broken else g.qdq("r1", zero=0)
        g.node("Conv", [middle, g.weight("w2", w2)[0]], "c2", name="conv2" if named else "")
        g.qdq("c2", scale=0.06, out="y")
    return g.model({"x": [1, 4, 8, 8]}, {"y": [1, 8, 6, 6]})


def linear_net(*, quantized: bool, dynamic: bool = False) -> bytes:
    """MatMul + bias, Relu, Gemm: the float one and its quantized version with the same value names."""
    g = Graph(1)
    w1, b1, w2 = g.random(16, 12), g.random(12), g.random(10, 12)
    if quantized:
        x = g.qdq("x")
        w, scale = g.weight("w1", w1, axis=1)
        g.const("b1_q", round_half_even(b1 / (X_SCALE * scale)).astype(np.int32))
        bias = g.node("DequantizeLinear", ["b1_q", g.const("b1_s", X_SCALE * scale)], "b1_dq", axis=0)
        last, _ = g.weight("w2", w2)
    else:
        x, w, bias, last = "x", g.const("w1", w1), g.const("b1", b1), g.const("w2", w2)
    g.node("MatMul", [x, w], "m", name="matmul")
    g.node("Add", ["m", bias], "a", name="bias")
    h = g.node("Relu", ["a"], "h", name="relu")
    g.node("Gemm", [g.qdq("h", zero=0) if quantized else h, last], "y", name="gemm", transB=1)
    rows: int | str = "n" if dynamic else 2
    return g.model({"x": [rows, 16]}, {"y": [rows, 10]})


def residual_net() -> bytes:
    g = Graph(2)
    x = g.qdq("x")
    w, scale = g.weight("w", g.random(4, 4, 3, 3))
    g.node("Conv", [x, w, g.bias("b", X_SCALE * scale)], "c", name="conv", pads=[1, 1, 1, 1])
    g.node("Add", [g.qdq("c"), x], "a", name="add")
    g.node("Relu", ["a"], "r", name="relu")
    pooled = g.node("MaxPool", [g.qdq("r", zero=0)], "p", name="pool", kernel_shape=[2, 2], strides=[2, 2])
    g.nodes.append(helper.make_node("QuantizeLinear", [pooled, "r_scale", "r_zero"], ["p_q"]))
    g.nodes.append(helper.make_node("DequantizeLinear", ["p_q", "r_scale", "r_zero"], ["y"]))
    return g.model({"x": [1, 4, 8, 8]}, {"y": [1, 4, 4, 4]})


def if_net() -> bytes:
    """An If whose then-branch quantizes its MatMul inside the body; the else-branch is float."""
    then, other, g = Graph(3), Graph(4), Graph()
    then.node("MatMul", [then.qdq("x"), then.weight("w", then.random(16, 8), axis=1)[0]], "m", name="inner")
    then.qdq("m", out="then_y")
    other.node("MatMul", ["x", other.const("wf", other.random(16, 8))], "else_y", name="inner")
    g.node("ReduceMax", ["x"], "top", keepdims=0)
    g.node("Greater", ["top", g.const("zero", np.float32(0))], "condition")
    branches = {"then_branch": then.body("then", ["then_y"]), "else_branch": other.body("else", ["else_y"])}
    g.node("If", ["condition"], "y", name="branch", **branches)
    return g.model({"x": [3, 16]}, {"y": [3, 8]})


def feeds(count: int, *shape: int, seed: int = 0) -> list[dict[str, npt.NDArray[Any]]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def one_node(op: str, dims: Dims, *, out: str = "y", opset: int = 17, ir: int = 8, **attributes: Any) -> bytes:
    """A float model of one node from ``x`` to ``y``."""
    g = Graph()
    g.node(op, ["x"], out, **attributes)
    return g.model({"x": dims}, {out: None}, opset=opset, ir=ir)
