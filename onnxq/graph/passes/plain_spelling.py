"""Resize, Pad and AveragePool in the spelling that all of onnxruntime reads, not only its float kernels.

- From opset 18 on Resize and Pad may be told of some ``axes`` only. onnxruntime, which moves transpositions to other
  layouts past them, permutes sizes and pads as if there were one for each axis: they get an entry for every axis.
  Entries that are computed are put in their places by nodes.
- Exporters write an empty constant, or a ``roi`` that nothing reads, for an input that is not there: it is left out.
- ``dilations`` of 1 are left out of an AveragePool: its integer kernel does not know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import Array, constant, integers, is_op, label, rank, set_input, static_shape, text
from onnxq.graph.nodes import Before, NodeBuilder

_ROI, _SCALES, _SIZES = 1, 2, 3
_PADS, _PAD_AXES = 1, 3


def spell_plainly(model: ir.Model) -> int:
    """Rewrites Resize, Pad and AveragePool so, where ranks are known; returns how many changed."""
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if is_op(node, "Resize"):
                count += _drop_unread(node) + _spell_resize(node)
            elif is_op(node, "Pad"):
                count += _spell_pad(node)
            elif is_op(node, "AveragePool") and set(integers(node, "dilations") or ()) == {1}:
                node.attributes.pop("dilations")
                count += 1
    return count


def _drop_unread(node: ir.Node) -> bool:
    """Leaves out what exporters write for an input that is not there: an empty constant, and a ``roi`` unread."""
    crops = text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    unread = [
        index
        for index, value in enumerate(node.inputs)
        if value is not None
        and index >= _ROI
        and ((index == _ROI and not crops) or ((array := constant(value)) is not None and array.size == 0))
    ]
    # Before opset 13 all three must be there; a Resize of opset 10 has its scales second.
    if not unread or len(node.inputs) <= _SCALES:
        return False
    for index in unread:
        node.replace_input_with(index, None)
    while node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    return True


def _spell_resize(node: ir.Node) -> bool:
    axes, dims = integers(node, "axes"), rank(node.inputs[0])
    if axes is None or dims is None or node.inputs[0] is None:
        return False
    where = [axis % dims for axis in axes]
    sizes = node.inputs[_SIZES] if len(node.inputs) > _SIZES else None
    policy = text(node, "keep_aspect_ratio_policy", "stretch")
    if sizes is not None and policy != "stretch":
        # onnxruntime overlooks the policy for axes that are counted from the end.
        stretched = None if min(axes, default=0) < 0 else _stretched(node.inputs[0], constant(sizes), where, policy)
        if stretched is None:
            return False  # what all sides share is known at run time only, or rounds
        node.attributes.pop("keep_aspect_ratio_policy")
        sizes = NodeBuilder(Before(node)).constant(np.array(stretched, np.int64), f"{label(node)}_stretched")
    build, name = NodeBuilder(Before(node)), label(node)
    roi = node.inputs[_ROI] if len(node.inputs) > _ROI else None
    scales = node.inputs[_SCALES] if len(node.inputs) > _SCALES else None
    if roi is not None:
        ends = [*where, *(dims + axis for axis in where)]
        dtype = np.float32 if roi.dtype is None else roi.dtype.numpy()
        whole = build.constant(np.repeat([0, 1], dims).astype(dtype), f"{name}_whole")
        set_input(node, _ROI, _scattered(build, whole, ends, roi, f"{name}_roi"))
    if sizes is not None:
        shape = build("Shape", [node.inputs[0]], name=f"{name}_shape")
        set_input(node, _SIZES, _scattered(build, shape, where, sizes, f"{name}_sizes"))
    elif scales is not None:
        same = build.constant(np.ones(dims, np.float32), f"{name}_same")
        set_input(node, _SCALES, _scattered(build, same, where, scales, f"{name}_scales"))
    node.attributes.pop("axes")
    return True


def _stretched(source: ir.Value, sizes: Array | None, where: Sequence[int], policy: str) -> list[int] | None:
    """The sizes that a Resize which keeps the ratio of all sides really has; None where they are no exact multiples.

    Only then each side has the same factor as a ratio of sizes.
    """
    shape = static_shape(source)
    if shape is None or sizes is None or any(shape[axis] == 0 for axis in where):
        return None
    sides = [shape[axis] for axis in where]
    factors = [(int(size), side) for size, side in zip(sizes, sides, strict=True)]
    choose = min if policy == "not_larger" else max
    over, under = choose(factors, key=lambda f: f[0] / f[1])
    exact = [side * over / under for side in sides]
    return [floor(side) for side in exact] if all(side == floor(side) for side in exact) else None


def _spell_pad(node: ir.Node) -> bool:
    axes = node.inputs[_PAD_AXES] if len(node.inputs) > _PAD_AXES else None
    pads, dims = node.inputs[_PADS] if len(node.inputs) > _PADS else None, rank(node.inputs[0])
    if axes is None or pads is None or dims is None:
        return False
    build, name = NodeBuilder(Before(node)), label(node)
    none, known = build.constant(np.zeros(2 * dims, np.int64), f"{name}_none"), constant(axes)
    if known is not None:
        where = [int(axis) % dims for axis in known.reshape(-1)]
        full = _scattered(build, none, [*where, *(dims + axis for axis in where)], pads, f"{name}_pads")
    else:
        count = build.constant(np.array(dims, np.int64), f"{name}_rank")
        wide = build("Cast", [axes], name=f"{name}_axes", to=int(ir.DataType.INT64))
        first = build("Mod", [wide, count], name=f"{name}_starts")  # the sign of the divisor: from 0 on
        last = build("Add", [first, count], name=f"{name}_ends")
        both = build("Concat", [first, last], name=f"{name}_places", axis=0)
        full = build("ScatterElements", [none, both, pads], name=f"{name}_pads", axis=0)
    set_input(node, _PADS, full)
    node.resize_inputs(_PAD_AXES)
    return True


def _scattered(build: NodeBuilder, onto: ir.Value, where: Sequence[int], entries: ir.Value, name: str) -> ir.Value:
    """``onto`` with ``entries`` at the places ``where``: a constant if both are."""
    base, new = constant(onto), constant(entries)
    if base is not None and new is not None:
        filled = base.copy()
        filled[list(where)] = new.reshape(-1)
        return build.constant(filled, name)
    places = build.constant(np.array(where, np.int64), f"{name}_places")
    return build("ScatterElements", [onto, places, entries], name=name, axis=0)
