"""Which kernel of a cost table a node needs, and how much work it is, from the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnxq.kernels import ops
from onnxq.kernels.costs import CostTable
from onnxq.kernels.ops import DEPTHWISE_MULTIPLE
from onnxq.query import attribute, constant

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

# Only views: no kernel touches an element.
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_COPIES = frozenset({"Transpose", "Slice", "Split", "DepthToSpace"})


@dataclass(frozen=True)
class Work:
    """A kernel's name in the cost table and its sizes there; an empty name costs nothing.

    ``direct``: whether onnxruntime's direct int8 convolution can do it. ``integer``: names and sizes of what it is
    spelled as on integers, where that is something else. ``otherwise``: what comes nearest in a table without it.
    """

    kernel: str
    sizes: tuple[float, ...]
    direct: bool = True
    integer: tuple[tuple[str, tuple[float, ...]], ...] = ()
    otherwise: Work | None = None

    def cost(self, table: CostTable, number: str) -> float:
        """Microseconds on ``float`` or ``int8``; 0 for views."""
        if self.otherwise is not None and (self.kernel, number) not in table.grids:
            return self.otherwise.cost(table, number)
        return table.cost(self.kernel, number, *self.sizes) if self.kernel else 0.0

    def on_integers(self, table: CostTable) -> float:
        """Microseconds of the integer kernels that it gets."""
        if self.otherwise is not None and (self.kernel, "int8") not in table.grids:
            return self.otherwise.on_integers(table)
        if self.integer:
            return sum(table.cost(kernel, "int8", *sizes) for kernel, sizes in self.integer)
        products = self.force_gemm(table) or (not self.direct and (self.kernel, "int8-gemm") in table.grids)
        return self.cost(table, "int8-gemm" if products else "int8")

    def force_gemm(self, table: CostTable) -> bool:
        """Whether the integer convolution is faster by matrix products than by onnxruntime's direct kernel."""
        other = self.direct and not self.integer and (self.kernel, "int8-gemm") in table.grids
        return other and self.cost(table, "int8-gemm") < _FORCE_GEMM_BELOW * self.cost(table, "int8")


# What steering must gain: less is within what a table can tell of a network.
_FORCE_GEMM_BELOW = 0.9


def work_of(node: ir.Node, shapes: Shapes) -> Work | None:
    """The ``Work`` of ``node``, which has an integer kernel; None where shapes are unknown or nothing was measured."""
    out = shapes.get(node.outputs[0].name or "")
    if out is None:
        return None
    if node.op_type == "Conv":
        return _convolution(node, out)
    if node.op_type in ("MatMul", "Gemm"):
        weight = constant(node.inputs[1])
        if weight is None or len(out) < 1:
            return None
        columns = out[-1]
        return Work("matmul", (math.prod(out) / max(1, columns), weight.size / max(1, columns), columns))
    if node.op_type in _VIEWS:
        return Work("", ())
    given = shapes.get((node.inputs[0].name if node.inputs[0] is not None else "") or "", out)
    if node.op_type in _COPIES:
        return Work("Transpose", (math.prod(given),))
    if node.op_type == "GlobalAveragePool":
        return Work(node.op_type, (math.prod(given),))
    if node.op_type == "HardSigmoid":  # on integers it is an Add; in float it costs no less than one
        return Work("Add", (math.prod(out),))
    if node.op_type == "Resize" and node.inputs[0] is not None and in_layout(node.inputs[0], shapes):
        # Two Concats, of columns and of rows: half as many elements and all. See ``emit.enlarged``.
        return Work(node.op_type, (math.prod(out),), integer=(("Concat", (0.75 * math.prod(out),)),))
    if node.op_type in ("Add", "Mul", "Sigmoid", "LeakyRelu", "MaxPool", "Resize"):
        return Work(node.op_type, (math.prod(out),))
    if node.op_type == "Concat":  # it was measured with two operands; its size is that of one
        return Work(node.op_type, (math.prod(out) / 2,))
    return None


def _convolution(node: ir.Node, out: tuple[int, ...]) -> Work | None:
    weight = constant(node.inputs[1])
    if weight is None or len(out) < 3:
        return None
    channels, inner, *kernel = (int(d) for d in weight.shape.numpy())
    area, pixels = math.prod(kernel), out[0] * math.prod(out[2:])
    group = int(attribute(node, "group", 1))
    if group > 1 and inner == 1:
        return Work("conv.depthwise", (channels, area, pixels), direct=channels % DEPTHWISE_MULTIPLE == 0)
    if group > 1:
        return Work("conv.grouped", (inner * area, channels, pixels))
    if padded := ops.padded_input_channels(node):
        wide = ("conv.spatial", ((inner + padded) * area, channels, pixels))
        otherwise = Work("conv.few", (inner * area, channels, pixels), integer=(wide,))
        return Work("conv.widened", (inner, area, channels, pixels), otherwise=otherwise)
    if inner < ops.DIRECT_INPUTS:
        return Work("conv.few", (inner * area, channels, pixels))
    kernel_name = "conv.pointwise" if area == 1 else "conv.spatial"
    return Work(kernel_name, (inner * area, channels, pixels), ops.direct(inner, channels))


def fused_in_float(node: ir.Node) -> bool:
    """Whether a float kernel takes ``node`` in: a convolution the sum behind it, another one ``x * sigmoid(x)``."""
    makers = [v.producer() if v is not None else None for v in node.inputs]
    if node.op_type == "Add":
        return any(m is not None and m.op_type == "Conv" and len(list(m.outputs[0].uses())) == 1 for m in makers)
    if node.op_type == "Mul" and len(node.inputs) == 2:
        return any(
            m is not None and m.op_type == "Sigmoid" and m.inputs[0] is other
            for m, other in zip(makers, reversed(node.inputs), strict=True)
        )
    return False


def elements(value: ir.Value, shapes: Shapes) -> int | None:
    """How many elements ``value`` has; None where that is unknown."""
    shape = shapes.get(value.name or "")
    return None if shape is None else math.prod(shape)


def in_layout(value: ir.Value, shapes: Shapes) -> bool:
    """Whether ``value`` is a map, which integer and float convolutions keep in layouts of their own."""
    shape = shapes.get(value.name or "")
    return shape is not None and len(shape) >= 4


def blocked(node: ir.Node | None) -> bool:
    """Whether ``node`` in float keeps its channels in blocks, as onnxruntime's convolutions and poolings on x86 do.

    An activation behind one does too, and so does a sum.
    """
    while node is not None and node.op_type in _ALONG and node.inputs and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and not node.domain and node.op_type in _BLOCKED


def breaks_blocks(node: ir.Node, shapes: Shapes) -> bool:
    """Whether ``node`` in float needs its channels one after the other, not in blocks.

    A Concat of channels keeps blocks if every operand fills its own: of 16 with AVX-512; with AVX2 8 would do.
    """
    first = node.inputs[0] if node.inputs else None
    if node.domain or first is None or not in_layout(first, shapes):
        return False
    if node.op_type != "Concat":
        return node.op_type in _COPIES
    channels = [shapes[v.name or ""][1] for v in node.inputs if v is not None and (v.name or "") in shapes]
    return attribute(node, "axis", 1) != 1 or any(count % DEPTHWISE_MULTIPLE for count in channels)


_BLOCKED = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalAveragePool"})
_ALONG = frozenset({"Relu", "Clip", "Sigmoid", "Mul", "Add"})


def writes_codes(node: ir.Node) -> bool:
    """Whether the integer kernel of ``node`` writes 8-bit codes whatever reads them."""
    return ops.weight_slot(node) is None or node.op_type == "Conv"
