"""Small questions about a graph and small edits of it, shared by the passes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether ``node`` is one of these operators of the default domain."""
    return node is not None and node.op_type in op_types and node.domain == ""  # mostly it is another operator


def is_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is an initializer that no caller can override."""
    return value is not None and value.const_value is not None and value.is_initializer() and not value.is_graph_input()


def constant(value: ir.Value | None) -> Array | None:
    """The array of a constant ``value``, or None when it is no constant (or holds strings)."""
    if value is None or not is_constant(value):
        return None
    tensor = value.const_value
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def float_constant(value: ir.Value | None) -> Array | None:
    """The array of a constant ``value`` of a float type, else None."""
    array = constant(value)
    return array if array is not None and array.dtype.kind == "f" else None


def new_constant(graph: ir.Graph, array: Array, *, name: str) -> ir.Value:
    """A new initializer of ``graph`` that holds ``array``, called ``name`` or the first free ``name_1``..."""
    free, count = name, 0
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=free)
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def owner(node: ir.Node) -> ir.Graph:
    """The graph that ``node`` stands in."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"node {node.name!r} stands in no graph")
    return graph


def label(node: ir.Node) -> str:
    """A name for messages: the node's own, or its first output's."""
    return node.name or (node.outputs[0].name if node.outputs else None) or node.op_type


def integer(node: ir.Node, name: str, default: int) -> int:
    """The integer attribute ``name`` of ``node``."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def number(node: ir.Node, name: str, default: float) -> float:
    """The float attribute ``name`` of ``node``."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def text(node: ir.Node, name: str, default: str) -> str:
    """The string attribute ``name`` of ``node``."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """The integer-list attribute ``name`` of ``node``; None where it is absent."""
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, once, in the same graph; None where there are more uses or it is an output."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    producer = value.producer()
    return node if producer is None or node.graph is producer.graph else None


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions of ``value`` where known."""
    return None if value is None or value.shape is None else len(value.shape)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of ``value`` where every dimension is a number."""
    if value is None or value.shape is None:
        return None
    dims = tuple(dim for dim in value.shape if isinstance(dim, int))
    return dims if len(dims) == len(value.shape) else None


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Sets input ``index`` of ``node``, adding empty ones before it where needed."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def redirect(old: ir.Value, new: ir.Value, *, but: Collection[ir.Node] = ()) -> None:
    """Makes all that reads ``old`` read ``new``: nodes, bodies, and the outside where ``old`` is a graph output.

    ``but``: nodes that go on reading ``old``, since ``new`` is made from it. Outputs of the graph keep their number,
    names, types and order: ``new`` takes the name then, and ``old`` has none. ``new`` gets what it lacks of type and
    shape.
    """
    new.type = new.type or old.type
    if new.shape is None:
        new.shape = old.shape
    if old.is_graph_output():
        redirect_output(old, new)
    kept = [use for use in old.uses() if use.node in but]
    old.replace_all_uses_with(new)
    for use in kept:
        use.node.replace_input_with(use.idx, old)


def redirect_output(old: ir.Value, new: ir.Value) -> None:
    """Makes ``new`` the output of the graph that ``old`` is, under its name; nodes go on reading ``old``.

    An Identity stands between where ``new`` cannot be that output itself: see ``can_be_output``.
    """
    graph = old.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"{old.name!r} is an output of no graph")
    if not can_be_output(new, graph):
        copied = ir.node("Identity", [new], name=f"{old.name}_copied")
        graph.append(copied)
        new = copied.outputs[0]
    new.type = old.type or new.type
    new.shape = old.shape if old.shape is not None else new.shape
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    name, old.name = old.name, None
    new.name = name


def can_be_output(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether ``value`` may become an output of ``graph`` by another name: it is computed there and is none already."""
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()


def supersede(old: ir.Value, new: ir.Value, *, but: Collection[ir.Node] = ()) -> None:
    """``redirect``, after which ``new`` has the name of ``old`` if nobody outside knows it by its own."""
    redirect(old, new, but=but)
    if old.name is not None and new.producer() is not None and not new.is_graph_output():
        name, old.name = old.name, None
        new.name = name


def can_bypass(node: ir.Node, *, keep: ir.Value) -> bool:
    """Whether ``node`` can go with ``keep`` in the place of its first output, and no Identity in its own."""
    output, graph = node.outputs[0], owner(node)
    if not output.is_graph_output():
        return True
    return can_be_output(keep, graph) and sum(1 for value in graph.outputs if value is output) == 1


def bypass(node: ir.Node, *, keep: ir.Value) -> bool:
    """Removes ``node``, whose first output equals ``keep``; False, and nothing changed, unless ``can_bypass``."""
    if not can_bypass(node, keep=keep):
        return False
    redirect(node.outputs[0], keep)
    owner(node).remove(node, safe=True)
    return True
