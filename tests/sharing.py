"""Networks in which several nodes read one weight, and stacks of matrices; each is larger than its quantizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from zoo import Net

VOCABULARY, WIDTH = 600, 48
IDS = (TensorProto.INT64, ["n", "t"])

Data = dict[str, np.ndarray] | list[dict[str, np.ndarray]]
Network = tuple[onnx.ModelProto, Data]


def ids(count: int = 48, *, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (count, 16)).astype(np.int64)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def language_model(head: str = "transpose", *, scaled: bool = False) -> Network:
    """Embedding, two linear layers, and a head that reads the table again in one of several ways."""
    n = Net(3)
    table = n.const("table", n.rng.standard_normal((VOCABULARY, WIDTH)))
    x = n("Gather", table, "ids", name="embed")
    y = n("Relu", n.linear(x, WIDTH, 96, name="up"), name="relu")
    x = n("Add", x, n.linear(y, 96, WIDTH, name="down"), name="residual")
    if scaled:
        x = n("Mul", x, n.const("scale", np.float32(WIDTH**-0.5)), name="scaled")
    if head == "gemm":
        x = n("Reshape", x, n.const("rows", [-1, WIDTH], np.int64), name="flat")
        n("Gemm", x, table, n.vector("head_b", VOCABULARY), name="head", out="y", transB=1)
    elif head == "transpose":
        n("MatMul", x, n("Transpose", table, name="turn", perm=[1, 0]), name="head", out="y")
    else:  # a copy of it, which differs a little where it is said to be another one
        data = n.constants["table"].T.copy()
        data[0, 0] += 1e-6 if head == "another" else 0.0
        n("MatMul", x, n.const("head_w", data), name="head", out="y")
    shape = ["m", VOCABULARY] if head == "gemm" else ["n", "t", VOCABULARY]
    return n.model({"ids": IDS}, {"y": shape}), {"ids": ids()}


def two_lookups() -> Network:
    n = Net(4)
    table = n.const("table", n.rng.standard_normal((VOCABULARY, WIDTH)))
    x = n("Add", n("Gather", table, "a", name="one"), n("Gather", table, "b", name="other"), name="sum")
    n.linear(n("Relu", n.linear(x, WIDTH, 64, name="up"), name="relu"), 64, 16, name="down", out="y")
    return n.model({"a": IDS, "b": IDS}, {"y": ["n", "t", 16]}), {"a": ids(), "b": ids(seed=2)}


def table_in_float() -> Network:
    """The table is also multiplied number by number."""
    n = Net(5)
    table = n.const("table", n.rng.standard_normal((VOCABULARY, WIDTH)))
    x = n("Gather", table, "ids", name="embed")
    gate = n("ReduceMean", x, name="gate", axes=[0, 1], keepdims=0)
    mean = n("ReduceMean", n("Mul", table, gate, name="gated"), name="mean", axes=[0], keepdims=1)
    x = n.linear(n("Add", x, mean, name="sum"), WIDTH, 192, name="up")
    n.linear(n("Relu", x, name="relu"), 192, 96, name="down", out="y")
    return n.model({"ids": IDS}, {"y": ["n", "t", 96]}), {"ids": ids()}


def autoencoder(*, gemm: bool = False) -> Network:
    """``W^T relu(W x)``."""
    n = Net(6)
    weight = n.weight("w", 192, 96, fan=192)
    if gemm:
        y = n("Relu", n("Gemm", "x", weight, n.vector("b", 96), name="into"), name="relu")
        n("Gemm", y, weight, n.vector("c", 192), name="back", out="y", transB=1)
    else:
        y = n("Relu", n("MatMul", "x", weight, name="into"), name="relu")
        n("MatMul", y, n("Transpose", weight, name="turn", perm=[1, 0]), name="back", out="y")
    return n.model({"x": ["n", 192]}, {"y": ["n", 192]}), {"x": normal(48, 192)}


def towers() -> Network:
    """Two inputs through the same layers."""
    n = Net(7)
    weights = n.weight("w1", 96, 128, fan=96), n.vector("b1", 128), n.weight("w2", 128, 64, fan=128)
    ends = []
    for name in ("a", "b"):
        x = n("Add", n("MatMul", name, weights[0], name=f"{name}1"), weights[1], name=f"{name}1_bias")
        ends.append(n("MatMul", n("Relu", x, name=f"{name}_relu"), weights[2], name=f"{name}2"))
    n("Concat", *ends, name="join", out="y", axis=1)
    proto = n.model({"a": ["n", 96], "b": ["n", 96]}, {"y": ["n", 128]})
    return proto, {"a": normal(48, 96), "b": normal(48, 96, seed=2)}


def branches(*, equal: bool = False) -> Network:
    """Both branches of an If multiply by one weight of the main graph, or (``equal``) by equal ones of their own."""
    n = Net(8)
    weight = (n.rng.standard_normal((96, 128)) / 10).astype(np.float32)
    parts = {}
    for name, op in (("then", "Relu"), ("else", "Tanh")):
        inner = Net()
        own = inner.const(f"w_{name}", weight) if equal else "w"
        inner(op, inner("MatMul", "x", own, name=f"product_{name}"), name=f"end_{name}")
        parts[f"{name}_branch"] = inner.body(name, [], {f"end_{name}_out": ["n", 128]})
    if not equal:
        n.const("w", weight)
    n("If", "flag", name="if", **parts)
    n.linear("if_out", 128, 32, name="last", out="y")
    proto = n.model({"x": ["n", 96], "flag": (TensorProto.BOOL, [])}, {"y": ["n", 32]})
    return proto, [{"x": normal(2, 96, seed=k), "flag": np.asarray(k % 2 == 0)} for k in range(32)]


def chain_of_one() -> Network:
    """Four layers with one weight, the first and the last among them."""
    n, x = Net(9), "x"
    weight = n.weight("w", 112, 112, fan=112)
    for k in range(4):
        x = n("MatMul", x, weight, name=f"layer{k}", out="y" if k == 3 else None)
        x = x if k == 3 else n("Relu", x, name=f"relu{k}")
    return n.model({"x": ["n", 112]}, {"y": ["n", 112]}), {"x": normal(48, 112)}


def stack(*shape: int, rank: int) -> Network:
    """A linear layer, and a tensor of ``rank`` times a stack of matrices; ``shape``: of the stack."""
    n, inner = Net(10), shape[-2]
    x = n("Relu", n.linear("x", 64, inner, name="first"), name="relu")
    if rank > 2:
        x = n("Reshape", x, n.const("to", [-1, *[1] * (rank - 2), inner], np.int64), name="wide")
    n("MatMul", x, n.weight("stack", *shape, fan=inner), name="stacked", out="y")
    return n.model({"x": ["n", 64]}, {"y": [None] * max(rank, len(shape))}), {"x": normal(48, 64)}


def stack_read_twice() -> Network:
    """A stack of matrices and its transpose."""
    n = Net(11)
    weight = n.weight("stack", 3, 48, 64, fan=48)
    x = n("Reshape", n.linear("x", 64, 48, name="first"), n.const("to", [-1, 1, 1, 48], np.int64), name="wide")
    x = n("Relu", n("MatMul", x, weight, name="there"), name="relu")
    n("MatMul", x, n("Transpose", weight, name="turn", perm=[0, 2, 1]), name="back", out="y")
    return n.model({"x": ["n", 64]}, {"y": ["n", 3, 1, 48]}), {"x": normal(48, 64)}


NETWORKS: dict[str, Callable[[], Network]] = {
    "head behind a Transpose": language_model,
    "head as Gemm": lambda: language_model("gemm"),
    "head as a copy": lambda: language_model("copy"),
    "head behind a factor": lambda: language_model(scaled=True),
    "two lookups": two_lookups,
    "table in float": table_in_float,
    "autoencoder": autoencoder,
    "autoencoder of Gemm": lambda: autoencoder(gemm=True),
    "towers": towers,
    "branches": branches,
    "equal branches": lambda: branches(equal=True),
    "chain of one weight": chain_of_one,
    "stack read twice": stack_read_twice,
}


def run(proto: onnx.ModelProto, data: Data, *, count: int = 8) -> list[np.ndarray]:
    """The first output for the first samples."""
    import onnxruntime as ort

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    if isinstance(data, dict):
        return [session.run(None, {name: array[:count] for name, array in data.items()})[0]]
    return [session.run(None, feed)[0] for feed in data[:count]]


def weight_bytes(proto: onnx.ModelProto, *, least: int = 1024) -> int:
    """Bytes of the constants of all graphs that have so many at least."""

    def of(graph: onnx.GraphProto) -> int:
        held = sum(size for t in graph.initializer if (size := _bytes(t)) >= least)
        bodies: list[Any] = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        return held + sum(of(body) for body in bodies)

    return of(proto.graph)


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
