"""BatchNormalization and per-channel arithmetic disappear into the linear operator beside them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import (
    Array,
    bypass,
    can_bypass,
    float_constant,
    is_op,
    label,
    new_constant,
    owner,
    rank,
    set_input,
    sole_consumer,
)
from onnxq.graph.linear import Linear, linear_before, linear_reading
from onnxq.graph.passes.affine import AFFINE, Affine, read_affine
from onnxq.graph.passes.float_fusions import completes_fusion
from onnxq.graph.rescale import rescaled_input, rescaled_output

# ``value.meta[MOMENTS]`` of a normalised layer's output: (mean, deviation), [C] float64 each, as in training.
MOMENTS = "moments"


def fold_affine(model: ir.Model) -> int:
    """Folds ``x * scale + shift`` into the linear node before it, or else after it; returns how many nodes went.

    That is BatchNormalization in inference and Add, Sub, Mul, Div by constants, next to Conv, ConvTranspose, Gemm and
    MatMul with constant weights, where nothing else reads the value between the two. Before a padded Conv only a
    multiplication folds: what is padded is zero, and zero it must stay. One that lies in front of the shift folds past
    it: ``x a + b`` is ``(x + b / a) a``. Arithmetic in float64; weights shared with other nodes are copied. What ends a
    GELU or a layer normalisation stays (``float_fusions``).
    """
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if not is_op(node, *AFFINE) or not _beside_linear(node):
                continue
            affine = read_affine(node)
            if affine is None or completes_fusion(node):
                continue
            if _into_previous(node, affine) or _into_next(node, affine) or _past_shift(node, affine):
                count += 1
    return count


def _beside_linear(node: ir.Node) -> bool:
    """Whether a linear layer stands before ``node`` or behind it: reading all others as affine takes a pass's time."""
    if _linear_behind(node) is not None:
        return True
    return any(value is not None and linear_before(value) is not None for value in node.inputs)


def _into_previous(node: ir.Node, affine: Affine) -> bool:
    linear = linear_before(affine.source)
    if linear is None or not can_bypass(node, keep=affine.source):
        return False
    bare = is_op(linear.node, "MatMul") and linear.add is None
    if bare and not affine.axis1 and np.any(affine.shift):
        return False  # this is where the bias of a MatMul belongs already
    flat = affine.per_channel(channels=linear.channels, axis=linear.axis, rank=_rank(linear))
    change = None if flat is None else rescaled_output(linear, *flat)
    if flat is None or change is None:
        return False
    keep = change.store(label=label(node))
    _remember_moments(node, keep, *flat)
    bypass(node, keep=keep)
    return True


def _remember_moments(node: ir.Node, output: ir.Value, scale: Array, shift: Array) -> None:
    """Notes on ``output`` what training left of its distribution: mean beta, deviation |gamma|, channel by channel."""
    if is_op(node, "BatchNormalization"):
        gamma, beta = (float_constant(value) for value in node.inputs[1:3])
        if gamma is not None and beta is not None:
            output.meta[MOMENTS] = (beta.astype(np.float64), np.abs(gamma.astype(np.float64)))
    elif MOMENTS in output.meta:
        mean, deviation = output.meta[MOMENTS]
        output.meta[MOMENTS] = (mean * scale + shift, deviation * np.abs(scale))


def affine_index(node: ir.Node, affine: Affine) -> int:
    """Which input of ``node`` is not the constant (folding may have put an Add's output there)."""
    return 0 if is_op(node, "BatchNormalization") or node.inputs[1] is not affine.source else 1


def _into_next(node: ir.Node, affine: Affine) -> bool:
    linear = _linear_behind(node)
    if linear is None:
        return False
    flat = _for_inputs(affine, linear, node.outputs[0])
    change = None if flat is None else rescaled_input(linear, *flat)
    if change is None:
        return False
    change.store(label=label(node))
    bypass(node, keep=affine.source)
    return True


def _past_shift(node: ir.Node, affine: Affine) -> bool:
    """Folds a multiplication of which only the shift ``node`` keeps it from the linear layer behind."""
    linear, before = _linear_behind(node), affine.source.producer()
    scaling = None if before is None else read_affine(before)
    if linear is None or before is None or scaling is None or not is_op(node, "Add"):
        return False
    if scaling.axis1 or np.any(scaling.shift) or not np.all(scaling.scale) or sole_consumer(affine.source) is not node:
        return False
    flat = _for_inputs(scaling, linear, node.outputs[0])
    with np.errstate(over="ignore"):
        moved = (affine.shift / scaling.scale).astype(np.float32)
    if flat is None or moved.shape != affine.shift.shape or not np.isfinite(moved).all():
        return False
    change = rescaled_input(linear, *flat)
    if change is None:
        return False
    change.store(label=label(before))
    index = 1 - affine_index(node, affine)
    set_input(node, index, new_constant(owner(node), moved, name=f"{label(node)}_shift"))
    bypass(before, keep=scaling.source)
    return True


def _linear_behind(node: ir.Node) -> Linear | None:
    """The linear layer that alone reads what ``node`` writes, as its input."""
    output = node.outputs[0]
    consumer = sole_consumer(output)
    if consumer is None or not consumer.inputs or consumer.inputs[0] is not output:
        return None
    return linear_reading(consumer)


def _for_inputs(affine: Affine, linear: Linear, value: ir.Value) -> tuple[Array, Array] | None:
    """(scale, shift) of ``affine`` for each channel that ``linear`` reads of ``value``."""
    gemm = is_op(linear.node, "Gemm", "MatMul")
    axis, width = (-1, rank(value)) if gemm else (1, linear.weight.ndim)
    return affine.per_channel(channels=linear.inner_channels, axis=axis, rank=width)


def _rank(linear: Linear) -> int | None:
    if is_op(linear.node, "MatMul"):
        return rank(linear.node.outputs[0])
    return linear.weight.ndim
