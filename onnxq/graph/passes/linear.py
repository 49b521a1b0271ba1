"""Conv, ConvTranspose, Gemm and MatMul as ``y = W x + b`` with constant W: scaling and shifting both their ends.

Weight layouts: Conv ``[C_out, C_in/groups, k...]``, ConvTranspose ``[C_in, C_out/groups, k...]``, Gemm ``[K, N]``
(``[N, K]`` with transB), MatMul ``[K, N]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.edit import (
    Array,
    float_constant,
    integer,
    integers,
    is_op,
    new_constant,
    number,
    owner,
    rank,
    redirect,
    set_input,
    sole_consumer,
    text,
)
from onnxq.graph.nodes import After, NodeBuilder


@dataclass(frozen=True)
class Linear:
    """A linear node, its weight, and its bias, which is an input of the node or of an Add right after a MatMul."""

    node: ir.Node
    weight: Array  # float32
    bias: Array | None  # [channels] float32
    add: ir.Node | None = None  # the Add that holds a MatMul's bias

    @property
    def axis(self) -> int:
        """The channel axis of the result."""
        return -1 if is_op(self.node, "MatMul", "Gemm") else 1

    @property
    def channels(self) -> int:
        """Output channels."""
        if is_op(self.node, "ConvTranspose"):
            return int(self.weight.shape[1]) * integer(self.node, "group", 1)
        return int(self.weight.shape[0 if is_op(self.node, "Conv") or integer(self.node, "transB", 0) else 1])

    @property
    def inner_channels(self) -> int:
        """Input channels."""
        if is_op(self.node, "Conv"):
            return int(self.weight.shape[1]) * integer(self.node, "group", 1)
        return int(self.weight.shape[1 if integer(self.node, "transB", 0) else 0])


def linear_before(value: ir.Value) -> Linear | None:
    """The linear node whose result is ``value``, if that result is read once and weights and bias are constants."""
    node = value.producer()
    return None if node is None or sole_consumer(value) is None else linear_ending_at(node)


def linear_ending_at(node: ir.Node) -> Linear | None:
    """The linear layer whose result is the output of ``node``: the node itself, or a MatMul and the Add of its bias."""
    return _matmul_with_add(node) if is_op(node, "Add") else read_linear(node)


def read_linear(node: ir.Node) -> Linear | None:
    """``node`` as a Linear, or None when it is none or its weight or bias is not a float32 constant."""
    if not is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    weight = float_constant(node.inputs[1])
    if weight is None or weight.ndim < 2 or weight.dtype != np.float32:
        return None
    if is_op(node, "MatMul"):
        return Linear(node, weight, None) if weight.ndim == 2 else None
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return Linear(node, weight, None)
    bias, channels = float_constant(node.inputs[2]), Linear(node, weight, None).channels
    if bias is None or bias.dtype != np.float32:
        return None
    if is_op(node, "Gemm"):
        if bias.size not in (1, channels) or (bias.ndim > 0 and bias.shape[-1] != bias.size):
            return None  # differs between rows
        bias = np.broadcast_to(bias.reshape(-1), (channels,)) * np.float32(number(node, "beta", 1.0))
    return Linear(node, weight, bias) if bias.shape == (channels,) else None


def fold_after(linear: Linear, scale: Array, shift: Array, *, label: str) -> bool:
    """Makes ``linear`` compute ``y * scale + shift``; False, and nothing changed, where the numbers overflow.

    A MatMul without a bias gets one in an Add after it, which its reader then reads.

    Args:
        linear: what to change.
        scale, shift: [channels] float64.
        label: names what is new.
    """
    old = np.zeros(linear.channels) if linear.bias is None else linear.bias.astype(np.float64)
    return _store(linear, linear.weight * _over_outputs(linear, scale), old * scale + shift, label)


def fold_before(linear: Linear, scale: Array, shift: Array, *, label: str) -> bool:
    """Makes ``linear`` compute ``W (x * scale + shift) + b``; False, and nothing changed, where that is not exact.

    Not exact: a shift before padding (or before ConvTranspose, whose border sums fewer terms), or before a MatMul,
    which has no bias input.

    Args:
        linear: what to change.
        scale, shift: [inner_channels] float64.
        label: names what is new.
    """
    node = linear.node
    weight = linear.weight.astype(np.float64)
    if is_op(node, "Gemm") and integer(node, "transA", 0):
        return False
    bias = np.zeros(linear.channels) if linear.bias is None else linear.bias.astype(np.float64)
    if np.any(shift):
        if is_op(node, "MatMul", "ConvTranspose") or (is_op(node, "Conv") and _is_padded(node)):
            return False
        summed = (weight * _over_inputs(linear, shift)).sum(axis=tuple(range(2, weight.ndim)))
        alpha = number(node, "alpha", 1.0) if is_op(node, "Gemm") else 1.0
        bias = bias + alpha * summed.sum(axis=1 if is_op(node, "Conv") or integer(node, "transB", 0) else 0)
    return _store(linear, weight * _over_inputs(linear, scale), bias, label)


def _over_outputs(linear: Linear, factor: Array) -> Array:
    """``factor`` [channels] in a shape that multiplies each output channel of the weight (float64)."""
    node, weight = linear.node, linear.weight
    if is_op(node, "ConvTranspose"):
        groups = integer(node, "group", 1)
        rows = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)  # [C_in, C_out/groups]
        return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2)).astype(np.float64)
    if is_op(node, "Conv") or integer(node, "transB", 0):
        return factor.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
    return factor[None, :].astype(np.float64)


def _over_inputs(linear: Linear, factor: Array) -> Array:
    """``factor`` [inner_channels] in a shape that multiplies each input channel of the weight (float64)."""
    node, weight = linear.node, linear.weight
    if is_op(node, "Conv"):
        groups = integer(node, "group", 1)
        rows = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)  # [C_out, C_in/groups]
        return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2)).astype(np.float64)
    if is_op(node, "Gemm") and integer(node, "transB", 0):
        return factor[None, :].astype(np.float64)
    return factor.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)


def _store(linear: Linear, weight: Array, bias: Array, label: str) -> bool:
    """Gives ``linear`` new weights, float32 copies of these; False, and nothing changed, when they overflow."""
    with np.errstate(over="ignore"):
        weight, bias = weight.astype(np.float32), bias.astype(np.float32)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return False
    node, graph = linear.node, owner(linear.node)
    set_input(node, 1, new_constant(graph, weight, name=_name(node.inputs[1], f"{label}_weight")))
    if is_op(node, "MatMul"):
        _store_matmul_bias(linear, bias, label)
    elif linear.bias is not None or np.any(bias):
        old = node.inputs[2] if len(node.inputs) > 2 else None
        set_input(node, 2, new_constant(graph, bias, name=_name(old, f"{label}_bias")))
        node.attributes.pop("beta", None)  # is in the bias
    return True


def _store_matmul_bias(linear: Linear, bias: Array, label: str) -> None:
    node, graph, output = linear.node, owner(linear.node), linear.node.outputs[0]
    if linear.add is not None:
        index = 1 if linear.add.inputs[0] is output else 0
        old = linear.add.inputs[index]
        set_input(linear.add, index, new_constant(graph, bias, name=_name(old, f"{label}_bias")))
    elif np.any(bias):
        build = NodeBuilder(After(node))
        terms = [output, build.constant(bias, f"{label}_bias")]
        add = build.node("Add", terms, name=f"{label}_add", outputs=(f"{output.name}_biased",), like=output)
        redirect(output, add.outputs[0], but=[add])


def _matmul_with_add(add: ir.Node) -> Linear | None:
    """The MatMul before ``add`` as a Linear whose bias the Add holds."""
    for index in (0, 1):
        source = add.inputs[index]
        node = None if source is None else source.producer()
        if source is None or node is None or not is_op(node, "MatMul") or sole_consumer(source) is not add:
            continue
        linear, bias = read_linear(node), float_constant(add.inputs[1 - index])
        if linear is None or bias is None or bias.dtype != np.float32 or bias.size not in (1, linear.channels):
            return None
        width = rank(source)  # a bias of higher rank than the product would widen it
        if bias.ndim > 1 and (width is None or bias.ndim > width or bias.shape[-1] != bias.size):
            return None
        return Linear(node, linear.weight, np.broadcast_to(bias.reshape(-1), (linear.channels,)), add)
    return None


def _is_padded(node: ir.Node) -> bool:
    mode = text(node, "auto_pad", "NOTSET")
    return mode.startswith("SAME") or (mode == "NOTSET" and any(integers(node, "pads") or ()))


def _name(value: ir.Value | None, otherwise: str) -> str:
    return f"{value.name}_folded" if value is not None and value.name else otherwise
