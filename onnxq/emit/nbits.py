"""Linear layers whose 4-bit weights are unpacked while they compute: ``com.microsoft.MatMulNBits``.

Written as that operator, at any opset, rather than as the pattern of opset 21 that onnxruntime 1.25 and newer turn into
it: the pattern falls back to float without a word where a weight is transposed, shared, or its scales equal another's.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.emit.fused import DOMAIN
from onnxq.emit.pieces import Pieces, graph_of
from onnxq.errors import ModelError
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.numerics import UINT4, PerBlock
from onnxq.weights.representation import Nibbles, StoredWeight


def block_matmul(pieces: Pieces, node: ir.Node, tensor: str, weight: StoredWeight, *, accuracy_level: int) -> None:
    """Replaces the MatMul or Gemm ``node``; ``weight`` is in blocks along its inputs, codes uint4.

    Raises ``ModelError`` where the weight is stored in another way.
    """
    granularity, stored = weight.params.granularity, weight.representation
    if not isinstance(granularity, PerBlock) or not isinstance(stored, Nibbles):
        raise ModelError(f"weight '{tensor}' is not in blocks of 4-bit codes")
    graph, key = graph_of(node), (id(graph_of(node)), tensor, weight.params, "blocks")
    scale_key, zero_key = (*key, "scale"), (*key, "zero")
    rows = granularity.axis == 1  # a Gemm with transB has output channels first, as the operator has
    scale = weight.params.scale if rows else weight.params.scale.T
    channels, inputs = weight.codes.shape if rows else weight.codes.T.shape
    if key not in pieces.made:
        packed = stored.pack(weight.codes, axis=0 if rows else 1)
        pieces.made[key] = pieces.initializer(graph, f"{tensor}_blocks", packed["blocks"])
        pieces.made[scale_key] = pieces.initializer(graph, f"{tensor}_scale", np.ascontiguousarray(scale).ravel())
        if "zero_point" in packed:
            pieces.made[zero_key] = pieces.initializer(graph, f"{tensor}_zero_point", packed["zero_point"])
    inputs_of = [node.inputs[0], pieces.made[key], pieces.made[scale_key]]
    if zero_key in pieces.made:
        inputs_of.append(pieces.made[zero_key])
    made = NodeBuilder(Before(node)).node(
        "MatMulNBits",
        inputs_of,
        name=node.name or "",
        outputs=(pieces.fresh(f"{node.name}_product"),),
        domain=DOMAIN,
        K=inputs,
        N=channels,
        bits=UINT4.bits,
        block_size=granularity.size,
        accuracy_level=accuracy_level,
    )
    result = made.outputs[0]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        result = pieces.node("Add", [result, node.inputs[2]], f"{node.name}_biased", place=Before(node))
    pieces.take_over(node.outputs[0], result)
    graph.remove(node, safe=True)
    pieces.nodes[node.name or ""] = made
    pieces.model.graph.opset_imports.setdefault(DOMAIN, 1)
