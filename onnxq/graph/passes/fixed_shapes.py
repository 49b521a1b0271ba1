"""Reshape and Resize by constants where only the batch is open, instead of a shape that is computed at every run.

Exporters spell ``x.view(b, n, h, -1)`` as Shape, Gather, Unsqueeze and Concat: some ten small nodes for every Reshape
of a transformer, though all they ever compute is the batch. ONNX's ``0`` (copy that dimension) and ``-1`` (whatever is
left) say the same in a constant. What ``-1`` stands for is also worked out, since onnx's own inference gives up on it
wherever the batch is a symbol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import constant, integer, is_op, label, new_constant, owner, set_input
from onnxq.graph.passes.shapes import UNKNOWN
from onnxq.graph.passes.symbolic import Product, contents, dims_of, product, put, read_dim, reshaped


def fix_shapes(model: ir.Model) -> int:
    """Makes the shapes that Reshape and Resize are given constant where they can be told; returns how many changed.

    Needs inferred shapes, and improves those of what it changes.
    """
    count = 0
    found: dict[str, Product] = {}
    for graph in all_graphs(model):
        for node in graph:
            if is_op(node, "Reshape") and len(node.inputs) == 2 and not integer(node, "allowzero", 0):
                count += _fix_reshape(node, found)
            elif is_op(node, "Resize"):
                count += _fix_resize(node)
    if found:
        _tell(model, found)
    return count


def _tell(model: ir.Model, found: Mapping[str, Product]) -> None:
    """Replaces the names of unknown dimensions by what they were found to be, in all shapes inside the graphs."""
    for graph in all_graphs(model):
        for node in graph:
            for value in node.outputs:
                if value.shape is None:
                    continue
                dims = [read_dim(d) for d in value.shape]
                if any(d is not None and not found.keys().isdisjoint(d.symbols) for d in dims):
                    value.shape = ir.Shape([None if d is None else put(d, found).dim for d in dims])


def _fix_reshape(node: ir.Node, found: dict[str, Product]) -> bool:
    """Numbers, 0 for a dimension that is copied, -1 for one other; adds to ``found`` which unknowns that tells."""
    given, target = dims_of(node.inputs[0]), contents(node.inputs[1])
    wanted = None if given is None or target is None else reshaped(given, target)
    if given is None or wanted is None or any(d.number < 1 for d in wanted):
        return False
    before = None if node.outputs[0].shape is None else [read_dim(d) for d in node.outputs[0].shape]
    told = before != wanted
    _solve(given, wanted, found)
    if told:
        for old, new in zip(before or (), wanted, strict=False):
            if old is not None and old.number == 1 and len(old.symbols) == 1 and old.symbols[0].startswith(UNKNOWN):
                found.setdefault(old.symbols[0], new)
        node.outputs[0].shape = ir.Shape([d.dim for d in wanted])
    if constant(node.inputs[1]) is not None:
        return told
    shape = [d.number if not d.symbols else 0 if i < len(given) and given[i] == d else -1 for i, d in enumerate(wanted)]
    if shape.count(-1) > 1:
        return told
    fixed = new_constant(owner(node), np.asarray(shape, np.int64), name=f"{label(node)}_shape")
    set_input(node, 1, fixed)
    return True


def _solve(given: Sequence[Product], wanted: Sequence[Product], found: dict[str, Product]) -> None:
    """Where one made-up name occurs in ``given``, once, the equal number of elements says what it stands for."""
    names = [s for d in given for s in d.symbols if s.startswith(UNKNOWN)]
    if len(names) == 1 and all(names[0] not in d.symbols for d in wanted):
        rest = product(put(d, {names[0]: Product(1)}) for d in given)
        value = product(wanted).divided_by(rest)
        if value is not None:
            found.setdefault(names[0], value)


def _fix_resize(node: ir.Node) -> bool:
    """Enlarges by constant factors instead of to computed sizes: only the batch was computed, and it stays."""
    given = dims_of(node.inputs[0])
    sizes = contents(node.inputs[3]) if len(node.inputs) > 3 else None
    if given is None or sizes is None or len(given) != len(sizes) or constant(node.inputs[3]) is not None:
        return False
    factors = [b.divided_by(a) for a, b in zip(given, sizes, strict=True)]
    # Other factors than whole numbers would round to the size, perhaps to another one.
    if any(f is None or f.symbols or f.number < 1 for f in factors):
        return False
    scales = np.asarray([f.number for f in factors if f is not None], np.float32)
    set_input(node, 2, new_constant(owner(node), scales, name=f"{label(node)}_scales"))
    node.resize_inputs(3)
    node.outputs[0].shape = ir.Shape([d.dim for d in sizes])
    return True
