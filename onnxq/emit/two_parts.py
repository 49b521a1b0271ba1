"""Linear layers whose input is rounded in two parts of 8 bits, the second what rounding the first has lost.

``x = s1 (q1 - z1) + s2 (q2 - z2)`` holds x to about 16 bits, ranges measured at run time, and the product of each part
with the weight is an integer one that writes floats: ``com.microsoft.MatMulIntegerToFloat``. It takes 0.6 to 0.9 of the
time of the float layer, where that in one part takes 0.3 to 0.5 (benchmarks/two_parts.py).

    x -+-> DynamicQuantizeLinear -+-> product with W (+ bias) -----------------------+-> Add
       |                          +-> DequantizeLinear -+                            |
       +--------------------------------------> Sub <---+-> Dynamic... -> product ---+
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from onnxq.emit.fused import DOMAIN
from onnxq.emit.pieces import Pieces, graph_of
from onnxq.graph.edit import static_shape
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.plan.types import Bias


class Columns(NamedTuple):
    """A weight in integers, inputs first: ``codes: [K, outputs]``, ``scale`` and ``zero``: ``[outputs]``."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value
    outputs: int


class Rounded(NamedTuple):
    """A tensor in codes: what DynamicQuantizeLinear makes of one."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value


def rounded_at_run(pieces: Pieces, x: ir.Value, before: ir.Node) -> Rounded:
    """The codes of ``x``, with its range in this run; made once for all that reads it in the graph of ``before``."""
    graph, name = graph_of(before), x.name or ""
    keys = [(id(graph), name, f"dynamic {part}") for part in ("codes", "scale", "zero_point")]
    if keys[0] not in pieces.made:
        rounding = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=pieces.fresh(f"{name}_dynamic"))
        for output, key in zip(rounding.outputs, keys, strict=True):
            output.name = pieces.fresh(f"{name}_{key[2].replace(' ', '_')}")
            pieces.made[key] = output
        graph.insert_before(before, rounding)
    return Rounded(*(pieces.made[key] for key in keys))


def in_two_parts(pieces: Pieces, node: ir.Node, weight: Columns, bias: Bias | None) -> None:
    """Replaces the MatMul or Gemm ``node``, and the Add of its ``bias``, by two integer products and their sum.

    The first product has the name of ``node``.
    """
    x, name = node.inputs[0], node.name or ""
    assert x is not None
    holder = node if bias is None else pieces.nodes[bias.node]
    vector = None if bias is None else holder.inputs[bias.index]
    flat = vector is not None and static_shape(vector) == (weight.outputs,)
    build = NodeBuilder(Before(node))
    first = rounded_at_run(pieces, x, node)
    rest_key = (id(graph_of(node)), x.name or "", "lost in rounding")
    if rest_key not in pieces.made:
        real = build("DequantizeLinear", [*first], name=pieces.fresh(f"{x.name}_first_part"))
        pieces.made[rest_key] = build("Sub", [x, real], name=pieces.fresh(f"{x.name}_lost"))
    second = rounded_at_run(pieces, pieces.made[rest_key], node)
    added = [vector] if flat and vector is not None else []
    large = build.node("MatMulIntegerToFloat", _inputs(first, weight, added), name=name, domain=DOMAIN)
    small = build("MatMulIntegerToFloat", _inputs(second, weight, ()), name=pieces.fresh(f"{name}_rest"), domain=DOMAIN)
    result = build("Add", [large.outputs[0], small], name=pieces.fresh(f"{name}_whole"))
    if vector is not None and not flat:
        result = build("Add", [result, vector], name=pieces.fresh(f"{name}_biased"))
    pieces.take_over(holder.outputs[0], result)
    for idle in dict.fromkeys((holder, node)):
        graph_of(idle).remove(idle, safe=True)
    pieces.nodes[name] = large
    pieces.model.graph.opset_imports.setdefault(DOMAIN, 1)


def _inputs(x: Rounded, weight: Columns, bias: Sequence[ir.Value]) -> list[ir.Value]:
    return [x.codes, weight.codes, x.scale, weight.scale, x.zero, weight.zero, *bias]
