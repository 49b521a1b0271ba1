"""What ONNX files hold that ``onnx_ir`` has no word for: maps among inputs and outputs, sparse constants.

Maps (classifiers of scikit-learn end in them) are set aside when a file is read and put back when one is written: what
makes them is a node like any other. Sparse constants become dense ones, which is how onnxruntime computes with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from onnxq.errors import ModelError

# Key of ``model.meta``: by name, the types of inputs and outputs that were set aside, as bytes of a ``TypeProto``.
TYPES = "onnxq.types"
# The most bytes that a sparse constant may have once it is dense.
DENSE_BYTES = 1 << 30


def proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and all bodies in it, outer ones first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from proto_graphs(body)


def set_types_aside(proto: onnx.ModelProto) -> dict[str, bytes]:
    """The types of inputs and outputs of ``proto`` that hold maps, by name; they are taken out of it."""
    aside: dict[str, bytes] = {}
    for graph in proto_graphs(proto.graph):
        for info in (*graph.input, *graph.output):
            if _holds_map(info.type):
                if graph is proto.graph:
                    aside[info.name] = info.type.SerializeToString()
                info.ClearField("type")
        kept = [info for info in graph.value_info if not _holds_map(info.type)]
        if len(kept) < len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(kept)
    return aside


def put_types_back(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Gives inputs and outputs of ``proto``, which was written from ``model``, the types that were set aside."""
    aside: dict[str, bytes] = model.meta.get(TYPES, {})
    for info in (*proto.graph.input, *proto.graph.output):
        if info.name in aside and not info.type.WhichOneof("value"):
            info.type.ParseFromString(aside[info.name])


def _holds_map(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return _holds_map(getattr(kind, which).elem_type)
    return bool(which == "map_type")


def make_dense(proto: onnx.ModelProto, name: str) -> None:
    """Makes the sparse constants of ``proto`` dense; ``name`` is the file's. Raises ``ModelError`` for broken ones."""
    for graph in proto_graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, sparse.values.name, name))
        del graph.sparse_initializer[:]
    for node in _nodes(proto):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                tensor = _dense(attribute.sparse_tensor, node.output[0] if node.output else "", name)
                attribute.Clear()
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _nodes(proto: onnx.ModelProto) -> Iterable[onnx.NodeProto]:
    for graph in proto_graphs(proto.graph):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def _dense(sparse: onnx.SparseTensorProto, tensor: str, file: str) -> onnx.TensorProto:
    dims = list(sparse.dims)
    try:
        values = numpy_helper.to_array(sparse.values).reshape(-1)
        indices = numpy_helper.to_array(sparse.indices).astype(np.int64, copy=False)
        if min(dims, default=1) < 0 or math.prod(dims) * values.itemsize > DENSE_BYTES:
            raise ValueError(f"its shape is {dims}")
        dense = np.zeros(dims, values.dtype)
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), dims) if indices.size else indices.reshape(-1)
        if indices.shape != values.shape or ((indices < 0) | (indices >= dense.size)).any():
            raise ValueError("its indices do not fit its shape")
        dense.reshape(-1)[indices] = values
    except Exception as error:  # numpy and onnx have many words for data that does not fit
        raise ModelError(
            f"{file}: the sparse constant {tensor!r} cannot be read ({error})",
            hint="export the model with dense weights",
        ) from error
    return numpy_helper.from_array(dense, tensor)
