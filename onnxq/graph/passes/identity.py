"""Nodes that pass their input through."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import bypass, constant, integer, is_op, static_shape, text

_CROPS = "tf_crop_and_resize"
_END = 2**31 - 1  # exporters write this, or the largest int64, for "to the end"


def remove_passthrough(model: ir.Model) -> int:
    """Removes Identity, inference-time Dropout, and any Cast, Concat, Pad, Resize, Reshape, Slice or Transpose that
    changes nothing.

    Returns how many. Kept: a node whose output is a graph output where its input may not take that name (a graph input,
    an initializer, another output, a value from outside an If/Loop body), and Dropout whose mask is read.
    """
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            source = node.inputs[0] if node.inputs else None
            if source is not None and node.outputs and _passes_through(node, source):
                count += bypass(node, keep=source)
    return count


def _passes_through(node: ir.Node, source: ir.Value) -> bool:
    if is_op(node, "Identity"):
        return True
    if is_op(node, "Dropout"):
        mask_read = len(node.outputs) > 1 and (node.outputs[1].is_graph_output() or bool(node.outputs[1].uses()))
        training = node.inputs[2] if len(node.inputs) > 2 else None
        flag = constant(training)
        return not mask_read and (training is None or (flag is not None and not flag.any()))
    if is_op(node, "Cast"):
        return source.dtype is not None and integer(node, "to", 0) == source.dtype.value
    if is_op(node, "Transpose"):
        order = node.attributes.get("perm")
        return order is not None and tuple(order.as_ints()) == tuple(range(len(order.as_ints())))
    if is_op(node, "Pad") and len(node.inputs) > 1:
        pads = constant(node.inputs[1])
        return pads is not None and pads.size > 0 and not pads.any()
    if is_op(node, "Resize") and len(node.inputs) == 3 and text(node, "coordinate_transformation_mode", "") != _CROPS:
        scales = constant(node.inputs[2])
        return (
            scales is not None and scales.size > 0 and bool((scales == 1).all()) and "antialias" not in node.attributes
        )
    if is_op(node, "Reshape") and len(node.inputs) == 2:
        shape, target = static_shape(source), constant(node.inputs[1])
        return shape is not None and target is not None and shape == tuple(target.tolist()) and 0 not in shape
    if is_op(node, "Slice"):
        return _takes_all(node, source)
    return is_op(node, "Concat") and len(node.inputs) == 1


def _takes_all(node: ir.Node, source: ir.Value) -> bool:
    """Whether a Slice begins at 0, steps by 1, and ends where its input does."""
    if len(node.inputs) < 3:
        return False  # as attributes, before opset 10
    starts, ends = (constant(v) for v in node.inputs[1:3])
    axes, steps = (constant(node.inputs[i]) if len(node.inputs) > i else None for i in (3, 4))
    given = [i for i in (3, 4) if len(node.inputs) > i and node.inputs[i] is not None]
    if starts is None or ends is None or any(constant(node.inputs[i]) is None for i in given):
        return False
    if starts.any() or (steps is not None and (steps != 1).any()):
        return False
    where = range(ends.size) if axes is None else axes.tolist()
    dims = [list(source.shape)[axis] if source.shape is not None else None for axis in where]
    return all(end >= _END or (isinstance(d, int) and end >= d) for d, end in zip(dims, ends.tolist(), strict=True))
