"""LSTM on integers: ``com.microsoft.DynamicQuantizeLSTM``, which measures the range of what it reads at every run.

The products with inputs and with states, ``x W^T`` and ``h R^T``, are 8-bit ones; gates and states are float. Weights
lie the other way round than in LSTM, inputs first, with one scale for every row of gates.

Where 8 bits are too few for what it reads, that becomes twice as wide (``in_two_parts``): x on a grid of step s, and
what rounding to it has lost, r, times K, beside each other; W and W / K read them. The kernel rounds both to the grid
once more, which leaves the first as it is and of r an error of s / K: with K = 12, the energy of which falls as 1 / K^2
while that of rounding W / K, which has the scales of W, grows as K^2, there is 18 dB less noise of the input. So that
its range is known, r fits in, and the kernel finds the same grid, the codes of x keep K / 2 steps from both ends, and
two features that no weight reads hold the ends themselves. It takes a tenth of the time of the float layer more
(benchmarks/two_parts.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.emit.fused import DOMAIN
from onnxq.emit.pieces import Pieces, graph_of
from onnxq.emit.two_parts import rounded_at_run
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.numerics import UINT8, QuantParams, round_half_even

# What is lost in rounding is made so many times as large (see above), and the codes that 8 bits leave to the rest.
K = 12
_CODES = UINT8.qmax
_INNER = _CODES - K

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


def widened(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.int8]:
    """``[directions, 2 inputs + 2, 4 units]``: of a weight ``[directions, 4 units, inputs]`` what reads two parts."""
    parts = [codes, round_half_even(codes / K), np.zeros((*codes.shape[:2], 2))]
    found: npt.NDArray[np.int8] = np.concatenate(parts, axis=2).transpose(0, 2, 1).astype(np.int8)
    return found


def in_two_parts(pieces: Pieces, node: ir.Node) -> None:
    """Makes ``node`` read its input, ``[steps, batch, inputs]``, in two parts and the ends of their range."""
    x, graph, name = node.inputs[0], graph_of(node), node.name or ""
    assert x is not None
    build = NodeBuilder(Before(node))

    def number(value: float, what: str) -> ir.Value:
        return pieces.initializer(graph, f"{name}_{what}", np.asarray(value, np.float32))

    def op(op_type: str, inputs: list[ir.Value], what: str, **attributes: Any) -> ir.Value:
        return build(op_type, inputs, name=pieces.fresh(f"{name}_{what}"), **attributes)

    _, scale, zero = rounded_at_run(pieces, x, node)
    scale = op("Mul", [scale, number(_CODES / _INNER, "wider")], "scale")
    zero = op("Mul", [op("Cast", [zero], "zero", to=ir.DataType.FLOAT), number(_INNER / _CODES, "narrower")], "inner")
    zero = op("Add", [op("Round", [zero], "nearest"), number(K / 2, "margin")], "moved")
    grid = [scale, op("Cast", [zero], "zero_point", to=ir.DataType.UINT8)]
    coarse = op("DequantizeLinear", [op("QuantizeLinear", [x, *grid], "codes"), *grid], "coarse")
    fine = op("Mul", [op("Sub", [x, coarse], "lost"), number(K, "times")], "fine")
    axes = [pieces.initializer(graph, f"{name}_{i}", np.array([i])) for i in (0, 1, 2)]
    nothing = op("Mul", [op("Slice", [x, *axes], "feature"), number(0.0, "nothing")], "blank")
    codes = pieces.initializer(graph, f"{name}_ends", np.array([0, _CODES], np.uint8))
    ends = op("Add", [nothing, op("DequantizeLinear", [codes, *grid], "end")], "pinned")
    node.replace_input_with(0, op("Concat", [coarse, fine, ends], "two_parts", axis=2))


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
