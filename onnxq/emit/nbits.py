"""Linear layers whose 4-bit weights are unpacked while they compute: ``com.microsoft.MatMulNBits``.

Written as that operator, at any opset, rather than as the pattern of opset 21 that onnxruntime 1.25 and newer turn into
it: the pattern falls back to float without a word where a weight is transposed, shared, or its scales equal another's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.emit.fused import DOMAIN
from onnxq.emit.pieces import Pieces, graph_of
from onnxq.errors import ModelError
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.numerics import UINT4, PerBlock, Quantized
from onnxq.numerics.packing import Packing

_PACKING = Packing(UINT4.bits)


def block_matmul(pieces: Pieces, node: ir.Node, tensor: str, weight: Quantized, *, accuracy_level: int) -> None:
    """Replaces the MatMul or Gemm ``node``; ``weight`` is in blocks along its inputs, codes uint4.

    Raises ``ModelError`` where the weight is in another granularity.
    """
    granularity = weight.params.granularity
    if not isinstance(granularity, PerBlock) or weight.params.qtype != UINT4:
        raise ModelError(f"weight '{tensor}' is not in blocks of 4-bit codes")
    graph, key = graph_of(node), (id(graph_of(node)), tensor, weight.params, "blocks")
    scale_key, zero_key = (*key, "scale"), (*key, "zero")
    rows = granularity.axis == 1  # a Gemm with transB has output channels first, as the operator has
    codes, scale, zero = weight.codes, weight.params.scale, weight.params.zero_point
    if not rows:
        codes, scale, zero = codes.T, scale.T, zero.T
    channels, inputs = codes.shape
    if key not in pieces.made:
        pieces.made[key] = pieces.initializer(graph, f"{tensor}_blocks", packed_blocks(codes, zero, granularity.size))
        pieces.made[scale_key] = pieces.initializer(graph, f"{tensor}_scale", np.ascontiguousarray(scale).ravel())
        if (zero != _MIDDLE).any():
            pieces.made[zero_key] = pieces.initializer(graph, f"{tensor}_zero_point", packed_zeros(zero))
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


# The zero point of a MatMulNBits that has none.
_MIDDLE = 1 << (UINT4.bits - 1)


def packed_blocks(codes: npt.NDArray[np.integer], zero: npt.NDArray[np.integer], size: int) -> npt.NDArray[np.uint8]:
    """``[N, blocks, size / 2]`` of ``codes: [N, K]``, filled up with the ``zero: [N, blocks]`` of the last block."""
    channels, inputs = codes.shape
    count = -(-inputs // size)
    padded = np.repeat(zero[:, -1:].astype(np.uint8), count * size, axis=1)
    padded[:, :inputs] = codes
    return _PACKING.pack(padded).main.reshape(channels, count, size // _PACKING.group)


def packed_zeros(zero: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """``[N * ceil(blocks / 2)]`` of ``zero: [N, blocks]``: the zero points of a channel begin a byte."""
    channels, count = zero.shape
    padded = np.zeros((channels, count + count % _PACKING.group), np.uint8)
    padded[:, :count] = zero
    return _PACKING.pack(padded).main
