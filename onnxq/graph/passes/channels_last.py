"""Between tokens and maps the transposition goes to the side of the map, where it meets an integer convolution's own.

Integer convolutions want their channels last, and onnxruntime puts a transposition to that layout in front of them and
one back behind them. A vision transformer keeps its tokens as ``[batch, pixels, channels]``, which *is* a map with its
channels last; spelled as transpose-then-reshape that stays hidden, and both are carried out. Reshaped first and
transposed then, the two transpositions are each other's inverse and go.

    [B, N, C] -> Transpose [B, C, N] -> Reshape [B, C, H, W]     becomes  Reshape [B, H, W, C] -> Transpose
    [B, C, H, W] -> Reshape [B, C, N] -> Transpose [B, N, C]     becomes  Transpose [B, H, W, C] -> Reshape
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import (
    bypass,
    can_bypass,
    constant,
    insert_before,
    integers,
    is_op,
    label,
    new_constant,
    new_node,
    owner,
    set_input,
    sole_consumer,
)

_SWAP = (0, 2, 1)
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def transpose_maps(model: ir.Model) -> int:
    """Moves transpositions from tokens to maps; returns how many. Needs shapes of which only the batch is open."""
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if is_op(node, "Transpose") and integers(node, "perm") == _SWAP:
                count += _before_a_map(node)
            elif is_op(node, "Reshape"):
                count += _behind_a_map(node)
    return count


def _before_a_map(transpose: ir.Node) -> bool:
    reshape = sole_consumer(transpose.outputs[0])
    if reshape is None or not is_op(reshape, "Reshape") or reshape.inputs[0] is not transpose.outputs[0]:
        return False
    tokens, sizes = _inner(transpose.inputs[0], 3), _inner(reshape.outputs[0], 4)
    if tokens is None or sizes is None or constant(reshape.inputs[1]) is None:
        return False
    (pixels, channels), (depth, height, width) = tokens, sizes
    if channels != depth or pixels != height * width or not can_bypass(transpose, keep=_known(transpose.inputs[0])):
        return False
    _reshape_to(reshape, (height, width, channels))
    turned = _transposed(reshape, _TO_FIRST, reshape.outputs[0].shape)
    _behind(reshape, turned)
    reshape.outputs[0].shape = _shape(reshape, height, width, channels)
    return bypass(transpose, keep=_known(transpose.inputs[0]))


def _behind_a_map(reshape: ir.Node) -> bool:
    transpose = sole_consumer(reshape.outputs[0])
    if transpose is None or not is_op(transpose, "Transpose") or integers(transpose, "perm") != _SWAP:
        return False
    sizes, tokens = _inner(reshape.inputs[0], 4), _inner(reshape.outputs[0], 3)
    if tokens is None or sizes is None or constant(reshape.inputs[1]) is None:
        return False
    (depth, height, width), (channels, pixels) = sizes, tokens
    if channels != depth or pixels != height * width or not can_bypass(transpose, keep=reshape.outputs[0]):
        return False
    turned = new_node("Transpose", [reshape.inputs[0]], name=f"{label(reshape)}_channels_last", perm=list(_TO_LAST))
    turned.outputs[0].type = reshape.outputs[0].type
    turned.outputs[0].shape = _shape(reshape, height, width, channels)
    insert_before(reshape, [turned])
    set_input(reshape, 0, turned.outputs[0])
    _reshape_to(reshape, (pixels, channels))
    reshape.outputs[0].shape = _shape(reshape, pixels, channels)
    return bypass(transpose, keep=reshape.outputs[0])


def _behind(node: ir.Node, new: ir.Node) -> None:
    """Puts ``new``, which reads the output of ``node``, between that and all its readers; the name goes along."""
    old, turned = node.outputs[0], new.outputs[0]
    for use in tuple(old.uses()):
        if use.node is not new:
            use.node.replace_input_with(use.idx, turned)
    turned.type = old.type
    owner(node).insert_after(node, new)
    for index, output in enumerate(owner(node).outputs):
        if output is old:
            owner(node).outputs[index] = turned
    name = old.name
    old.name = f"{name}_channels_last"
    turned.name = name


def _transposed(node: ir.Node, perm: Sequence[int], shape: ir.Shape | None) -> ir.Node:
    new = new_node("Transpose", [node.outputs[0]], name=f"{label(node)}_channels_first", perm=list(perm))
    new.outputs[0].shape = shape
    return new


def _reshape_to(node: ir.Node, inner: Sequence[int]) -> None:
    """Makes ``node`` keep its first dimension and give the others the sizes ``inner``."""
    shape = new_constant(owner(node), np.asarray([0, *inner], np.int64), name=f"{label(node)}_shape")
    set_input(node, 1, shape)


def _shape(node: ir.Node, *inner: int) -> ir.Shape:
    old = node.outputs[0].shape
    assert old is not None
    return ir.Shape([old[0], *inner])


def _inner(value: ir.Value | None, rank: int) -> tuple[int, ...] | None:
    """All dimensions but the first of a tensor of ``rank``, where they are numbers."""
    if value is None or value.shape is None or len(value.shape) != rank:
        return None
    dims = tuple(d for d in list(value.shape)[1:] if isinstance(d, int))
    return dims if len(dims) == rank - 1 else None


def _known(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
