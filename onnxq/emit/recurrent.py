"""LSTM on integers: ``com.microsoft.DynamicQuantizeLSTM``, which measures the range of what it reads at every run.

The products with inputs and with states, ``x W^T`` and ``h R^T``, are 8-bit ones; gates and states are float. Weights
lie the other way round than in LSTM, inputs first, with one scale for every row of gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx_ir as ir

from onnxq.emit.fused import DOMAIN
from onnxq.emit.pieces import Pieces, graph_of
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.numerics import QuantParams

# Inputs of LSTM up to the peepholes; then come those of the integer weights.
_INPUTS = 8


class Gates(NamedTuple):
    """A weight in integers: ``codes: [directions, inputs, 4 units]``, ``scale`` and ``zero: [directions, 4 units]``."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value


def gates(pieces: Pieces, graph: ir.Graph, codes: ir.Value, chosen: QuantParams, name: str) -> Gates:
    """The ``Gates`` of ``codes`` with the parameters ``chosen``, which are those of rows of gates; for ``graph``."""
    shape = chosen.scale.shape[:2]
    scale = pieces.initializer(graph, f"{name}_scale", chosen.scale.reshape(shape))
    zero = pieces.initializer(graph, f"{name}_zero_point", chosen.zero_point.reshape(shape))
    return Gates(codes, scale, zero)


def integer_lstm(pieces: Pieces, node: ir.Node, weights: Mapping[int, Gates]) -> None:
    """Replaces ``node`` by an integer one of its name; ``weights`` by input: 1 those of inputs, 2 those of states."""
    own, states = weights[1], weights[2]
    inputs = [*node.inputs, *[None] * (_INPUTS - len(node.inputs))]
    inputs[1:3] = [own.codes, states.codes]
    kept: dict[str, Any] = {name: value for name, value in node.attributes.items() if name != "layout"}
    integer = NodeBuilder(Before(node)).node(
        "DynamicQuantizeLSTM",
        [*inputs, own.scale, own.zero, states.scale, states.zero],
        name=node.name or "",
        outputs=[pieces.fresh(f"{node.name}_integer") if old.name else "" for old in node.outputs],
        domain=DOMAIN,
        **kept,
    )
    for old, new in zip(node.outputs, integer.outputs, strict=True):
        if old.name:
            pieces.take_over(old, new)
    graph_of(node).remove(node, safe=True)
    pieces.nodes[node.name or ""] = integer
    pieces.model.graph.opset_imports.setdefault(DOMAIN, 1)
