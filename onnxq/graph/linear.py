"""A linear layer, ``y = W x + b`` with a constant W, read from the graph once: Conv, ConvTranspose, Gemm and MatMul.

| operator      | weight                  | bias                    | channels on |
|---------------|-------------------------|-------------------------|-------------|
| Conv          | `[C_out, C_in/g, k...]` | input 2                 | axis 1      |
| ConvTranspose | `[C_in, C_out/g, k...]` | input 2                 | axis 1      |
| Gemm          | `[K, N]`, or `[N, K]`   | input 2, times beta     | the last    |
| MatMul        | `[K, N]`                | the Add right behind it | the last    |

What is multiplied by the transpose of a matrix has the matrix as its weight: ``[N, K]`` of a MatMul.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.edit import (
    Array,
    constant,
    float_constant,
    integer,
    integers,
    is_constant,
    is_op,
    label,
    number,
    rank,
    sole_consumer,
    text,
)
from onnxq.graph.geometry import Geometry, Product, Recurrence
from onnxq.kernels.held import held, turned

_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer. What is constant in it is read when it is asked for, and so is what it is at that time.

    | field            | meaning                                                                                  |
    |------------------|------------------------------------------------------------------------------------------|
    | `node`           | that multiplies by the weight, its input 1                                               |
    | `weight_shape`   | of the tensor in the graph                                                               |
    | `outputs_first`  | whether axis 0 of the weight is of output channels, and not axis 1                       |
    | `groups`         | of channels; 1 but for convolutions                                                      |
    | `axis`           | of the channels in what it reads and writes: 1 in maps, else -1                          |
    | `geometry`       | which rows of the input are multiplied; None where that is not written down              |
    | `add`            | the Add of one constant to each channel that alone reads a MatMul: it holds the bias     |
    """

    node: ir.Node
    weight_shape: tuple[int, ...]
    outputs_first: bool
    groups: int
    axis: int
    geometry: Geometry | None
    add: ir.Node | None = None

    @property
    def x(self) -> ir.Value | None:
        """What it multiplies."""
        return self.node.inputs[0]

    @property
    def result(self) -> ir.Value:
        """What it writes, the bias included."""
        return (self.node if self.add is None else self.add).outputs[0]

    @property
    def weight(self) -> Array:
        """The constant that it multiplies by, as the graph holds it (see ``kernels.held``)."""
        array = constant(held(self.node.inputs[1]))
        if array is None:
            raise ModelError(f"the weight of '{label(self.node)}' is no constant")
        return array

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.weight_shape[0] if self.outputs_first else self.weight_shape[1] * self.groups

    @property
    def inner_channels(self) -> int:
        """Input channels."""
        return self.weight_shape[1] * self.groups if self.outputs_first else self.weight_shape[0]

    @property
    def padded(self) -> bool:
        """Whether zeros are put around what it reads."""
        mode = text(self.node, "auto_pad", "NOTSET")
        return mode.startswith("SAME") or (mode == "NOTSET" and any(integers(self.node, "pads") or ()))

    @property
    def alpha(self) -> float:
        """What the product is multiplied by."""
        return number(self.node, "alpha", 1.0)

    @property
    def bias_at(self) -> tuple[ir.Node, int] | None:
        """The node and the index of its input that the bias is; None where there is none."""
        if self.add is not None:
            return self.add, 0 if self.add.inputs[1] is self.node.outputs[0] else 1
        given = len(self.node.inputs) > 2 and self.node.inputs[2] is not None
        return (self.node, 2) if given else None

    @property
    def bias(self) -> Array | None:
        """[channels] float32: what is added; None where nothing is, or what is no constant for each channel."""
        place = self.bias_at
        array = None if place is None else float_constant(place[0].inputs[place[1]])
        if array is None or array.dtype != np.float32:
            return None
        if is_op(self.node, "Gemm", "MatMul"):
            if array.size not in (1, self.channels) or (array.ndim > 0 and array.shape[-1] != array.size):
                return None  # differs between rows
            array = np.broadcast_to(array.reshape(-1), (self.channels,)) * np.float32(number(self.node, "beta", 1.0))
        return array if array.shape == (self.channels,) else None

    @property
    def foldable(self) -> bool:
        """Whether weight and bias are float32 constants, the bias one for each channel, that may be changed.

        Not what others read too that are no such layers, a table or a transpose: changed it would be a copy.
        """
        weight = self.node.inputs[1]
        plain = weight is not None and weight.const_value is not None
        plain = plain and weight.const_value.dtype == ir.DataType.FLOAT  # type: ignore[union-attr]
        plain = plain and all(use.idx == 1 and is_op(use.node, *_OPERATORS) for use in weight.uses())  # type: ignore[union-attr]
        return plain and (self.bias_at is None or self.bias is not None)

    @property
    def alone(self) -> Linear:
        """The layer without the Add behind it."""
        return replace(self, add=None)

    def by_input(self) -> Array:
        """The weight as ``[g, n, k, C]``: groups, input channels of a group, places of the kernel, output channels.

        Not for ConvTranspose.
        """
        rows = self.weight if self.outputs_first else self.weight.T
        grouped: Array = rows.reshape(self.groups, rows.shape[0] // self.groups, rows.shape[1], -1)
        parts: Array = grouped.transpose(0, 2, 3, 1)
        return parts


def linear_of(node: ir.Node) -> Linear | None:
    """The linear layer that ``node`` is, with the Add of its bias; None where it is none or its weight is computed."""
    weight = held(node.inputs[1]) if is_op(node, *_OPERATORS) and len(node.inputs) > 1 else None
    if weight is None or weight.const_value is None or not is_constant(weight):
        return None
    shape = tuple(weight.const_value.shape.numpy())
    if len(shape) < 2 or (is_op(node, "Gemm", "MatMul") and len(shape) != 2):
        return None
    rows = (is_op(node, "Gemm") and bool(integer(node, "transB", 0))) != turned(node.inputs[1])
    outputs_first = is_op(node, "Conv") or rows
    if is_op(node, "MatMul"):
        channels = shape[0 if rows else 1]
        return Linear(node, shape, rows, 1, -1, Geometry(shape, rows), _bias_behind(node, channels))
    if is_op(node, "Gemm"):
        geometry = None if integer(node, "transA", 0) else Geometry(shape, outputs_first)
        return Linear(node, shape, outputs_first, 1, -1, geometry)
    groups = integer(node, "group", 1)
    return Linear(node, shape, outputs_first, groups, 1, _convolution(node, shape) if is_op(node, "Conv") else None)


def linear_ending_at(node: ir.Node) -> Linear | None:
    """The ``foldable`` layer whose result is the output of ``node``: the node alone, or a MatMul and its Add."""
    if not is_op(node, "Add"):
        found = linear_of(node)
        return found.alone if found is not None and found.alone.foldable else None
    for source in node.inputs:
        maker = None if source is None else source.producer()
        layer = None if maker is None else linear_of(maker)
        if layer is not None and layer.add is node:
            return layer if layer.foldable else None
    return None


def linear_before(value: ir.Value) -> Linear | None:
    """The ``foldable`` layer whose result is ``value``, if that is read once."""
    node = value.producer()
    return None if node is None or sole_consumer(value) is None else linear_ending_at(node)


def linear_reading(node: ir.Node) -> Linear | None:
    """The ``foldable`` layer that ``node`` is, without an Add behind it."""
    found = linear_of(node)
    return found.alone if found is not None and found.alone.foldable else None


def geometry_of(node: ir.Node) -> Geometry | None:
    """Which rows of its input a Conv, Gemm or MatMul multiplies by its constant weight; None for any other node."""
    layer = linear_of(node)
    return None if layer is None else layer.geometry


def products(node: ir.Node) -> dict[int, tuple[ir.Value, Product]]:
    """By input, the constant weights of ``node``: the tensor that each is multiplied with, and how."""
    geometry, x = geometry_of(node), node.inputs[0] if node.inputs else None
    if geometry is not None:
        return {1: (x, geometry)} if x is not None else {}
    if not is_op(node, "LSTM", "GRU", "RNN") or integer(node, "layout", 0):
        return {}
    found: dict[int, tuple[ir.Value, Product]] = {}
    # (The candidate gate of a GRU reads states times the reset gate: alike enough to say which of them count.)
    for index, source in ((1, x), (2, node.outputs[0])):
        weight = node.inputs[index]
        known = weight is not None and is_constant(weight) and source is not None and source.name
        if known and weight.const_value is not None:  # type: ignore[union-attr]
            shape = tuple(weight.const_value.shape.numpy())  # type: ignore[union-attr]
            if len(shape) == 3:  # a constant that was computed may be anything: the model does not run then
                found[index] = (source, Recurrence(shape, states=index == 2))  # type: ignore[assignment]
    return found


def multiply_accumulates(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How often ``node`` multiplies by a constant weight where tensors have these ``shapes``; 0 where it does not."""
    total = 0
    out = shapes.get(node.outputs[0].name or "", ())
    for _, layer in products(node).values():
        if isinstance(layer, Recurrence):
            # Each step of each sample: [T, directions, N, hidden].
            total += math.prod(out) // max(layer.groups * (out[-1] if out else 1), 1) * math.prod(layer.weight_shape)
        else:
            total += math.prod(out) * layer.inputs if out else 0
    return total


def _convolution(node: ir.Node, shape: tuple[int, ...]) -> Geometry | None:
    if len(shape) < 3:
        return None
    kernel, ones = shape[2:], (1,) * (len(shape) - 2)
    return Geometry(
        shape,
        transposed=True,
        groups=integer(node, "group", 1),
        kernel=kernel,
        strides=integers(node, "strides") or ones,
        dilations=integers(node, "dilations") or ones,
        pads=integers(node, "pads") or (0,) * 2 * len(kernel),
        auto_pad=text(node, "auto_pad", "NOTSET"),
    )


def _bias_behind(matmul: ir.Node, channels: int) -> ir.Node | None:
    """The Add that alone reads ``matmul``, if all that it does is to add one constant to each channel, or to all."""
    add = sole_consumer(matmul.outputs[0])
    if add is None or not is_op(add, "Add"):
        return None
    value = add.inputs[0 if add.inputs[1] is matmul.outputs[0] else 1]
    if value is None or value.const_value is None or not is_constant(value):
        return None
    shape, width = tuple(value.const_value.shape.numpy()), rank(matmul.outputs[0])
    size = value.const_value.size
    if value.const_value.dtype != ir.DataType.FLOAT or size not in (1, channels):
        return None
    # A bias of higher rank than the product would widen it.
    flat = len(shape) < 2 or (width is not None and len(shape) <= width and shape[-1] == size)
    return add if flat else None
