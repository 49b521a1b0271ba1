"""What changed in the ONNX operators from opset to opset, as a table from (operator, opset) to the edit of one node.

An edit turns a node that is valid at ``opset - 1`` into one that means the same at ``opset``. Steps not in the table
only allow more (types, optional inputs, new attributes whose default is the old behaviour); a test compares the table
with the history of schemas in the installed onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.edit import (
    constant,
    integer,
    integers,
    label,
    new_constant,
    owner,
    rank,
    set_input,
    static_shape,
    text,
)
from onnxq.graph.nodes import Before, NodeBuilder

Adapter = Callable[[ir.Node], None]


def refuse(node: ir.Node, why: str) -> ModelError:
    """The error for a node that cannot be brought to a newer opset."""
    return ModelError(
        f"node {label(node)!r} ({node.op_type}) {why}", hint="export the model again with opset 13 or newer"
    )


def _int64(node: ir.Node, values: Sequence[int], name: str) -> ir.Value:
    return new_constant(owner(node), np.array(values, dtype=np.int64), name=f"{label(node)}_{name}")


def _like_input(node: ir.Node, value: float, name: str) -> ir.Value:
    """A scalar of the float type of the node's first input."""
    source = node.inputs[0]
    dtype = None if source is None else source.dtype
    array = np.array(value, dtype=np.float32 if dtype is None else dtype.numpy())
    return new_constant(owner(node), array, name=f"{label(node)}_{name}")


def _integers_to_input(name: str, index: int) -> Adapter:
    """Moves the integer-list attribute ``name`` to input ``index``."""

    def adapt(node: ir.Node) -> None:
        values = integers(node, name)
        if values is not None:
            set_input(node, index, _int64(node, values, name))
            node.attributes.pop(name)

    return adapt


def _batchnorm9(node: ir.Node) -> None:
    if integer(node, "spatial", 1) != 1:
        raise refuse(node, "normalises each pixel separately (spatial=0), which newer opsets dropped")
    node.attributes.pop("spatial", None)


def _batchnorm14(node: ir.Node) -> None:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise refuse(node, "is in training mode")
    node.resize_outputs(1)


def _clip11(node: ir.Node) -> None:
    for index, name in ((1, "min"), (2, "max")):
        attribute = node.attributes.pop(name, None)
        if attribute is not None:
            set_input(node, index, _like_input(node, attribute.as_float(), name))


def _dropout10(node: ir.Node) -> None:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise refuse(node, "has a mask output that is read")  # a float until 10, then a bool


def _dropout12(node: ir.Node) -> None:
    node.attributes.pop("ratio", None)  # of no effect in inference


def _pad11(node: ir.Node) -> None:
    pads = integers(node, "pads")
    if pads is None:
        raise refuse(node, "has no pads")
    value = node.attributes.pop("value", None)
    node.attributes.pop("pads")
    set_input(node, 1, _int64(node, pads, "pads"))
    if value is not None:
        set_input(node, 2, _like_input(node, value.as_float(), "value"))


def _resize11(node: ir.Node) -> None:
    """Resize-10 has inputs (X, scales) and samples at ``floor(x / scale)``."""
    scales = node.inputs[1]
    set_input(node, 1, None)
    set_input(node, 2, scales)
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")


def _roialign16(node: ir.Node) -> None:
    if "coordinate_transformation_mode" not in node.attributes:
        mode = ir.AttrString("coordinate_transformation_mode", "output_half_pixel")
        node.attributes["coordinate_transformation_mode"] = mode


def _scan9(node: ir.Node) -> None:
    raise refuse(node, "is a batched Scan of opset 8")


def _scatter11(node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _slice10(node: ir.Node) -> None:
    starts, ends = integers(node, "starts"), integers(node, "ends")
    if starts is None or ends is None:
        raise refuse(node, "has no starts or ends")
    axes = integers(node, "axes")
    for index, (name, values) in enumerate((("starts", starts), ("ends", ends), ("axes", axes)), start=1):
        node.attributes.pop(name, None)
        if values is not None:
            set_input(node, index, _int64(node, values, name))


def _softmax13(node: ir.Node) -> None:
    """Until 12 the input is seen as a matrix, split before ``axis``, and each row is normalised."""
    source = node.inputs[0]
    if source is None:
        raise refuse(node, "has no input")
    axis, dims, shape = integer(node, "axis", 1), rank(source), static_shape(source)
    if dims is not None and axis < 0:
        axis += dims
    if axis == -1 or (dims is not None and axis == dims - 1):
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    if shape is not None and 0 <= axis < len(shape) and all(dim == 1 for dim in shape[axis + 1 :]):
        node.attributes["axis"] = ir.AttrInt64("axis", axis)
        return
    name, build = label(node), NodeBuilder(Before(node))
    flat = build("Flatten", [source], name=f"{name}_flatten", axis=axis)
    soft = build(node.op_type, [flat], name=f"{name}_rows", axis=-1)
    dimensions = build("Shape", [source], name=f"{name}_shape")
    node.op_type = "Reshape"
    node.attributes.clear()
    set_input(node, 0, soft)
    set_input(node, 1, dimensions)
    flat.type = soft.type = node.outputs[0].type


def _split18(node: ir.Node) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _topk10(node: ir.Node) -> None:
    set_input(node, 1, _int64(node, [integer(node, "k", 1)], "k"))
    node.attributes.pop("k", None)


def _upsample9(node: ir.Node) -> None:
    scales = node.attributes.pop("scales", None)
    if scales is None:
        raise refuse(node, "has no scales")
    array = np.array(scales.as_floats(), dtype=np.float32)
    set_input(node, 1, new_constant(owner(node), array, name=f"{label(node)}_scales"))


def _upsample10(node: ir.Node) -> None:
    node.op_type = "Resize"


def _dft20(node: ir.Node) -> None:
    axis = integer(node, "axis", 1)
    node.attributes.pop("axis", None)
    set_input(node, 2, new_constant(owner(node), np.array(axis, dtype=np.int64), name=f"{label(node)}_axis"))


def _gridsample20(node: ir.Node) -> None:
    attribute = node.attributes.get("mode")
    renamed = {"bilinear": "linear", "bicubic": "cubic"}
    if attribute is not None and attribute.as_string() in renamed:
        node.attributes["mode"] = ir.AttrString("mode", renamed[attribute.as_string()])


def _groupnorm21(node: ir.Node) -> None:
    """Until 20 scale and bias have one element a group, from 21 on one a channel."""
    shape, groups = node.inputs[0].shape if node.inputs[0] else None, integer(node, "num_groups", 1)
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    for index in (1, 2):
        array = constant(node.inputs[index])
        if array is None or not isinstance(channels, int):
            raise refuse(node, "has a scale or a channel count that is not constant")
        wide = np.repeat(array, channels // groups)
        set_input(node, index, new_constant(owner(node), wide, name=f"{label(node)}_{('scale', 'bias')[index - 1]}"))


def _always(_: ir.Node) -> bool:
    return True


def _pool22(node: ir.Node) -> bool:
    """From 22 on a last window that would begin in the padding is left out: the output may be smaller."""
    return bool(integer(node, "ceil_mode", 0)) and _pooled(node) != static_shape(node.outputs[0])


def _pooled(node: ir.Node) -> tuple[int, ...] | None:
    """The shape of what pooling that rounds up made until 21; None where it cannot be told."""
    shape, kernel = static_shape(node.inputs[0]), integers(node, "kernel_shape")
    if shape is None or kernel is None or text(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    rank = len(kernel)
    ones = (1,) * rank
    pads, strides = integers(node, "pads") or (0,) * 2 * rank, integers(node, "strides") or ones
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, integers(node, "dilations") or ones, strict=True)]
    sides = [-(-(shape[2 + i] + pads[i] + pads[rank + i] - reach[i]) // strides[i]) + 1 for i in range(rank)]
    return (*shape[:2], *sides)


# Steps that change what a node means without a trace in its schema, and whether they do for a node: they bar the way
# down.
CHANGED: dict[tuple[str, int], Callable[[ir.Node], bool]] = {
    ("AveragePool", 22): _pool22,
    ("LpPool", 22): _pool22,
    ("MaxPool", 22): _pool22,
    ("Mod", 28): _always,  # floats are allowed without fmod
}

_AXES = _integers_to_input("axes", 1)

ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("BatchNormalization", 9): _batchnorm9,
    ("BatchNormalization", 14): _batchnorm14,
    ("Clip", 11): _clip11,
    ("DFT", 20): _dft20,
    ("Dropout", 10): _dropout10,
    ("Dropout", 12): _dropout12,
    ("GridSample", 20): _gridsample20,
    ("GroupNormalization", 21): _groupnorm21,
    ("Hardmax", 13): _softmax13,
    ("LogSoftmax", 13): _softmax13,
    ("Pad", 11): _pad11,
    ("ReduceSum", 13): _AXES,
    ("Resize", 11): _resize11,
    ("RoiAlign", 16): _roialign16,
    ("Scan", 9): _scan9,
    ("Scatter", 11): _scatter11,
    ("Slice", 10): _slice10,
    ("Softmax", 13): _softmax13,
    ("Split", 13): _integers_to_input("split", 1),
    ("Split", 18): _split18,
    ("Squeeze", 13): _AXES,
    ("TopK", 10): _topk10,
    ("Unsqueeze", 13): _AXES,
    ("Upsample", 9): _upsample9,
    ("Upsample", 10): _upsample10,
    **{
        (op, 18): _AXES
        for op in (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSumSquare",
        )
    },
}
