"""Means over a whole map as GlobalAveragePool: its integer kernel is fast, AveragePool's slow, ReduceMean has none."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import constant, integer, integers, is_op, label, owner, supersede, text
from onnxq.graph.nodes import Before, NodeBuilder

_SPATIAL = (2, 3)


def use_global_pool(model: ir.Model) -> int:
    """Replaces AveragePool over the whole map and ReduceMean over height and width; returns how many. Needs shapes."""
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if _covers_all(node) or _reduces_all(node):
                _replace(node)
                count += 1
    return count


def _covers_all(node: ir.Node) -> bool:
    """Whether ``node`` is an AveragePool whose one window is the map."""
    if not is_op(node, "AveragePool") or text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    plain = not any(integers(node, "pads") or ()) and set(integers(node, "dilations") or (1,)) == {1}
    source, kernel = node.inputs[0], integers(node, "kernel_shape")
    if source is None or source.shape is None or kernel is None or not plain:
        return False
    sizes, out = list(source.shape)[2:], node.outputs[0].shape
    if tuple(sizes) == kernel:
        return True
    # A window larger than the map, which rounding up makes room for: onnxruntime 1.19 divides by the window's area.
    # Whether pads count does not matter where there are none.
    larger = all(isinstance(size, int) and size <= k for size, k in zip(sizes, kernel, strict=False))
    one = out is not None and all(d == 1 for d in list(out)[2:])
    return bool(integer(node, "ceil_mode", 0)) and larger and one


def _reduces_all(node: ir.Node) -> bool:
    """Whether ``node`` is a ReduceMean over the last two of four axes that keeps them."""
    source = node.inputs[0] if is_op(node, "ReduceMean") else None
    if source is None or source.shape is None or len(source.shape) != 4 or not integer(node, "keepdims", 1):
        return False
    if source.dtype != ir.DataType.FLOAT:
        return False
    axes = integers(node, "axes")
    if axes is None and len(node.inputs) > 1:
        given = constant(node.inputs[1])
        axes = None if given is None else tuple(given.tolist())
    return axes is not None and tuple(sorted(axis % 4 for axis in axes)) == _SPATIAL


def _replace(node: ir.Node) -> None:
    old = node.outputs[0]
    pool = NodeBuilder(Before(node)).node("GlobalAveragePool", [node.inputs[0]], name=f"{label(node)}_global", like=old)
    supersede(old, pool.outputs[0])
    owner(node).remove(node, safe=True)
    pool.name = node.name
