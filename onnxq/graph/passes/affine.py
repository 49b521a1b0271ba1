"""Nodes that compute ``y = x * scale + shift`` with constants that differ between channels at most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.edit import Array, float_constant, integer, is_op, number

# The operators that can be read as one.
AFFINE = ("BatchNormalization", "Add", "Sub", "Mul", "Div")


@dataclass(frozen=True)
class Affine:
    """``y = x * scale + shift``; both float64 and broadcast as numpy does, or ``[C]`` along axis 1 with ``axis1``."""

    source: ir.Value
    scale: Array
    shift: Array
    axis1: bool  # True: 1-D arrays along axis 1 (BatchNormalization); False: numpy broadcasting, from the last axis

    def per_channel(self, *, channels: int, axis: int, rank: int | None) -> tuple[Array, Array] | None:
        """``(scale, shift)``, [channels] each, for a tensor with its channels on ``axis``; None where they do not fit.

        Args:
            channels: size of the channel axis.
            axis: the channel axis, 1 or -1.
            rank: dimensions of the tensor; None, unknown, accepts only what fits whatever the rank is.
        """
        scale = self._flat(self.scale, channels, axis, rank)
        shift = self._flat(self.shift, channels, axis, rank)
        return None if scale is None or shift is None else (scale, shift)

    def _flat(self, array: Array, channels: int, axis: int, rank: int | None) -> Array | None:
        if self.axis1:
            fits = array.size == channels and rank is not None and axis % rank == 1
            return array if fits else None
        if array.ndim == 0:
            return np.broadcast_to(array, (channels,))
        if rank is None:
            if axis != -1 or array.ndim > 1:
                return None
            rank = 1
        if array.ndim > rank:
            return None  # would add dimensions
        shape = (1,) * (rank - array.ndim) + array.shape
        where = axis % rank
        if any(dim != 1 for index, dim in enumerate(shape) if index != where) or shape[where] not in (1, channels):
            return None
        return np.broadcast_to(array.reshape(-1), (channels,))


def read_affine(node: ir.Node) -> Affine | None:
    """``node`` as an Affine: inference-time BatchNormalization, or Add, Sub, Mul, Div with one float32 constant."""
    if not is_op(node, *AFFINE):
        return None
    if is_op(node, "BatchNormalization"):
        return _batchnorm(node)
    for index in (1, 0):
        source = node.inputs[1 - index]
        array = float_constant(node.inputs[index])
        if array is None or source is None or array.dtype != np.float32 or float_constant(source) is not None:
            continue
        return _arithmetic(node.op_type, source, array.astype(np.float64), constant_first=index == 0)
    return None


def _arithmetic(op_type: str, source: ir.Value, array: Array, *, constant_first: bool) -> Affine | None:
    one, zero = np.ones(()), np.zeros(())
    if op_type == "Add":
        scale, shift = one, array
    elif op_type == "Sub":
        scale, shift = (-one, array) if constant_first else (one, -array)
    elif op_type == "Mul":
        scale, shift = array, zero
    elif constant_first or not np.all(array):
        return None
    else:
        scale, shift = 1.0 / array, zero
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    return Affine(source, np.asarray(scale), np.asarray(shift), axis1=False)


def _batchnorm(node: ir.Node) -> Affine | None:
    if len(node.inputs) < 5 or integer(node, "training_mode", 0) or node.inputs[0] is None:
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    gamma, beta, mean, var = (float_constant(value) for value in node.inputs[1:5])
    if gamma is None or beta is None or mean is None or var is None:
        return None
    # The attribute is a float32; its double is what runtimes add.
    epsilon = float(np.float32(number(node, "epsilon", 1e-5)))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
        shift = beta.astype(np.float64) - mean.astype(np.float64) * scale
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    return Affine(node.inputs[0], scale, shift, axis1=True)
