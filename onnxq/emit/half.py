"""Float constants of a model that came in half precision: stored as they came, and float32 once the runtime loads them.

The runtime folds the Cast. Rows that are gathered are cast one by one, so that the table is in memory in half too.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.emit.pieces import Pieces
from onnxq.graph.nodes import After, Before
from onnxq.graph.widened import LARGE, OWN_FLOAT32, STORED_IN, narrowed
from onnxq.kernels.operators import operator


def store_half(pieces: Pieces) -> None:
    """Puts a Cast behind every large float constant that its file stores in half precision, or was made from one."""
    kind = pieces.model.meta.get(STORED_IN)
    for graph in tuple(pieces.model.graphs()):
        for value in tuple(graph.initializers.values()):
            if _float(value) and not any(operator(use.node).kind in _OF_CODES for use in value.uses()):
                _store_half(pieces, graph, value, kind)


# What recognizes its scales and shifts only where they are constants before anything is folded.
_OF_CODES = ("quantize", "dequantize", "integer compute")


def _float(value: ir.Value) -> bool:
    """Whether ``value`` is a large constant of float32 that is no output itself."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < LARGE:
        return False
    return bool(value.uses()) and not value.is_graph_output() and not value.is_graph_input()


def _store_half(pieces: Pieces, graph: ir.Graph, value: ir.Value, kind: ir.DataType | None) -> None:
    assert value.const_value is not None
    tensor = narrowed(value.const_value, None if value.meta.get(OWN_FLOAT32) else kind)
    if tensor is None:
        return
    name = value.name or ""
    half = ir.Value(name=pieces.fresh(f"{name}_half"), shape=value.shape, type=ir.TensorType(tensor.dtype))
    half.const_value = tensor
    graph.register_initializer(half)
    for use in tuple(value.uses()):
        if operator(use.node).gathered and use.idx == 0:
            use.node.replace_input_with(0, half)
            rows = use.node.outputs[0]
            cast = pieces.node("Cast", [rows], f"{rows.name}_float", place=After(use.node), to=ir.DataType.FLOAT)
            maker = cast.producer()
            assert maker is not None
            pieces.take_over(rows, cast)
            maker.replace_input_with(0, rows)
            rows.type = half.type
    if value.uses():
        place = Before(next(iter(graph)))
        value.replace_all_uses_with(pieces.node("Cast", [half], name, place=place, to=ir.DataType.FLOAT))
    del graph.initializers[name]
