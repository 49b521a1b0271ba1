"""Large models written a tensor at a time: protobuf's own writer holds all of a message, and its bytes once more.

A message is its fields in any order, and a field of a message is a tag, a length and that many bytes. So the message
without its large initializers is written as usual, and these follow, straight from where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

import onnx
import onnx_ir as ir

from onnxq.graph.external import embed_external, write_tensor
from onnxq.runtime.wire import head

# Tensors from this size on are not made a part of the message.
LARGE_TENSOR = 1 << 16

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW = 7, 5, 9
_ELSEWHERE = "onnxq.streamed"


def write_streamed(model: ir.Model, file: BinaryIO, to_proto: Callable[[ir.Model], onnx.ModelProto]) -> None:
    """Writes ``model``, which loses its large weights by that, to ``file`` as one message."""
    embed_external(model)
    large = _set_aside(model.graph)
    proto = to_proto(model)
    heads = _taken(proto.graph)
    bodies = [(heads[name], large[name]) for name in large]
    fields = [
        head(_GRAPH_INITIALIZER, len(start) + len(raw) + tensor.nbytes) + start + raw
        for start, tensor in bodies
        for raw in (head(_TENSOR_RAW, tensor.nbytes),)
    ]
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    file.write(proto.SerializeToString())
    file.write(head(_MODEL_GRAPH, len(graph) + sum(map(len, fields)) + sum(t.nbytes for _, t in bodies)))
    file.write(graph)
    for field, (_, tensor) in zip(fields, bodies, strict=True):
        file.write(field)
        length = write_tensor(tensor, file)
        if length != tensor.nbytes:
            raise ValueError(f"tensor {tensor.name!r} has {length} bytes, not the {tensor.nbytes} that it claims")


def _set_aside(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """The large initializers of ``graph`` by name; what stands for them there says that they lie elsewhere."""
    large: dict[str, ir.TensorProtocol] = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < LARGE_TENSOR:
            continue
        large[name] = tensor
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(_ELSEWHERE, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
    return large


def _taken(graph: onnx.GraphProto) -> dict[str, bytes]:
    """By name, the messages of the initializers that lie elsewhere, without their bytes; they are taken out."""
    heads: dict[str, bytes] = {}
    kept = []
    for tensor in graph.initializer:
        if any(entry.key == "location" and entry.value == _ELSEWHERE for entry in tensor.external_data):
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            heads[tensor.name] = tensor.SerializeToString()
        else:
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return heads
