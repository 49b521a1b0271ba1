"""Which operators without weights run on integers between those that have some."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.kernels import ops
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Layout
from onnxq.plan.units import maker_of, read, written
from onnxq.query import array, constant, is_float

# Additive masks hold numbers like -1e4 or -3.4e38: a range that includes them has no codes left for anything else.
MASK_MAGNITUDE = 1e4


def followers(candidates: Mapping[str, ir.Node], anchors: Mapping[str, ir.Node]) -> dict[str, ir.Node]:
    """The greatest set of candidates that all read integers and are read by at least one node that wants them."""
    chosen = dict(candidates)
    convolutions = {n.name for n in anchors.values() if operator(n).between_codes}
    wanted = {id(n.inputs[0]) for n in anchors.values() if operator(n).between_codes}
    while True:
        makers = {**{k: v for k, v in anchors.items() if v.name in convolutions}, **chosen}
        codes = {id(v) for n in makers.values() for v in written(n)}
        readers = {id(n) for n in (*anchors.values(), *chosen.values())}

        def stays(
            node: ir.Node,
            codes: set[int] = codes,
            readers: set[int] = readers,  # bound: the loop rebuilds them
        ) -> bool:
            useful = _reads_integers(node, codes | wanted) and any(
                id(use.node) in readers and _data_use(use.node, use.idx) for out in written(node) for use in out.uses()
            )
            return useful and (not ops.wants_channels_last(node) or _channels_last(node, readers))

        kept = {k: v for k, v in chosen.items() if stays(v)}
        if len(kept) == len(chosen):
            return kept
        chosen = kept


def _channels_last(node: ir.Node, chosen: Collection[int]) -> bool:
    """Whether ``node`` runs in the layout of integer convolutions: behind one, or between two.

    onnxruntime moves the layout on from a convolution only where another one, or what takes it on, reads it again.
    ``chosen``: the ``id`` of all nodes on integers.
    """
    x = node.inputs[0]
    if x is None or not _from_convolution(x, chosen):
        return False
    maker = maker_of(x)
    if maker is not None and operator(maker).layout is Layout.STARTS:
        return True
    pending, seen = [node], {id(node)}
    while pending:
        for use in (u for out in written(pending.pop()) for u in out.uses()):
            if operator(use.node).layout is Layout.STARTS and id(use.node) in chosen and use.idx == 0:
                return True
            if id(use.node) in chosen and id(use.node) not in seen and ops.keeps_channels_last(use.node):
                seen.add(id(use.node))
                pending.append(use.node)
    return False


def _from_convolution(value: ir.Value, chosen: Collection[int]) -> bool:
    """Whether the layout of an integer convolution comes with ``value``."""
    pending, seen = [value], {id(value)}
    while pending:
        maker = maker_of(pending.pop())
        if maker is None or id(maker) not in chosen:
            continue
        if operator(maker).layout is Layout.STARTS:
            return True
        if ops.keeps_channels_last(maker):
            new = [v for v in read(maker) if id(v) not in seen]
            seen.update(id(v) for v in new)
            pending += new
    return False


def _data_use(node: ir.Node, index: int) -> bool:
    return index == 0 if ops.weight_slot(node) is not None else index in ops.data_inputs(node)


def _reads_integers(node: ir.Node, integers: set[int]) -> bool:
    computed = 0
    for index in ops.data_inputs(node):
        value = node.inputs[index]
        assert value is not None
        if constant(value) is not None:
            if not (ops.constants_allowed(node) and _tame(value)):
                return False
        elif id(value) in integers:
            computed += 1
        elif not (is_float(value) and (ops.cheap_operand(node, value) or ops.quantizes_its_inputs(node))):
            return False
    return computed > 0 or ops.quantizes_its_inputs(node)


def _tame(value: ir.Value) -> bool:
    data = array(value)
    return data is not None and data.size > 0 and is_float(value) and bool(np.abs(data).max() < MASK_MAGNITUDE)
