"""Questions about a graph that every room asks: constants, attributes, ranks, all nodes with their subgraphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_ir as ir


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer, or None for a computed value, a graph input or a missing input."""
    if value is None or not value.is_initializer():
        return None
    return value.const_value


def array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """``constant(value)`` as a numpy array."""
    tensor = constant(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def is_float(value: ir.Value | None) -> bool:
    """Whether ``value`` is known to be float32, or of a type that shape inference could not tell."""
    if value is None:
        return False
    tensor = constant(value)
    dtype = tensor.dtype if tensor is not None else value.dtype
    return dtype is None or dtype.name == "FLOAT"


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute, or ``default``."""
    attr = node.attributes.get(name)
    if attr is None or attr.is_ref():
        return default
    return attr.value


def trailing_ones(value: ir.Value, count: int) -> bool:
    """Whether the last ``count`` dimensions are known to be 1 in a tensor that has more dimensions than those."""
    if value.shape is None or len(value.shape) <= count:
        return False
    return all(d == 1 for d in list(value.shape)[-count:])


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes of the main graph and of its If, Loop and Scan bodies, in graph order."""
    return _nodes(model.graph)


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    # Half the time of ``Graph.all_nodes``, and of all loops over graphs most is this.
    for node in graph:
        yield node
        if node.attributes:
            for attribute in node.attributes.values():
                if attribute.type.name == "GRAPH":
                    yield from _nodes(attribute.as_graph())
                elif attribute.type.name == "GRAPHS":
                    for body in attribute.as_graphs():
                        yield from _nodes(body)


def values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    """Every named value: inputs, initializers and node outputs, bodies included."""
    found: dict[str, ir.Value] = {}
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs)):
            if value.name:
                found.setdefault(value.name, value)
    return found


def escapes(value: ir.Value) -> bool:
    """Whether ``value`` is an output of its graph, or read by a node in a body of another graph."""
    own = value.graph
    return value.is_graph_output() or any(use.node.graph is not own for use in value.uses())
