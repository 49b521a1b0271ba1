"""Linear layers whose 4-bit weights are unpacked while they compute: ``com.microsoft.MatMulNBits``.

Written as that operator, at any opset, rather than as the pattern of opset 21 that onnxruntime 1.25 and newer turn into
it: the pattern falls back to float without a word where a weight is transposed, shared, or its scales equal another's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.emit.fused import DOMAIN
from onnxq.emit.pieces import Pieces, graph_of
from onnxq.errors import ModelError
from onnxq.graph.nodes import Before, NodeBuilder, Place
from onnxq.numerics import UINT4, PerBlock
from onnxq.numerics.packing import Packing
from onnxq.weights.representation import MIDDLE, Nibbles, StoredWeight


class Blocks(NamedTuple):
    """A weight in blocks as constants: ``codes: [C, blocks, bytes]``, ``scale: [C blocks]``, ``zero: [C bytes]``."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None


def block_matmul(
    pieces: Pieces, node: ir.Node, tensor: str, weight: StoredWeight, place: Place, *, accuracy_level: int
) -> None:
    """Replaces the MatMul or Gemm ``node``; ``weight`` is in blocks along its inputs, codes uint4, held at ``place``.

    Raises ``ModelError`` where the weight is stored in another way.
    """
    blocks, (channels, inputs) = _blocks(pieces, tensor, weight, place), _of_channels(weight).shape
    made = NodeBuilder(Before(node)).node(
        "MatMulNBits",
        [node.inputs[0], *(v for v in blocks if v is not None)],
        name=node.name or "",
        outputs=(pieces.fresh(f"{node.name}_product"),),
        domain=DOMAIN,
        K=inputs,
        N=channels,
        bits=UINT4.bits,
        block_size=_stored(tensor, weight)[0].size,
        accuracy_level=accuracy_level,
    )
    result = made.outputs[0]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        result = pieces.node("Add", [result, node.inputs[2]], f"{node.name}_biased", place=Before(node))
    graph = graph_of(node)
    pieces.take_over(node.outputs[0], result)
    graph.remove(node, safe=True)
    pieces.nodes[node.name or ""] = made
    pieces.model.graph.opset_imports.setdefault(DOMAIN, 1)


def real_blocks(pieces: Pieces, tensor: str, weight: StoredWeight, place: Place) -> ir.Value:
    """The values of ``weight`` in float, at ``place``; raises ``ModelError`` as ``block_matmul`` does."""
    blocks = _blocks(pieces, tensor, weight, place)
    rows = _unpacked(pieces, blocks, tensor, weight, place, ())
    if _stored(tensor, weight)[0].axis == 1:
        return rows
    return pieces.node("Transpose", [rows], f"{tensor}_columns", place=place, perm=[1, 0])


def gathered_blocks(
    pieces: Pieces, index: ir.Value, tensor: str, weight: StoredWeight, place: Place, here: Place
) -> ir.Value:
    """The rows ``index``, of known rank, of ``weight``, which is held at ``place``, in float, unpacked ``here``.

    Raises ``ModelError`` as ``block_matmul`` does.
    """
    blocks = _blocks(pieces, tensor, weight, place)
    assert index.shape is not None
    count = _stored(tensor, weight)[1].zero.shape[1]
    shapes = {"scale": (len(weight.codes), count), "zero": (len(weight.codes), -(-count // 2))}
    parts = [blocks.codes]
    for value, (what, shape) in zip(blocks[1:], shapes.items(), strict=True):
        if value is not None:
            target = pieces.initializer(graph_of(place.node), f"{tensor}_{what}_shape", np.asarray(shape, np.int64))
            parts.append(pieces.node("Reshape", [value, target], f"{tensor}_{what}_rows", place=place))
    names = ("blocks", "scales", "zero_points")
    picked = [
        pieces.node("Gather", [part, index], f"{tensor}_row_{name}", place=here, axis=0)
        for part, name in zip(parts, names, strict=False)
    ]
    rows = Blocks(picked[0], picked[1], picked[2] if len(picked) > 2 else None)
    return _unpacked(pieces, rows, tensor, weight, here, (0,) * len(index.shape))


def _stored(tensor: str, weight: StoredWeight) -> tuple[PerBlock, Nibbles]:
    granularity, stored = weight.params.granularity, weight.representation
    if not isinstance(granularity, PerBlock) or not isinstance(stored, Nibbles):
        raise ModelError(f"weight '{tensor}' is not in blocks of 4-bit codes")
    return granularity, stored


def _of_channels(weight: StoredWeight) -> npt.NDArray[np.integer]:
    """The codes ``[C, n]``: output channels first, as the operator has them, and a Gemm with transB."""
    rows = weight.params.granularity == PerBlock(1, weight.params.granularity.size)  # type: ignore[union-attr]
    return weight.codes if rows else weight.codes.T


def _blocks(pieces: Pieces, tensor: str, weight: StoredWeight, place: Place) -> Blocks:
    """The constants for ``weight``, made once in the graph of ``place``."""
    (granularity, stored), graph = _stored(tensor, weight), graph_of(place.node)
    key, rows = (id(graph), tensor, weight.params, "blocks"), granularity.axis == 1
    scale_key, zero_key = (*key, "scale"), (*key, "zero")
    if key not in pieces.made:
        packed = stored.pack(weight.codes, axis=0 if rows else 1)
        scale = weight.params.scale if rows else weight.params.scale.T
        pieces.made[key] = pieces.initializer(graph, f"{tensor}_blocks", packed["blocks"])
        pieces.made[scale_key] = pieces.initializer(graph, f"{tensor}_scale", np.ascontiguousarray(scale).ravel())
        if "zero_point" in packed:
            pieces.made[zero_key] = pieces.initializer(graph, f"{tensor}_zero_point", packed["zero_point"])
    return Blocks(pieces.made[key], pieces.made[scale_key], pieces.made.get(zero_key))


def _unpacked(
    pieces: Pieces, blocks: Blocks, tensor: str, weight: StoredWeight, place: Place, leading: tuple[int, ...]
) -> ir.Value:
    """``blocks`` in float, ``[.., n]``: all channels, or those in the ``leading`` axes, of which 0 keeps the size."""
    (granularity, stored), graph = _stored(tensor, weight), graph_of(place.node)
    channels, inputs = _of_channels(weight).shape
    count, first = stored.zero.shape[1], leading or (channels,)

    def make(op: str, inputs_of: list[ir.Value], what: str, **attributes: Any) -> ir.Value:
        return pieces.node(op, inputs_of, f"{tensor}_{what}", place=place, **attributes)

    def reshaped(value: ir.Value, last: tuple[int, ...], what: str) -> ir.Value:
        target = pieces.initializer(graph, f"{tensor}_{what}_shape", np.asarray((*first, *last), np.int64))
        return make("Reshape", [value, target], what)

    def nibbles(packed: ir.Value, last: tuple[int, ...], what: str, *, offset: int) -> ir.Value:
        """4-bit codes less ``offset`` as floats, ``[.., last]``."""
        table = Packing(UINT4.bits).table(np.arange(UINT4.qmax + 1, dtype=np.int8) - np.int8(offset))
        key = (id(graph), "nibbles", offset)
        if key not in pieces.made:
            pieces.made[key] = pieces.initializer(graph, f"packed_nibbles_{offset}", table)
        where = make("Cast", [packed], f"{what}_index", to=ir.DataType.INT32)
        codes = make("Gather", [pieces.made[key], where], f"{what}_pairs", axis=0)
        return make("Cast", [reshaped(codes, last, what)], f"{what}_float", to=ir.DataType.FLOAT)

    values = nibbles(blocks.codes, (count, granularity.size), "unpacked", offset=0 if blocks.zero else MIDDLE)
    if blocks.zero is not None:
        zeros = nibbles(blocks.zero, (count + count % 2, 1), "zeros", offset=0)
        if count % 2:
            ends = [
                pieces.initializer(graph, f"{tensor}_{what}", np.asarray([x], np.int64))
                for what, x in (("from", 0), ("to", count), ("along", len(first)))
            ]
            zeros = make("Slice", [zeros, *ends], "zeros_cut")
        values = make("Sub", [values, zeros], "centred")
    values = make("Mul", [values, reshaped(blocks.scale, (count, 1), "scales")], "real_blocks")
    rows = reshaped(values, (count * granularity.size,), "real")
    if count * granularity.size == inputs:
        return rows
    ends = [
        pieces.initializer(graph, f"{tensor}_{what}", np.asarray([x], np.int64))
        for what, x in (("start", 0), ("end", inputs), ("axis", len(first)))
    ]
    return make("Slice", [rows, *ends], "real_cut")
