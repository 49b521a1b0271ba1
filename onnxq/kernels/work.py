"""Which kernel of a cost table a node needs and how much of it, and what float kernels do with nodes and layouts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxq.kernels.costs import Shapes, Work
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Blocks
from onnxq.kernels.sizes import elements, in_layout
from onnxq.kernels.targets import Target

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Shapes", "Work", "blocked", "breaks_blocks", "elements", "fused_in_float", "in_layout", "work_of"]


def work_of(node: ir.Node, shapes: Shapes, target: Target) -> Work | None:
    """The ``Work`` of ``node``, which has an integer kernel; None where shapes are unknown."""
    out = shapes.get(node.outputs[0].name or "")
    if out is None:
        return None
    record = operator(node)
    return Work(record.name, (math.prod(out),)) if record.work is None else record.work(node, shapes, target)


def fused_in_float(node: ir.Node) -> bool:
    """Whether a float kernel takes ``node`` in: a convolution the sum behind it, another one ``x * sigmoid(x)``."""
    fused = operator(node).fused_in_float
    return fused is not None and fused(node)


def blocked(node: ir.Node | None) -> bool:
    """Whether ``node`` in float keeps its channels in blocks, as onnxruntime's convolutions and poolings on x86 do.

    An activation behind one does too, and so does a sum.
    """
    while node is not None and operator(node).blocks is Blocks.KEEPS and node.inputs and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and operator(node).blocks is Blocks.STARTS


def breaks_blocks(node: ir.Node, shapes: Shapes, target: Target) -> bool:
    """Whether ``node`` in float needs its channels one after the other, not in blocks."""
    first = node.inputs[0] if node.inputs else None
    return first is not None and in_layout(first, shapes) and operator(node).breaks_blocks(node, shapes, target)
