"""How many multiply-accumulates each node of a float model does, from the shapes in one run of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

_PRODUCTS = ("MatMul", "Gemm")


def multiply_accumulates(model: Path, data: Path) -> dict[str, int]:
    """For the first sample of ``data``, by node name: of Conv, MatMul, Gemm and LSTM."""
    proto = onnx.load(model)
    nodes = [n for n in proto.graph.node if n.op_type in ("Conv", "LSTM", *_PRODUCTS)]
    shapes = _shapes(proto, {v for n in nodes for v in (*n.input, n.output[0])}, data)
    return {n.name: _work(n, shapes) for n in nodes}


def _work(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    first, second, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "LSTM":  # each step of each sample multiplies by both weights
        return first[0] * first[1] * (math.prod(second) + math.prod(shapes[node.input[2]]))
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(out) * first[0 if transposed else -1]


def _shapes(proto: onnx.ModelProto, names: set[str], data: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors ``names`` where ``proto`` runs on the first sample of ``data``."""
    found = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    made = [o for n in proto.graph.node for o in n.output if o in names]
    present = {v.name for v in proto.graph.output}
    # Types are not asked of shape inference: everything that is multiplied here is float.
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made if name not in present
    )
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    with np.load(data) as arrays:
        feed = {i.name: arrays[i.name][:1].astype(_TYPES[i.type]) for i in session.get_inputs()}
    found |= {name: value.shape for name, value in feed.items()}
    return found | dict(zip(made, (v.shape for v in session.run(made, feed)), strict=True))


_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
