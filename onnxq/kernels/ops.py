"""Questions about a node, answered by the record of its operator (``operators``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxq.kernels import linear
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Layout, WeightSlot
from onnxq.kernels.targets import Target
from onnxq.query import trailing_ones

if TYPE_CHECKING:
    import onnx_ir as ir

# A weight below this many elements saves nothing worth the extra nodes.
STORED_MINIMUM = 1024


def weight_slot(node: ir.Node) -> WeightSlot | None:
    """Where the weight of ``node`` lies, or None for an operator that has no integer kernel with weights."""
    slot = operator(node).slot
    return None if slot is None else slot(node)


def anchor_obstacle(node: ir.Node) -> str | None:
    """Why ``node``, which has a ``weight_slot``, cannot run in an integer kernel; None where it can."""
    return operator(node).obstacle(node)


def padded_input_channels(node: ir.Node, target: Target) -> int:
    """How many input channels of zeros let ``node`` run in a direct integer kernel; 0: none, or none needed."""
    return linear.padded_input_channels(node, target) if operator(node).direct else 0


def can_be_dynamic(node: ir.Node, target: Target) -> bool:
    """Whether an integer kernel of ``node`` measures the range of its input at every run, and is faster than float."""
    return operator(node).dynamic(node, target)


def moves_data(node: ir.Node) -> bool:
    """Whether ``node`` copies values without changing them, so that output and input share parameters."""
    return operator(node).moves_data


def can_follow(node: ir.Node) -> bool:
    """Whether ``node``, which has no weights, has an integer kernel, be it worth using or not."""
    record = operator(node)
    return record.follows and bool(node.outputs) and record.fits(node)


def wants_channels_last(node: ir.Node) -> bool:
    """Whether the integer kernel of ``node`` is slower than float outside the layout of integer convolutions."""
    return operator(node).layout is Layout.NEEDS


def keeps_channels_last(node: ir.Node) -> bool:
    """Whether ``node`` takes the layout of integer convolutions on from what it reads to what it writes."""
    return operator(node).keeps_channels_last


def data_inputs(node: ir.Node) -> list[int]:
    """Indices of the inputs of a ``can_follow`` node that carry activations (not shapes, axes or indices)."""
    data = operator(node).data
    return [i for i, v in enumerate(node.inputs) if v is not None] if data is None else list(data)


def constants_allowed(node: ir.Node) -> bool:
    """Whether a constant operand may be quantized like an activation."""
    return operator(node).constants


def cheap_operand(node: ir.Node, value: ir.Value) -> bool:
    """Whether quantizing ``value`` for ``node`` costs next to nothing: a per-channel factor next to a map.

    That is the gate of squeeze-and-excite, ``[N, C, 1, 1]`` times ``[N, C, H, W]``.
    """
    return operator(node).broadcasts and trailing_ones(value, 2)


def quantizes_its_inputs(node: ir.Node) -> bool:
    """Whether ``node`` may quantize floats that it reads: a Concat has as many elements before as behind it.

    What is joined as 8-bit codes is a quarter of the bytes to move.
    """
    return operator(node).joins


def absorbed_ceiling(node: ir.Node) -> float | None:
    """The upper end of an activation function that a quantizer with zero point ``qmin`` replaces exactly.

    ``inf`` for Relu, ``max`` for Clip(0, max); None for everything else.
    """
    record = operator(node)
    return record.ceiling(node) if record.absorbed else None


def highest(node: ir.Node) -> float | None:
    """The end that codes of the output of ``node`` must not pass: then a quantizer is all that is left of clipping."""
    return operator(node).ceiling(node)


def stored_slots(node: ir.Node) -> Mapping[int, tuple[int, ...]]:
    """The inputs of ``node``, not a linear layer, that may be stored as integers, and the axes with one scale each."""
    return operator(node).stored(node)
