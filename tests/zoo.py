"""Small float networks by name, each a pattern that quantization meets in the wild; weights are random, signals sane.

``ZOO[name]()`` is an ``onnx.ModelProto``; ``feeds(proto, count)`` are inputs for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL

Array = npt.NDArray[Any]
Dims = Sequence[int | str]


class Net:
    """Nodes and constants in the making: ``net("Relu", x)`` is the name of the tensor that it makes.

    A node has the name that is given as ``name``, its output is called likewise with ``_out``.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def const(self, name: str, data: npt.ArrayLike, dtype: Any = np.float32) -> str:
        self.constants[name] = np.asarray(data, dtype)
        return name

    def __call__(self, op: str, *inputs: str, name: str, out: str | None = None, **attributes: Any) -> str:
        out = out or f"{name}_out"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=name, **attributes))
        return out

    def many(self, op: str, *inputs: str, name: str, count: int, **attributes: Any) -> list[str]:
        outs = [f"{name}_out{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), outs, name=name, **attributes))
        return outs

    def weight(self, name: str, *shape: int, fan: int | None = None) -> str:
        fan = int(np.prod(shape[1:])) if fan is None else fan
        return self.const(name, self.rng.standard_normal(shape) * np.sqrt(2.0 / fan))

    def vector(self, name: str, size: int) -> str:
        return self.const(name, self.rng.standard_normal(size) * 0.1)

    def conv(
        self,
        x: str,
        cin: int,
        cout: int,
        *,
        k: int = 3,
        name: str,
        bias: bool = True,
        out: str | None = None,
        **how: Any,
    ) -> str:
        group = how.get("group", 1)
        inputs = [x, self.weight(f"{name}_w", cout, cin // group, k, k)]
        inputs += [self.vector(f"{name}_b", cout)] if bias else []
        return self("Conv", *inputs, name=name, out=out, pads=[k // 2] * 4, kernel_shape=[k, k], **how)

    def linear(self, x: str, cin: int, cout: int, *, name: str, bias: bool = True, out: str | None = None) -> str:
        """MatMul ``name``, and Add ``name_bias`` where there is a bias."""
        y = self("MatMul", x, self.weight(f"{name}_w", cin, cout, fan=cin), name=name, out=None if bias else out)
        return self("Add", y, self.vector(f"{name}_b", cout), name=f"{name}_bias", out=out) if bias else y

    def body(self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: dict[str, Any]) -> onnx.GraphProto:
        return helper.make_graph(self.nodes, name, list(inputs), _values(outputs), _tensors(self.constants))

    def model(
        self, inputs: dict[str, Any], outputs: dict[str, Any], *, opset: int = 17, ir_version: int = 8
    ) -> onnx.ModelProto:
        """``inputs`` and ``outputs``: {name: dims} for float tensors, {name: (type, dims)} for others."""
        graph = helper.make_graph(self.nodes, "g", _values(inputs), _values(outputs), _tensors(self.constants))
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        onnx.checker.check_model(proto)
        return proto


def _values(of: dict[str, Any]) -> list[onnx.ValueInfoProto]:
    typed = {n: d if isinstance(d, tuple) else (TensorProto.FLOAT, d) for n, d in of.items()}
    return [helper.make_tensor_value_info(n, kind, dims) for n, (kind, dims) in typed.items()]


def _tensors(constants: dict[str, Array]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(data, name) for name, data in constants.items()]


def prepared(proto: onnx.ModelProto) -> ir.Model:
    return prepare(ir.from_proto(proto), target=USUAL).model


def feeds(proto: onnx.ModelProto, count: int = 8, *, seed: int = 0, scale: float = 1.0) -> list[dict[str, Array]]:
    """Normal floats, small indices for integers; symbolic dimensions are 2."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        feed: dict[str, Array] = {}
        for value in proto.graph.input:
            tensor = value.type.tensor_type
            shape = [d.dim_value or 2 for d in tensor.shape.dim]
            if tensor.elem_type == TensorProto.FLOAT:
                feed[value.name] = (rng.standard_normal(shape) * scale).astype(np.float32)
            elif tensor.elem_type == TensorProto.BOOL:
                feed[value.name] = np.ones(shape, bool)
            else:
                feed[value.name] = rng.integers(0, 4, shape)
        made.append(feed)
    return made


# -- the networks ---------------------------------------------------------------------------------------------------


def residual(opset: int = 17) -> onnx.ModelProto:
    n = Net(1)
    x = n("Relu", n.conv("x", 3, 8, name="stem"), name="stem_relu")
    y = n("Relu", n.conv(x, 8, 8, name="conv1"), name="relu1")
    y = n("Add", n.conv(y, 8, 8, name="conv2"), x, name="add")
    y = n("Relu", y, name="relu2")
    y = n("GlobalAveragePool", y, name="gap")
    y = n("Flatten", y, name="flatten")
    n("Gemm", y, n.weight("fc_w", 10, 8), n.vector("fc_b", 10), name="fc", out="y", transB=1)
    return n.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 10]}, opset=opset)


def mobilenet() -> onnx.ModelProto:
    n = Net(2)
    zero, six = n.const("zero", 0.0), n.const("six", 6.0)
    x = n.conv("x", 3, 8, name="stem")
    y = n("Clip", n.conv(x, 8, 24, k=1, name="expand"), zero, six, name="clip1")
    y = n("Clip", n.conv(y, 24, 24, name="depthwise", group=24), zero, six, name="clip2")
    y = n("Add", n.conv(y, 24, 8, k=1, name="project"), x, name="add")
    n.conv(y, 8, 4, k=1, name="head", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})


def squeeze_excite() -> onnx.ModelProto:
    n = Net(3)
    x = n("Relu", n.conv("x", 3, 16, name="stem"), name="stem_relu")
    s = n("GlobalAveragePool", x, name="pool")
    s = n("Relu", n.conv(s, 16, 4, k=1, name="down"), name="down_relu")
    s = n("Sigmoid", n.conv(s, 4, 16, k=1, name="up"), name="gate")
    y = n("Mul", x, s, name="scale")
    y = n("Relu", n.conv(y, 16, 8, k=1, name="after"), name="after_relu")
    n.conv(y, 8, 4, k=1, name="head", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})


def hard_swish() -> onnx.ModelProto:
    """As in MobileNetV3; its 40 depthwise channels become 48."""
    n = Net(20)
    x = n.conv("x", 3, 8, name="stem")
    x = n("HardSwish", x, name="stem_swish")
    y = n("HardSwish", n.conv(x, 8, 40, k=1, name="expand"), name="swish1")
    y = n.conv(y, 40, 40, name="depthwise", group=40)
    moved = n("Add", y, n.const("three", 3.0), name="moved")
    y = n("Mul", y, n("Clip", moved, n.const("zero", 0.0), n.const("six", 6.0), name="clip"), name="product")
    y = n("Div", y, "six", name="swish2")
    s = n("Relu", n.conv(n("GlobalAveragePool", y, name="pool"), 40, 8, k=1, name="down"), name="down_relu")
    s = n("HardSigmoid", n.conv(s, 8, 40, k=1, name="up"), name="gate")
    y = n("Add", n.conv(n("Mul", y, s, name="scale"), 40, 8, k=1, name="project"), x, name="sum")
    n.conv(y, 8, 4, k=1, name="head", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})


def silu() -> onnx.ModelProto:
    n = Net(4)
    x = n.conv("x", 3, 8, name="conv1")
    y = n("Mul", x, n("Sigmoid", x, name="sigmoid"), name="mul")
    n.conv(y, 8, 4, name="conv2", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})


def transformer_mlp() -> onnx.ModelProto:
    n = Net(5)
    gamma, beta = n.const("ln_gamma", np.ones(16)), n.const("ln_beta", np.zeros(16))
    h = n("LayerNormalization", "x", gamma, beta, name="ln", axis=-1, epsilon=1e-5)
    h = n("Relu", n.linear(h, 16, 32, name="up"), name="act")
    h = n.linear(h, 32, 16, name="down")
    r = n("Add", "x", h, name="residual")
    n.linear(r, 16, 8, name="head", out="y")
    return n.model({"x": ["b", "t", 16]}, {"y": ["b", "t", 8]})


def gemm() -> onnx.ModelProto:
    n = Net(6)
    h = n("Relu", n("Gemm", "x", n.weight("w1", 32, 16), n.vector("b1", 32), name="fc1", transB=1), name="relu")
    n("Gemm", h, n.weight("w2", 32, 10, fan=32), n.vector("b2", 10), name="fc2", out="y")
    return n.model({"x": ["n", 16]}, {"y": ["n", 10]})


def attention() -> onnx.ModelProto:
    """One head; a causal mask of -1e4 is added before Softmax."""
    n = Net(7)
    q, k, v = (n.linear("x", 16, 16, name=name) for name in "qkv")
    kt = n("Transpose", k, name="k_t", perm=[0, 2, 1])
    scores = n("Mul", n("MatMul", q, kt, name="scores"), n.const("root", 0.25), name="scaled")
    masked = n("Add", scores, n.const("mask", np.triu(np.full((6, 6), -1e4), 1)[None]), name="masked")
    mixed = n("MatMul", n("Softmax", masked, name="softmax", axis=-1), v, name="mix")
    n.linear(mixed, 16, 8, name="proj", out="y")
    return n.model({"x": [2, 6, 16]}, {"y": [2, 6, 8]})


def concat() -> onnx.ModelProto:
    n = Net(8)
    a = n("Relu", n.conv("x", 3, 8, name="left"), name="left_relu")
    b = n("Relu", n.conv("x", 3, 8, k=1, name="right"), name="right_relu")
    n.conv(n("Concat", a, b, name="concat", axis=1), 16, 4, k=1, name="head", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})


def maxpool() -> onnx.ModelProto:
    n = Net(9)
    y = n("Relu", n.conv("x", 3, 8, name="conv1"), name="relu")
    y = n("MaxPool", y, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    n.conv(y, 8, 4, name="conv2", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 4, 4]})


def split() -> onnx.ModelProto:
    n = Net(10)
    y = n("Relu", n.conv("x", 3, 8, name="stem"), name="relu")
    a, b = n.many("Split", y, n.const("parts", [4, 4], np.int64), name="split", count=2, axis=1)
    a = n.conv(a, 4, 4, name="branch")
    n.conv(n("Concat", a, b, name="concat", axis=1), 8, 4, k=1, name="head", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})


def big_constants() -> onnx.ModelProto:
    """An Add of numbers up to 1e4 between convolutions, and one of small numbers."""
    n = Net(11)
    y = n("Add", n.conv("x", 3, 8, name="conv1"), n.const("small", n.rng.standard_normal((1, 8, 8, 8))), name="tame")
    y = n.conv(y, 8, 8, name="conv2")
    big = n.const("big", np.where(n.rng.random((1, 8, 8, 8)) < 0.5, 0.0, 1e4))
    y = n("Add", y, big, name="wild")
    n.conv(y, 8, 4, name="conv3", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})


def embedding() -> onnx.ModelProto:
    n = Net(12)
    h = n("Gather", n.weight("table", 64, 32, fan=2), "ids", name="lookup")
    n.linear(h, 32, 8, name="fc", out="y")
    return n.model({"ids": (TensorProto.INT64, ["n", 5])}, {"y": ["n", 5, 8]})


def lstm() -> onnx.ModelProto:
    n = Net(13)
    w, r = n.weight("w", 1, 64, 16, fan=16), n.weight("r", 1, 64, 16, fan=16)
    n.nodes.append(helper.make_node("LSTM", ["x", w, r], ["h_all", "h_last"], name="lstm", hidden_size=16))
    h = n("Squeeze", "h_last", n.const("axis", [0], np.int64), name="squeeze")
    n("Gemm", h, n.weight("fc_w", 8, 16), n.vector("fc_b", 8), name="fc", out="y", transB=1)
    return n.model({"x": [5, 2, 16]}, {"y": [2, 8]})


def conv_transpose() -> onnx.ModelProto:
    n = Net(14)
    y = n("Relu", n.conv("x", 3, 16, name="down"), name="relu")
    w = n.weight("up_w", 16, 8, 3, 3, fan=16 * 9)
    y = n("ConvTranspose", y, w, n.vector("up_b", 8), name="up", strides=[2, 2])
    n.conv(y, 8, 4, name="head", out="y")
    return n.model({"x": [1, 3, 6, 6]}, {"y": [1, 4, 13, 13]})


def if_body() -> onnx.ModelProto:
    """Both branches hold a linear layer; the then-branch multiplies by a weight of the outer graph."""
    n, then, other = Net(15), Net(16), Net(17)
    n.weight("shared", 16, 8, fan=16)
    h = n("Relu", "x", name="relu")
    then("MatMul", h, "shared", name="inner_then", out="then_y")
    other.linear(h, 16, 8, name="inner_else", out="else_y")
    n(
        "If",
        "flag",
        name="branch",
        out="chosen",
        then_branch=then.body("then", [], {"then_y": ["n", 8]}),
        else_branch=other.body("else", [], {"else_y": ["n", 8]}),
    )
    n("MatMul", "chosen", n.weight("last_w", 8, 4, fan=8), name="last", out="y")
    return n.model({"x": ["n", 16], "flag": (TensorProto.BOOL, [])}, {"y": ["n", 4]})


def loop_body() -> onnx.ModelProto:
    """Three steps of h = relu(h @ W), W of the outer graph and large enough to be worth storing."""
    n, step = Net(18), Net(19)
    n.weight("w", 32, 32, fan=64)
    h = step("Relu", step("MatMul", "h_in", "w", name="step"), name="step_relu", out="h_out")
    step("Identity", "cond_in", name="keep", out="cond_out")
    inputs = _values({"i": (TensorProto.INT64, []), "cond_in": (TensorProto.BOOL, []), "h_in": ["n", 32]})
    body = step.body("body", inputs, {"cond_out": (TensorProto.BOOL, []), h: ["n", 32]})
    n("Loop", n.const("trips", 3, np.int64), n.const("go", True, bool), "x", name="loop", out="looped", body=body)
    n.linear("looped", 32, 4, name="last", out="y")
    return n.model({"x": ["n", 32]}, {"y": ["n", 4]})


def shared_weight() -> onnx.ModelProto:
    n = Net(20)
    w = n.weight("w", 16, 16, fan=16)
    h = n("Relu", n("MatMul", "x", w, name="first"), name="relu")
    n("MatMul", h, w, name="second", out="y")
    return n.model({"x": ["n", 16]}, {"y": ["n", 16]})


def relu_then_float() -> onnx.ModelProto:
    """Linear layers whose Relu feeds nothing that wants integers: LayerNormalization, and the output."""
    n = Net(22)
    h = n("Relu", n("Gemm", "x", n.weight("w1", 16, 16), n.vector("b1", 16), name="fc1", transB=1), name="relu1")
    h = n("LayerNormalization", h, n.const("gamma", np.ones(16)), name="ln", axis=-1)
    n("Relu", n.linear(h, 16, 8, name="fc2"), name="relu2", out="y")
    return n.model({"x": ["n", 16]}, {"y": ["n", 8]})


def batchnorm_cnn(opset: int = 17) -> onnx.ModelProto:
    """Conv-BN-Relu three times, with moments as training leaves them (those of normal inputs), and a Gemm."""
    n = Net(21)
    y, channels = "x", 3
    for i, cout in enumerate((8, 16, 16)):
        y = n.conv(y, channels, cout, name=f"conv{i}", bias=False)
        gamma, beta = n.rng.uniform(0.5, 1.5, cout), n.rng.standard_normal(cout) * 0.3
        mean, var = n.rng.standard_normal(cout) * 0.1, n.rng.uniform(0.5, 2.0, cout)
        parts = [n.const(f"bn{i}_{k}", v) for k, v in zip("sbmv", (gamma, beta, mean, var), strict=True)]
        y = n("Relu", n("BatchNormalization", y, *parts, name=f"bn{i}"), name=f"relu{i}")
        channels = cout
    y = n("Flatten", n("GlobalAveragePool", y, name="gap"), name="flatten")
    n("Gemm", y, n.weight("fc_w", 10, 16), n.vector("fc_b", 10), name="fc", out="y", transB=1)
    return n.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 10]}, opset=opset)


def trained(proto: onnx.ModelProto, data: list[dict[str, Array]]) -> onnx.ModelProto:
    """``batchnorm_cnn`` as training on ``data`` leaves it: each normalisation knows the moments of what it reads."""
    import onnxruntime as ort

    for i in range(3):
        shown = onnx.ModelProto()
        shown.CopyFrom(proto)
        shown.graph.output.append(onnx.ValueInfoProto(name=f"conv{i}_out"))
        session = ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
        values = np.concatenate([session.run([f"conv{i}_out"], feed)[0] for feed in data])
        moments = {f"bn{i}_m": values.mean(axis=(0, 2, 3)), f"bn{i}_v": values.var(axis=(0, 2, 3))}
        for tensor in proto.graph.initializer:
            if tensor.name in moments:
                tensor.CopyFrom(numpy_helper.from_array(moments[tensor.name], tensor.name))
    return proto


def sandwich_of_convs() -> onnx.ModelProto:
    n = Net(23)
    y = n("Relu", n.conv("x", 3, 16, name="before"), name="relu")
    y = n("Relu", n.conv(y, 16, 16, name="middle"), name="relu2")
    n.conv(y, 16, 8, name="after", out="y")
    return n.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 8, 8, 8]})


ZOO: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        residual,
        mobilenet,
        squeeze_excite,
        hard_swish,
        silu,
        transformer_mlp,
        gemm,
        attention,
        concat,
        maxpool,
        split,
        big_constants,
        embedding,
        lstm,
        conv_transpose,
        if_body,
        loop_body,
        shared_weight,
        relu_then_float,
        batchnorm_cnn,
    )
}
