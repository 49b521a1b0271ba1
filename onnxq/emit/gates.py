"""HardSigmoid on integers: ``clip(alpha x + beta, 0, 1)``, for which onnxruntime has no kernel.

``alpha x`` costs nothing: it is the codes of ``x`` with another scale. So is ``+ beta`` where the step of ``x`` divides
``beta / alpha``: another zero point. What is left then is a Clip of codes, which rounds nothing. Else it is an Add of
one constant (QLinearAdd), and the quantizer behind it clips, from 0 to at most 1. Between integers, on VNNI, HardSwish
takes 0.32 ns an element by a Clip, 0.44 by an Add, and 1.07 in float.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxq.emit.pieces import Pieces, graph_of
from onnxq.graph.edit import redirect
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.kernels.operators import operator
from onnxq.numerics import QuantParams, moved, scaled, whole_steps


def read_by_gates(pieces: Pieces, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """By node, of those called ``names``, that is a HardSigmoid: the tensor that it reads, and the one it writes."""
    found = {name: node for name in names if operator(node := pieces.nodes[name]).line is not None}
    return {
        name: (x.name or "", node.outputs[0].name or "")
        for name, node in found.items()
        if (x := node.inputs[0]) is not None
    }


def slope_and_offset(gate: ir.Node) -> tuple[float, float]:
    """``alpha`` and ``beta`` of a HardSigmoid."""
    line = operator(gate).line
    assert line is not None
    return line(gate)


def gate_params(params: QuantParams, alpha: float, beta: float) -> QuantParams | None:
    """The parameters by which codes of ``x`` under ``params``, clipped, are those of ``clip(alpha x + beta, 0, 1)``.

    None where 0 or 1 lie between two codes, or the code of 0 beyond the ends.
    """
    steeper = scaled(params, alpha)
    return None if steeper is None or whole_steps(1.0, float(steeper.scale)) is None else moved(steeper, beta)


def gate_on_codes(pieces: Pieces, name: str, tensor: str, params: QuantParams, own: QuantParams) -> None:
    """Puts codes in the place of the HardSigmoid called ``name``, which reads ``tensor`` dequantized by ``params``.

    ``own``: the parameters of what it writes. It stays in float where its quantizer does not clip at 0 and at
    most 1, and where something reads it in float.
    Raises ``ModelError`` where the input is not dequantized.
    """
    gate = pieces.nodes[name]
    readers = [use.node for use in gate.outputs[0].uses()]
    if own == gate_params(params, *slope_and_offset(gate)):
        if len(readers) == 1 and operator(readers[0]).kind == "quantize":
            _clipped(pieces, name, own, readers[0])
    elif int(own.zero_point) == own.qtype.qmin and float(own.scale) * (own.qtype.qmax - own.qtype.qmin) <= 1:
        gate_as_sum(pieces, name, tensor, params)


def _clipped(pieces: Pieces, name: str, own: QuantParams, quantizer: ir.Node) -> None:
    """A Clip of the codes that the HardSigmoid called ``name`` reads, in its place and in that of its quantizer."""
    gate = pieces.nodes[name]
    dequantizer, codes = pieces.dequantized(gate)
    graph, zero = graph_of(gate), int(own.zero_point)
    ends = (zero, min(zero + (whole_steps(1.0, float(own.scale)) or 0), own.qtype.qmax))
    limits = [
        pieces.initializer(graph, f"{name}_{end}", np.asarray(code, own.qtype.storage))
        for end, code in zip(("lowest", "highest"), ends, strict=True)
    ]
    clipped = pieces.fresh(f"{name}_clipped")
    clip = NodeBuilder(Before(gate)).node("Clip", [codes, *limits], name=name, outputs=(clipped,))
    redirect(quantizer.outputs[0], clip.outputs[0])
    graph.remove([quantizer, gate], safe=True)
    pieces.drop_idle(dequantizer)
    pieces.nodes[name] = clip


def gate_as_sum(pieces: Pieces, name: str, tensor: str, params: QuantParams) -> None:
    """Replaces the HardSigmoid called ``name``, which reads ``tensor`` dequantized by ``params``, by an Add.

    The new node has the name of the old one. Raises ``ModelError`` where the input is not dequantized.
    """
    gate = pieces.nodes[name]
    graph = graph_of(gate)
    dequantizer, x_codes = pieces.dequantized(gate)
    alpha, beta = (np.float32(number) for number in slope_and_offset(gate))
    steeper = replace(params, scale=np.asarray(params.scale * alpha, np.float32))
    x = pieces.dequantize(x_codes, steeper, f"{tensor}_times_{alpha:.4g}", place=Before(gate))
    # The distance of two neighbouring codes is the constant: no rounding.
    storage, lowest = params.qtype.storage, params.qtype.qmin
    here, there = (lowest + 1, lowest) if beta < 0 else (lowest, lowest + int(beta > 0))
    step = replace(params, scale=np.asarray(abs(beta) or 1, np.float32), zero_point=np.asarray(here, storage))
    codes = pieces.initializer(graph, f"{name}_offset_quantized", np.asarray(there, storage))
    offset = pieces.dequantize(codes, step, f"{name}_offset", place=Before(gate))
    total = NodeBuilder(Before(gate)).node("Add", [x, offset], name=name, outputs=(pieces.fresh(f"{name}_sum"),))
    pieces.take_over(gate.outputs[0], total.outputs[0])
    graph.remove(gate, safe=True)
    pieces.drop_idle(dequantizer)
    pieces.nodes[name] = total
