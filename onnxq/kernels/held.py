"""Where the constant lies that a weight is: what reads it may read its transpose, which the runtime makes at load.

A table that is also the weight of the last layer is held once so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnxq.query import attribute, constant

if TYPE_CHECKING:
    import onnx_ir as ir


def held(value: ir.Value | None) -> ir.Value | None:
    """The constant that holds the weight ``value``: itself, or the one that it is the transpose of; else None."""
    if constant(value) is not None:
        return value
    node = None if value is None else value.producer()
    if node is None or node.domain or node.op_type != "Transpose":
        return None
    tensor = constant(node.inputs[0])
    rank = 0 if tensor is None else len(tensor.shape)
    perm = list(attribute(node, "perm", range(rank)[::-1]))
    return node.inputs[0] if rank > 1 and perm == list(across(rank)) else None


def across(rank: int) -> tuple[int, ...]:
    """The axes of a tensor of ``rank`` with the last two swapped: what transposes a stack of matrices."""
    return (*range(rank - 2), rank - 1, rank - 2)


def turned(value: ir.Value | None) -> bool:
    """Whether the weight ``value`` is the transpose of the constant that holds it."""
    return held(value) not in (None, value)


def readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Which input of which node the constant ``value`` is, or its transpose."""
    for use in value.uses():
        outputs = use.node.outputs
        if outputs and turned(outputs[0]):
            yield from ((u.node, u.idx) for u in outputs[0].uses())
        else:
            yield use.node, use.idx
