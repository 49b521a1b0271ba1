"""A pointwise convolution moves in front of what it commutes with: joining and enlarging, to where maps are small.

A 1 x 1 convolution mixes channels at each pixel, linear enlargement mixes pixels within each channel: neither minds
which comes first, and a bias passes through interpolation since its weights sum to 1. A convolution of joined channels
is the sum of the convolutions of the parts. So the head of a segmentation network, ``Conv(Concat(Resize(x_1), ..))``,
becomes ``Sum Resize(Conv_i(x_i))``: at the small maps, a fraction of the products. Where a matrix product of tokens
lies right before, with nothing but a change of layout between, both are one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import (
    Array,
    float_constant,
    integer,
    integers,
    is_op,
    label,
    new_constant,
    owner,
    set_input,
    sole_consumer,
    supersede,
    text,
)
from onnxq.graph.nodes import Before, NodeBuilder

# The share of the products that must be left: sums of maps take time as well.
_WORTH_IT = 0.6


def move_pointwise(model: ir.Model) -> int:
    """Moves pointwise convolutions before Concat and enlarging Resize, and into a MatMul; returns how many moved."""
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if _pointwise(node) is not None:
                count += _before_joining(node)
        for node in tuple(graph):
            if _pointwise(node) is not None:
                count += _into_matmul(node)
    return count


def _pointwise(node: ir.Node) -> Array | None:
    """The weight ``[C_out, C_in]`` of a convolution that only mixes channels; None for any other node."""
    if not is_op(node, "Conv") or integer(node, "group", 1) != 1:
        return None
    weight = float_constant(node.inputs[1])
    if weight is None or weight.ndim != 4 or weight.shape[2:] != (1, 1):
        return None
    plain = not any(integers(node, "pads") or ()) and set(integers(node, "strides") or (1,)) == {1}
    if not plain or text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and float_constant(node.inputs[2]) is None:
        return None
    return weight.reshape(weight.shape[:2])


def _before_joining(conv: ir.Node) -> bool:
    weight, joined = _pointwise(conv), conv.inputs[0]
    concat = None if joined is None else joined.producer()
    if weight is None or joined is None or concat is None or sole_consumer(joined) is not conv:
        return False
    if not is_op(concat, "Concat") or integer(concat, "axis", 0) != 1:
        return False
    parts = [_part(value) for value in concat.inputs]
    sizes, whole = [_map(small) for small, _ in parts], _map(joined)
    if whole is None or any(s is None for s in sizes) or all(resize is None for _, resize in parts):
        return False
    known = [s for s in sizes if s is not None]
    if sum(c for c, _, _ in known) != weight.shape[1]:
        return False
    left = sum(c * h * w for c, h, w in known) / (whole[0] * whole[1] * whole[2])
    if left > _WORTH_IT:
        return False
    start = 0
    terms: list[tuple[int, ir.Value]] = []
    for (small, resize), (channels, height, width) in zip(parts, known, strict=True):
        bias = conv.inputs[2] if start == 0 and len(conv.inputs) > 2 else None
        term = _term(conv, weight[:, start : start + channels], bias, small, resize)
        terms.append((height * width, term))
        start += channels
    total = _sum(conv, [value for _, value in sorted(terms, key=lambda term: term[0])])
    supersede(conv.outputs[0], total)
    graph = owner(conv)
    for idle in (conv, concat, *(resize for _, resize in parts if resize is not None)):
        graph.remove(idle, safe=True)
    return True


def _part(value: ir.Value | None) -> tuple[ir.Value, ir.Node | None]:
    """(the map before enlarging, the Resize) of a joined value; (value, None) where it is not enlarged."""
    assert value is not None
    resize = value.producer()
    if resize is None or not is_op(resize, "Resize") or sole_consumer(value) is None or len(resize.inputs) < 3:
        return value, None
    scales = float_constant(resize.inputs[2])
    mixes_pixels = scales is not None and scales.shape == (4,) and scales[:2].tolist() == [1, 1] and (scales >= 1).all()
    known = text(resize, "mode", "nearest") in ("nearest", "linear") and "antialias" not in resize.attributes
    ordinary = text(resize, "coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
    source = resize.inputs[0]
    return (source, resize) if mixes_pixels and known and ordinary and source is not None else (value, None)


def _term(conv: ir.Node, weight: Array, bias: ir.Value | None, small: ir.Value, resize: ir.Node | None) -> ir.Value:
    """The convolution of one part, enlarged if the part was; new nodes right before ``conv``."""
    build, name = NodeBuilder(Before(conv)), f"{label(conv)}_{label(resize) if resize is not None else small.name}"
    kernel = build.constant(np.ascontiguousarray(weight)[:, :, None, None], f"{name}_weight")
    mixed = build("Conv", [small, kernel, *([] if bias is None else [bias])], name=name, kernel_shape=[1, 1])
    _describe(mixed, small, weight.shape[0])
    if resize is None:
        return mixed
    again = build.node("Resize", [mixed, *list(resize.inputs)[1:]], name=f"{name}_enlarged")
    again.attributes.update(resize.attributes)
    _describe(again.outputs[0], resize.outputs[0], weight.shape[0])
    return again.outputs[0]


def _describe(out: ir.Value, like: ir.Value, channels: int) -> None:
    """Gives ``out`` the type of ``like`` and its shape with ``channels``."""
    out.type = like.type
    if like.shape is not None:
        out.shape = ir.Shape([like.shape[0], channels, *list(like.shape)[2:]])


def _sum(conv: ir.Node, terms: Sequence[ir.Value]) -> ir.Value:
    total, build = terms[0], NodeBuilder(Before(conv))
    for index, term in enumerate(terms[1:], start=1):
        total = build("Add", [total, term], name=f"{label(conv)}_sum_{index}", like=conv.outputs[0])
    return total


def _into_matmul(conv: ir.Node) -> bool:
    """``Conv(Transpose(Reshape(x W + b)))`` as one product of tokens, where that takes fewer products."""
    second, value = _pointwise(conv), conv.inputs[0]
    chain: list[ir.Node] = []
    for op in ("Transpose", "Reshape", "Add", "MatMul"):
        node = None if value is None else value.producer()
        if node is None or not is_op(node, op) or sole_consumer(node.outputs[0]) is None:
            return False
        chain.append(node)
        value = next((v for v in node.inputs if v is not None and float_constant(v) is None), None)
    transpose, reshape, add, matmul = chain
    first, bias = (
        float_constant(matmul.inputs[1]),
        next((b for v in add.inputs if (b := float_constant(v)) is not None), None),
    )
    shape = (
        None
        if reshape.inputs[1] is None or reshape.inputs[1].const_value is None
        else reshape.inputs[1].const_value.numpy()
    )
    if (
        second is None
        or first is None
        or bias is None
        or shape is None
        or first.ndim != 2
        or bias.size != first.shape[1]
    ):
        return False
    if integers(transpose, "perm") != (0, 3, 1, 2) or shape.size != 4 or shape[3] != first.shape[1]:
        return False
    (inner, middle), outer = first.shape, second.shape[0]
    if inner * outer > inner * middle + middle * outer or matmul.inputs[0] is None:
        return False
    graph, name = owner(conv), label(matmul)
    exact = second.astype(np.float64).T
    offset = bias.reshape(-1).astype(np.float64) @ exact
    own = float_constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    offset = offset if own is None else offset + own.reshape(-1)
    set_input(
        matmul, 1, new_constant(graph, (first.astype(np.float64) @ exact).astype(np.float32), name=f"{name}_joint")
    )
    add_bias = new_constant(graph, offset.astype(np.float32), name=f"{name}_joint_bias")
    set_input(add, next(i for i, v in enumerate(add.inputs) if float_constant(v) is not None), add_bias)
    set_input(reshape, 1, new_constant(graph, np.asarray([*shape[:3], outer], np.int64), name=f"{name}_joint_shape"))
    for node, axis in ((matmul, -1), (add, -1), (reshape, -1), (transpose, 1)):
        _with_channels(node.outputs[0], axis, outer)
    supersede(conv.outputs[0], transpose.outputs[0])
    graph.remove(conv, safe=True)
    return True


def _with_channels(value: ir.Value, axis: int, channels: int) -> None:
    if value.shape is not None:
        dims = list(value.shape)
        dims[axis] = channels
        value.shape = ir.Shape(dims)


def _map(value: ir.Value) -> tuple[int, int, int] | None:
    """(channels, height, width) of a map where they are known."""
    if value.shape is None or len(value.shape) != 4:
        return None
    channels, height, width = list(value.shape)[1:]
    if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int):
        return channels, height, width
    return None
