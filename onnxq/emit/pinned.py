"""QuantizeLinear behind a MaxPool that is to stay float: onnxruntime would move it in front.

Its QDQPropagation moves a QuantizeLinear up through MaxPool, Reshape, Transpose, Squeeze, Unsqueeze and Slice. An int8
MaxPool outside the layout of integer convolutions is 27 times slower than the float one (a first convolution left in
float, its Relu, and pooling: 2.6 ms instead of 0.1 in VGG at 96 x 96). A Clip one code wider than the quantizer changes
nothing; the Clip is gone once onnxruntime fuses it into the quantizer, which it does after moving.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxq.emit.pieces import Pieces, graph_of
from onnxq.graph.nodes import Place
from onnxq.kernels.operators import operator
from onnxq.kernels.ops import wants_channels_last
from onnxq.numerics import QuantParams
from onnxq.query import nodes


def float_pooling(model: ir.Model, integer: Collection[str]) -> frozenset[str]:
    """The tensors that come out of a MaxPool which is not among the ``integer`` nodes, moved on or not."""
    found: set[str] = set()
    pending = [n.outputs[0] for n in nodes(model) if wants_channels_last(n) and (n.name or "") not in integer]
    while pending:
        value = pending.pop()
        found.add(value.name or "")
        pending += [u.node.outputs[0] for u in value.uses() if u.idx == 0 and operator(u.node).propagates]
    return frozenset(found)


def clipped(pieces: Pieces, value: ir.Value, chosen: QuantParams, *, place: Place) -> ir.Value:
    """``value`` within one code more, on either side, than ``chosen`` has."""
    zero, graph = int(chosen.zero_point), graph_of(place.node)
    ends = [
        pieces.initializer(graph, f"{value.name}_{end}", np.asarray(chosen.scale * np.float32(code - zero), np.float32))
        for end, code in (("least", chosen.qtype.qmin - 1), ("most", chosen.qtype.qmax + 1))
    ]
    return pieces.node("Clip", [value, *ends], f"{value.name}_held", place=place)
