"""Nearest-neighbour enlarging of 8-bit maps in the layout of integer convolutions, as two Concats.

Between integer convolutions onnxruntime keeps channels last, where its Resize copies byte by byte: 1 to 2 ns an element
(1.32). A whole factor repeats pixels, and that is joining a tensor with itself: along the channels, which repeats
columns, then along whole rows. Both copy long runs, 0.15 ns an element.

    [N, H, W, C] -> Concat -> [N, H, W, k C] = [N, H, k W C] -> Concat -> [N, H, k k W C] = [N, k H, k W, C]
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.emit.pieces import Pieces, graph_of
from onnxq.errors import ModelError
from onnxq.graph.edit import is_op, redirect, static_shape, text
from onnxq.graph.nodes import Before
from onnxq.kernels import ops
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Layout
from onnxq.query import array

Side = int | None  # None: known only when the model runs
_CHANNELS_LAST, _CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
# What takes pixel i // k for every whole k. (Half a pixel: (i + 0.5) / k - 0.5 is less than a half away from it.)
_ROUNDING = "round_prefer_floor"
_REPEATS = {("asymmetric", "floor")} | {
    (mode, rounding) for mode in ("half_pixel", "pytorch_half_pixel") for rounding in (_ROUNDING, "round_prefer_ceil")
}


@dataclass(frozen=True)
class Repeated:
    """A Resize of maps [N, ``channels``, ``height``, ``width``] that repeats every row ``rows`` times, and so on."""

    rows: int
    columns: int
    channels: int
    height: Side
    width: Side


def repeated(pieces: Pieces, names: Collection[str]) -> dict[str, Repeated]:
    """By name, the Resize among the integer nodes ``names`` that repeat pixels of maps with channels last.

    Nothing of ``pieces`` may be quantized yet.
    """
    found = {}
    for name in names:
        node = pieces.nodes[name]
        kind = _repeats(node) if is_op(node, "Resize") else None
        if kind is not None and _behind_convolution(node, names):
            found[name] = kind
    return found


def _repeats(node: ir.Node) -> Repeated | None:
    modes = (text(node, "coordinate_transformation_mode", "half_pixel"), text(node, "nearest_mode", _ROUNDING))
    x = node.inputs[0]
    if text(node, "mode", "nearest") != "nearest" or modes not in _REPEATS or x is None:
        return None
    if x.shape is None or len(x.shape) != 4 or not isinstance(x.shape[1], int):
        return None
    dims, ends = [d if isinstance(d, int) else None for d in x.shape], [array(v) for v in node.inputs[2:4]]
    scales = ends[0] if ends and ends[0] is not None and ends[0].size == 4 else None
    before = static_shape(x)
    if scales is None and len(ends) == 2 and ends[1] is not None and ends[1].size == 4 and before and all(before):
        scales = ends[1] / np.array(before)
    factors = [] if scales is None else [int(s) for s in scales]
    if scales is None or factors != list(scales) or factors[:2] != [1, 1] or min(factors) < 1 or max(factors) == 1:
        return None
    return Repeated(factors[2], factors[3], x.shape[1], dims[2], dims[3])


def _behind_convolution(node: ir.Node, integer: Collection[str]) -> bool:
    """Whether ``node`` reads an integer convolution, through nothing that changes the layout."""
    pending, seen = list(node.inputs[:1]), set()
    while pending:
        value = pending.pop()
        maker = None if value is None else value.producer()
        if maker is None or maker in seen:
            continue
        seen.add(maker)
        if operator(maker).layout is Layout.STARTS:
            if (maker.name or "") in integer:
                return True
        elif operator(maker).absorbed or is_op(maker, "Resize"):
            pending += maker.inputs[:1]
        elif ops.keeps_channels_last(maker):
            pending += maker.inputs
    return False


def repeat_codes(pieces: Pieces, name: str, how: Repeated) -> None:
    """Replaces the Resize called ``name``, between DequantizeLinear and QuantizeLinear, by joining codes.

    Raises ``ModelError`` where it is not between these.
    """
    node = pieces.nodes[name]
    dequantizer, codes = pieces.dequantized(node)
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or operator(readers[0]).kind != "quantize":
        raise ModelError(f"'{name}' is not between quantizers; the plan does not belong to this model")
    graph, place = graph_of(node), Before(node)
    maps = pieces.node("Transpose", [codes], f"{name}_channels_last", place=place, perm=_CHANNELS_LAST)
    if how.columns > 1:
        maps = pieces.node("Concat", [maps] * how.columns, f"{name}_columns", place=place, axis=3)
    if how.rows > 1:
        flat = pieces.initializer(graph, f"{name}_flat", np.array([0, 0, -1]))
        maps = pieces.node("Reshape", [maps, flat], f"{name}_flattened", place=place)
        maps = pieces.node("Concat", [maps] * how.rows, f"{name}_rows", place=place, axis=2)
    maps = pieces.node("Reshape", [maps, _shape(pieces, codes, how, name, place)], f"{name}_maps", place=place)
    new = pieces.node("Transpose", [maps], f"{name}_codes", place=place, perm=_CHANNELS_FIRST)
    redirect(readers[0].outputs[0], new)
    graph.remove([readers[0], node], safe=True)
    pieces.drop_idle(dequantizer)


def _shape(pieces: Pieces, codes: ir.Value, how: Repeated, name: str, place: Before) -> ir.Value:
    """[N, rows H, columns W, C]: a constant where one side is known, else worked out from ``codes`` at every run."""

    def constant(*entries: int) -> ir.Value:
        return pieces.initializer(graph_of(place.node), f"{name}_shape", np.array(entries, np.int64))

    if how.width is not None:
        return constant(0, -1, how.width * how.columns, how.channels)
    if how.height is not None:
        return constant(0, how.height * how.rows, -1, how.channels)
    shape = pieces.node("Shape", [codes], f"{name}_shape_before", place=place)
    width = pieces.node("Slice", [shape, constant(3), constant(4)], f"{name}_width_before", place=place)
    width = pieces.node("Mul", [width, constant(how.columns)], f"{name}_width", place=place)
    ends = [constant(0, -1), width, constant(how.channels)]
    return pieces.node("Concat", ends, f"{name}_shape_after", place=place, axis=0)
