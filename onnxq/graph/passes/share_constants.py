"""Equal weights are stored once."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import is_constant, redirect

SMALLEST = 1024  # bytes; below that a copy costs less than the surprise of a shared scalar


def share_constants(model: ir.Model) -> int:
    """Merges large initializers of equal type, shape and bytes, across bodies too; returns how many went.

    Constant folding makes such copies where the two branches of an If prepare the same weights. What bodies share moves
    to the main graph, which all of them see. Outputs and inputs stay.
    """
    groups: dict[tuple[object, ...], list[ir.Value]] = {}
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALLEST:
                continue
            if is_constant(value) and not value.is_graph_output():
                groups.setdefault(_outline(tensor), []).append(value)
    count = 0
    for candidates in groups.values():
        if len(candidates) < 2:
            continue
        first: dict[bytes, ir.Value] = {}
        for value in candidates:
            assert value.const_value is not None
            digest = hashlib.sha256(value.const_value.tobytes()).digest()
            kept = first.setdefault(digest, value)
            if kept is not value:
                if kept.graph is not value.graph:
                    to_main_graph(kept, model.graph)
                redirect(value, kept)
                drop(value)
                count += 1
    return count


def _outline(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """What equal tensors have in common and is cheap to look at: reading all weights of a large model is not."""
    first = tensor.numpy().reshape(-1)[:64]
    return (tensor.dtype, tuple(tensor.shape.numpy()), first.tobytes())


def drop(value: ir.Value) -> None:
    """Takes the constant ``value`` out of its graph."""
    if value.graph is not None and value.name is not None:
        value.graph.initializers.pop(value.name)


def to_main_graph(value: ir.Value, main: ir.Graph) -> None:
    """Moves the constant ``value`` where all bodies see it."""
    if value.graph is not main:
        drop(value)
        main.register_initializer(value)
