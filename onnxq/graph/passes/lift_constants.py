"""Constant nodes become initializers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs, share
from onnxq.graph.edit import is_op, redirect


def lift_constants(model: ir.Model) -> int:
    """Replaces Constant nodes by initializers of the same graph; returns how many.

    Left: strings and sparse tensors (nothing to quantize there) and constants that are outputs of their graph.
    """
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if not is_op(node, "Constant") or node.outputs[0].is_graph_output():
                continue
            tensor = _tensor(node)
            output = node.outputs[0]
            if tensor is None or not output.name or output.name in graph.initializers:
                continue
            value = ir.Value(
                name=output.name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            value.metadata_props.update(output.metadata_props)
            redirect(output, value)
            graph.remove(node, safe=True)
            graph.register_initializer(value)
            count += 1
    return count


def _tensor(node: ir.Node) -> ir.TensorProtocol | None:
    if len(node.attributes) != 1:
        return None
    (attribute,) = node.attributes.values()
    name = node.outputs[0].name or ""
    if attribute.is_ref():
        return None
    if attribute.name == "value" and attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.value
        return None if tensor.dtype == ir.DataType.STRING else share(tensor)
    if attribute.name in ("value_int", "value_ints"):
        return ir.tensor(np.array(attribute.value, dtype=np.int64), name=name)
    if attribute.name in ("value_float", "value_floats"):
        return ir.tensor(np.array(attribute.value, dtype=np.float32), name=name)
    return None
