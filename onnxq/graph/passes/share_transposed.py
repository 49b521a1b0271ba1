"""A matrix and its transpose are stored once: the embedding of a language model that is its head too."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import Array, integer, is_constant, is_op
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.graph.passes.share_constants import SMALLEST, drop, to_main_graph
from onnxq.kernels.held import across

_COMPARED = 64  # entries of the first row and column: what differs there is read no further


def share_transposed(model: ir.Model) -> int:
    """Makes products read the transpose of a constant that others read as it is; returns how many constants went.

    The exporter has made a copy for them. The runtime transposes again when it loads the model.
    A Gemm is told to; in front of a MatMul stands a Transpose, through which its weight is seen (``kernels.held``).
    """
    by_shape: dict[tuple[int, ...], list[ir.Value]] = {}
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < SMALLEST:
                continue
            if len(tensor.shape) >= 2 and is_constant(value) and not value.is_graph_output():
                by_shape.setdefault(tuple(tensor.shape.numpy()), []).append(value)
    count = 0
    for shape, values in by_shape.items():
        others = by_shape.get((*shape[:-2], shape[-1], shape[-2]), [])
        for copy, bases in _transposed([v for v in values if only_products(v)], others):
            base = next((v for v in bases if v is not copy and v.uses()), None)
            if base is not None:
                _read_through(copy, base, model)
                count += 1
    return count


def only_products(value: ir.Value) -> bool:
    """Whether nothing but products read ``value``, on their right."""
    uses = tuple(value.uses())
    return bool(uses) and all(use.idx == 1 and is_op(use.node, "MatMul", "Gemm") for use in uses)


def _transposed(copies: Sequence[ir.Value], others: Sequence[ir.Value]) -> Iterator[tuple[ir.Value, list[ir.Value]]]:
    """Each of ``copies`` with those of ``others`` that it is the transpose of, matrix by matrix.

    A few entries tell most apart; only what is alike in these is read as a whole, and everything but once.
    """
    if not copies or not others:
        return
    edges: dict[bytes, list[ir.Value]] = defaultdict(list)
    for value in others:
        edges[_edges(_array(value))].append(value)
    whole: dict[bytes, dict[bytes, list[ir.Value]]] = {}
    for copy in copies:
        turned = np.swapaxes(_array(copy), -1, -2)
        edge = _edges(turned)
        if edge not in edges:
            continue
        if edge not in whole:
            whole[edge] = defaultdict(list)
            for value in edges[edge]:
                whole[edge][_digest(_array(value))].append(value)
        yield copy, whole[edge].get(_digest(turned), [])


def _edges(array: Array) -> bytes:
    """The first entries of the first row and column of each matrix."""
    return array[..., 0, :_COMPARED].tobytes() + array[..., :_COMPARED, 0].tobytes()


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _digest(tensor: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).digest()


def _read_through(copy: ir.Value, base: ir.Value, model: ir.Model) -> None:
    """Makes the products that read ``copy`` read ``base``, of which it is the transpose."""
    if base.graph is not copy.graph:
        to_main_graph(base, model.graph)
    graph = base.graph
    assert isinstance(graph, ir.Graph)
    through = None
    for use in tuple(copy.uses()):
        node = use.node
        if is_op(node, "Gemm"):
            node.attributes["transB"] = ir.AttrInt64("transB", 1 - integer(node, "transB", 0))
            node.replace_input_with(1, base)
            continue
        if through is None:
            build = NodeBuilder(Before(next(iter(graph))))
            assert base.const_value is not None
            name, perm = f"{copy.name}_transposed", list(across(len(base.const_value.shape)))
            through = build("Transpose", [base], name=name, output=name, perm=perm)
            through.shape, through.type = copy.shape, copy.type
        node.replace_input_with(1, through)
    drop(copy)
