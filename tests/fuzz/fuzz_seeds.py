"""Small models that run, of every structure that onnxq does something about: what the fuzzer spoils.

Each is a function without arguments; ``SEEDS`` has them by name. Inputs are float32 unless named ``ids`` or ``go``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"ids": TensorProto.INT64, "go": TensorProto.BOOL}


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    """A node called as its first output; ``-`` stands for an input that is not there."""
    split = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, split, outputs.split(), name=f"n_{outputs.split()[0]}", domain=domain, **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.GraphProto:
    """A graph; shapes of outputs are not declared."""
    return helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TYPES.get(n, TensorProto.FLOAT), s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )


def model(content: onnx.GraphProto, *, opset: int = 17, **more: object) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(content, opset_imports=opsets, ir_version=8, **more)


def weights(*shape: int) -> np.ndarray:
    """The same numbers for the same shape, so that a case is the same one again."""
    return (np.random.default_rng(shape).standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(
        np.float32
    )


def cnn() -> onnx.ModelProto:
    """Convolutions with BatchNormalization, a sum, pooling, squeeze and excite."""
    nodes = [
        node("Conv", "x w0 b0", "c0", kernel_shape=[3, 3], pads=[1] * 4),
        node("BatchNormalization", "c0 s m m v", "bn"),
        node("Relu", "bn", "r0"),
        node("Conv", "r0 w1", "c1", kernel_shape=[3, 3], pads=[1] * 4, group=8),
        node("Clip", "c1 zero six", "r1"),
        node("Add", "r0 r1", "sum"),
        node("GlobalAveragePool", "sum", "mean"),
        node("Conv", "mean w2", "c2"),
        node("HardSigmoid", "c2", "gate"),
        node("Mul", "sum gate", "gated"),
        node("MaxPool", "gated", "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat w3 b3", "y", transB=1),
    ]
    constants = {
        "w0": weights(8, 4, 3, 3),
        "b0": weights(8),
        "w1": weights(8, 1, 3, 3),
        "w2": weights(8, 8, 1, 1),
        "s": np.ones(8, np.float32),
        "m": weights(8),
        "v": np.ones(8, np.float32),
        "w3": weights(6, 128),
        "b3": weights(6),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    return model(graph(nodes, {"x": ("n", 4, 8, 8)}, ["y"], constants))


def attention() -> onnx.ModelProto:
    """One layer of a transformer, spelled out."""
    nodes = [node("LayerNormalization", "x g b", "ln", axis=-1)]
    for name in "qkv":
        nodes += [
            node("MatMul", f"ln w{name}", f"{name}0"),
            node("Add", f"{name}0 b", f"{name}1"),
            node("Reshape", f"{name}1 heads", f"{name}2"),
            node("Transpose", f"{name}2", f"{name}3", perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", "q3 k3", "score"),
        node("Div", "score root", "scaled"),
        node("Softmax", "scaled", "p", axis=-1),
        node("MatMul", "p v3", "o0"),
        node("Transpose", "o0", "o1", perm=[0, 2, 1, 3]),
        node("Reshape", "o1 joined", "o2"),
        node("MatMul", "o2 wo", "o3"),
        node("Add", "o3 x", "y"),
    ]
    constants = {
        **{f"w{name}": weights(16, 16) for name in "qkvo"},
        "g": np.ones(16, np.float32),
        "b": weights(16),
        "root": np.float32(2.8),
        "heads": np.array([0, 0, 2, 8]),
        "joined": np.array([0, 0, 16]),
    }
    return model(graph(nodes, {"x": ("n", 6, 16)}, ["y"], constants))


def recurrent() -> onnx.ModelProto:
    """Embedding, LSTM, GRU and a head."""
    nodes = [
        node("Gather", "table ids", "e"),
        node("Transpose", "e", "t", perm=[1, 0, 2]),
        node("LSTM", "t w r b", "l0", hidden_size=8),
        node("Squeeze", "l0 one", "l1"),
        node("GRU", "l1 wg rg", "g0", hidden_size=8),
        node("Squeeze", "g0 one", "g1"),
        node("Transpose", "g1", "back", perm=[1, 0, 2]),
        node("MatMul", "back head", "y"),
    ]
    constants = {
        "table": weights(20, 8),
        "w": weights(1, 32, 8),
        "r": weights(1, 32, 8),
        "b": weights(1, 64),
        "wg": weights(1, 24, 8),
        "rg": weights(1, 24, 8),
        "one": np.array([1]),
        "head": weights(8, 5),
    }
    return model(graph(nodes, {"ids": ("n", 5)}, ["y"], constants))


def movement() -> onnx.ModelProto:
    """What moves values about: padding, cutting, joining, resizing, gathering, transposed convolution."""
    nodes = [
        node("Pad", "x pads", "p0", mode="reflect"),
        node("Conv", "p0 w0", "c0", kernel_shape=[3, 3]),
        node("Split", "c0", "left right", axis=1),
        node("PRelu", "left slope", "l1"),
        node("Concat", "l1 right", "cat", axis=1),
        node("Resize", "cat - scales", "big", mode="nearest"),
        node("Slice", "big starts ends axes", "cut"),
        node("ConvTranspose", "cut w1", "up", strides=[2, 2], kernel_shape=[2, 2]),
        node("AveragePool", "up", "pool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Unsqueeze", "pool axis", "wide"),
        node("ReduceMean", "wide", "mean", axes=[2], keepdims=0),
        node("Einsum", "mean w2", "y", equation="nchw,cd->ndhw"),
    ]
    constants = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "w0": weights(8, 4, 3, 3),
        "slope": weights(4, 1, 1),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "starts": np.array([1, 1]),
        "ends": np.array([9, 9]),
        "axes": np.array([2, 3]),
        "w1": weights(8, 6, 2, 2),
        "axis": np.array([2]),
        "w2": weights(6, 4),
    }
    return model(graph(nodes, {"x": ("n", 4, 8, 8)}, ["y"], constants))


def bodies() -> onnx.ModelProto:
    """An If whose branches have layers and read the outside, a Loop with a state, a Scan."""
    then = graph([node("MatMul", "h w1", "a0"), node("Relu", "a0", "a")], {}, ["a"], {"w1": weights(8, 8)})
    other = graph([node("Gemm", "h w2 b2", "b")], {}, ["b"], {"w2": weights(8, 8), "b2": weights(8)})
    step = helper.make_graph(
        [node("MatMul", "state w3", "s0"), node("Tanh", "s0", "s1"), node("Identity", "more", "again")],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s1", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        node("MatMul", "x w0", "h"),
        node("If", "go", "branch", then_branch=then, else_branch=other),
        node("Loop", "count true branch", "last", body=step),
        node("Add", "last h", "y"),
    ]
    constants = {"w0": weights(8, 8), "w3": weights(8, 8), "count": np.array(3), "true": np.array(True)}
    return model(graph(nodes, {"x": ("n", 8), "go": ()}, ["y"], constants))


def functions() -> onnx.ModelProto:
    """A function of the model's own, contributed operators, Constant nodes, two outputs, values used twice."""
    own = helper.make_function(
        "own",
        "Scaled",
        ["a"],
        ["b"],
        [helper.make_node("Mul", ["a", "a"], ["c"]), helper.make_node("Sqrt", ["c"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        node("Constant", "", "k", value=numpy_helper.from_array(weights(8, 8))),
        node("Constant", "", "half", value_float=0.5),
        node("MatMul", "x k", "h"),
        node("Gelu", "h", "a", domain="com.microsoft"),
        node("Scaled", "a", "s", domain="own"),
        node("Mul", "s half", "t"),
        node("FusedMatMul", "t k", "u", domain="com.microsoft", transB=1, alpha=0.5),
        node("Where", "go u h", "y"),
        node("ReduceMax", "u", "z", axes=[-1], keepdims=0),
    ]
    result = model(graph(nodes, {"x": ("n", 8), "go": ()}, ["y", "z"]), functions=[own])
    result.opset_import.append(helper.make_opsetid("own", 1))
    return result


def old() -> onnx.ModelProto:
    """As old exporters wrote: opset 9, initializers among the inputs, values in fields, shapes by arithmetic."""
    nodes = [
        node("Conv", "x w0", "c0", kernel_shape=[1, 1]),
        node("BatchNormalization", "c0 s m m v", "bn"),
        node("Clip", "bn", "r0", min=0.0, max=6.0),
        node("Dropout", "r0", "d0"),
        node("Shape", "d0", "shape"),
        node("Gather", "shape zero", "n0"),
        node("Unsqueeze", "n0", "n1", axes=[0]),
        node("Concat", "n1 rest", "to", axis=0),
        node("Reshape", "d0 to", "flat"),
        node("Softmax", "flat", "p", axis=1),
        node("Gemm", "p w1 b1", "y"),
    ]
    constants = {
        "w0": weights(4, 4, 1, 1),
        "s": np.ones(4, np.float32),
        "m": weights(4),
        "v": np.ones(4, np.float32),
        "zero": np.array(0),
        "rest": np.array([-1]),
        "w1": weights(64, 8),
        "b1": weights(8),
    }
    content = graph(nodes, {"x": (2, 4, 4, 4), "w1": (64, 8)}, ["y"], constants)
    for tensor in content.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).ravel().tolist()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values)
    return model(content, opset=9)


SEEDS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f for f in (cnn, attention, recurrent, movement, bodies, functions, old)
}


def samples(proto: onnx.ModelProto, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays for the inputs of ``proto``, ``count`` samples of each, as well as its declarations tell."""
    made = {t.name for t in proto.graph.initializer}
    found: dict[str, np.ndarray] = {}
    for value in proto.graph.input:
        if value.name in made or not value.name:
            continue
        dims = [d.dim_value if d.HasField("dim_value") else count for d in value.type.tensor_type.shape.dim]
        dims = [min(max(d, 0), 64) for d in dims][:6]
        kind = value.type.tensor_type.elem_type
        if kind == TensorProto.BOOL:
            found[value.name] = rng.random(dims) < 0.5
        elif kind in (TensorProto.INT64, TensorProto.INT32):
            found[value.name] = rng.integers(0, 5, dims).astype(np.int64 if kind == TensorProto.INT64 else np.int32)
        else:
            found[value.name] = rng.standard_normal(dims).astype(np.float32)
    return found
