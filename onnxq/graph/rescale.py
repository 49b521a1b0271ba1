"""Linear layers that scale and shift what they read or write: computed first, stored if all is well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.edit import Array, constant, integer, is_op, new_constant, owner, redirect, set_input
from onnxq.graph.linear import Linear
from onnxq.graph.nodes import After, NodeBuilder


def rescaled_output(linear: Linear, scale: Array, shift: Array) -> Change | None:
    """What makes ``linear`` compute ``y * scale + shift``; None where the numbers overflow.

    Args:
        linear: a ``foldable`` layer.
        scale, shift: [channels] float64.
    """
    old = np.zeros(linear.channels) if linear.bias is None else linear.bias.astype(np.float64)
    return _change(linear, linear.weight * _over_outputs(linear, scale), old * scale + shift)


def rescaled_input(linear: Linear, scale: Array, shift: Array) -> Change | None:
    """What makes ``linear`` compute ``W (x * scale + shift) + b``; None where that overflows or would not be exact.

    Not exact: a shift before padding (or before ConvTranspose, whose border sums fewer terms), or before a MatMul,
    which has no bias input.

    Args:
        linear: a ``foldable`` layer.
        scale, shift: [inner_channels] float64.
    """
    node, weight = linear.node, linear.weight.astype(np.float64)
    if is_op(node, "Gemm") and integer(node, "transA", 0):
        return None
    bias = np.zeros(linear.channels) if linear.bias is None else linear.bias.astype(np.float64)
    if np.any(shift):
        if is_op(node, "MatMul", "ConvTranspose") or linear.padded:
            return None
        summed = (weight * _over_inputs(linear, shift)).sum(axis=tuple(range(2, weight.ndim)))
        bias = bias + linear.alpha * summed.sum(axis=1 if linear.outputs_first else 0)
    return _change(linear, weight * _over_inputs(linear, scale), bias)


@dataclass(frozen=True, eq=False)
class Change:
    """A ``weight`` and a ``bias`` [channels] for a layer, float32, that the graph does not hold yet."""

    linear: Linear
    weight: Array
    bias: Array

    def store(self, *, label: str) -> ir.Value:
        """Gives them to the layer; returns what it writes then.

        A MatMul without a bias gets one in an Add after it, which its readers read then. ``label`` names what is new.
        """
        linear, node = self.linear, self.linear.node
        graph, place = owner(node), linear.bias_at
        set_input(node, 1, new_constant(graph, self.weight, name=_name(node.inputs[1], f"{label}_weight")))
        if place is None and is_op(node, "MatMul"):
            return self._in_add(label) if np.any(self.bias) else linear.result
        if place is not None or np.any(self.bias):
            holder, index = (node, 2) if place is None else place
            old = None if place is None else holder.inputs[index]
            set_input(holder, index, new_constant(graph, self.bias, name=_name(old, f"{label}_bias")))
            node.attributes.pop("beta", None)  # is in the bias
        return linear.result

    def _in_add(self, label: str) -> ir.Value:
        node, output = self.linear.node, self.linear.node.outputs[0]
        build = NodeBuilder(After(node))
        terms = [output, build.constant(self.bias, f"{label}_bias")]
        add = build.node("Add", terms, name=f"{label}_add", outputs=(f"{output.name}_biased",), like=output)
        redirect(output, add.outputs[0], but=[add])
        return add.outputs[0]


def rescaled_columns(node: ir.Node, index: int, scale: Array) -> Columns | None:
    """What multiplies the last axis of the constant input ``index`` of ``node`` by ``scale``; None on overflow."""
    weight = constant(node.inputs[index])
    assert weight is not None
    with np.errstate(over="ignore"):
        scaled = (weight * scale).astype(np.float32)
    return Columns(node, index, scaled) if np.isfinite(scaled).all() else None


@dataclass(frozen=True, eq=False)
class Columns:
    """A ``weight`` for an input of a node, float32, that the graph does not hold yet."""

    node: ir.Node
    index: int
    weight: Array

    def store(self, *, label: str) -> None:
        """Gives it to the node; ``label`` names what is new."""
        old = self.node.inputs[self.index]
        name = _name(old, f"{label}_weight")
        set_input(self.node, self.index, new_constant(owner(self.node), self.weight, name=name))


def _over_outputs(linear: Linear, factor: Array) -> Array:
    """``factor`` [channels] in a shape that multiplies each output channel of the weight (float64)."""
    return _along(linear, factor, 0 if linear.outputs_first else 1)


def _over_inputs(linear: Linear, factor: Array) -> Array:
    """``factor`` [inner_channels] in a shape that multiplies each input channel of the weight (float64)."""
    return _along(linear, factor, 1 if linear.outputs_first else 0)


def _along(linear: Linear, factor: Array, axis: int) -> Array:
    """``factor`` along an axis of the weight: axis 0 goes through all groups, axis 1 through the channels of one."""
    shape = linear.weight_shape
    if axis == 0:
        rows = factor.reshape(-1, 1)
    elif linear.groups == 1:
        rows = factor.reshape(1, -1)
    else:
        rows = np.repeat(factor.reshape(linear.groups, -1), shape[0] // linear.groups, axis=0)
    return rows.reshape(*rows.shape, *[1] * (len(shape) - 2)).astype(np.float64)


def _change(linear: Linear, weight: Array, bias: Array) -> Change | None:
    with np.errstate(over="ignore"):
        weight, bias = weight.astype(np.float32), bias.astype(np.float32)
    return Change(linear, weight, bias) if np.isfinite(weight).all() and np.isfinite(bias).all() else None


def _name(value: ir.Value | None, otherwise: str) -> str:
    return f"{value.name}_folded" if value is not None and value.name else otherwise
