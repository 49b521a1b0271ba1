"""How large what a model computes is, told before it is run.

A file of a few hundred bytes can ask for gigabytes: a constant of a given shape, an expansion, a chain of products.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.files.opening import size_text
from onnxq.graph.copying import all_graphs, copy_model
from onnxq.graph.edit import constant, is_op, label
from onnxq.graph.passes.functions import inline_functions
from onnxq.graph.passes.naming import unique_names
from onnxq.graph.passes.shapes import infer_shapes
from onnxq.kernels.values import SIZED_BY_VALUES

# Tensors up to this size are computed, whatever they come from.
LARGE_BYTES = 1 << 29
# A larger one has to come from something: it is at most so many times what its node reads, and what the model is given
# with its weights. Attention over 16,000 positions with 64 channels makes 128 times what it reads.
_OF_NODE, _OF_ALL = 256, 4096
# Runs of a body that end at some time.
_MANY_TURNS = 10**8


@dataclass(frozen=True)
class Unknown:
    """What cannot be told before a model is run: ``sizes`` of tensors that values decide, a loop without an ``end``.

    ``known``: the bytes of all tensors that it makes whose size can be told.
    """

    sizes: bool
    end: bool
    known: int

    def __bool__(self) -> bool:
        return self.sizes or self.end


def check_sizes(model: ir.Model, given: Mapping[str, tuple[int, ...]]) -> Unknown:
    """What cannot be told of ``model`` where its inputs have the shapes ``given``; it is not changed.

    Raises ``ModelError`` naming the first node that would make a tensor too large.
    """
    sized = copy_model(model)
    for value in sized.graph.inputs:
        if (shape := given.get(value.name or "")) is not None:
            value.shape = ir.Shape(shape)
    inline_functions(sized, [])
    unique_names(sized)
    for node in _nodes(sized):
        for value in node.outputs:
            value.shape = None
    infer_shapes(sized)
    weights = sum(
        v.const_value.nbytes
        for graph in all_graphs(sized)
        for v in graph.initializers.values()
        if v.const_value is not None and v.const_value.dtype != ir.DataType.STRING
    )
    everything = weights + sum(_bytes(value) or 0 for value in sized.graph.inputs)
    unknown, made = False, 0
    for node in _nodes(sized):
        # The state of a Loop may grow in each turn.
        unknown |= is_op(node, "Loop", *SIZED_BY_VALUES) and any(_bytes(v) is None for v in node.outputs)
        _check_node(node, everything)
        made += sum(_bytes(v) or 0 for v in node.outputs)
    return Unknown(unknown, any(_endless(node) for node in sized.graph), made)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    for graph in all_graphs(model):
        yield from graph


def _check_node(node: ir.Node, everything: int) -> None:
    for output in node.outputs:
        size = _bytes(output) or 0
        if size <= LARGE_BYTES:
            continue
        read = sum(_bytes(value) or 0 for value in node.inputs if value is not None)
        known = all(_bytes(value) is not None for value in node.inputs if value is not None)
        if (known and size > _OF_NODE * read) or size > _OF_ALL * everything or size > _memory():
            shape = ", ".join(map(str, output.shape or ()))
            raise ModelError(
                f"node {label(node)!r} would make a tensor of {size_text(size)}, [{shape}]",
                hint="check where the model comes from, or give smaller inputs",
            )


def _endless(node: ir.Node, outer: int = 1) -> bool:
    """Whether nothing says that ``node``, which runs ``outer`` times, or what is in it ends."""
    turns = outer
    if is_op(node, "Loop"):
        own = _turns(node)
        if own is None or own * outer > _MANY_TURNS:
            return True
        turns = max(1, own) * outer
    bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return any(_endless(inner, turns) for body in bodies for inner in body)


def _turns(node: ir.Node) -> int | None:
    """How often the body of the Loop ``node`` runs at most; None where that is no constant, or there is no bound."""
    most = constant(node.inputs[0]) if node.inputs else None
    return int(most.reshape(-1)[0]) if most is not None and most.size == 1 else None


def _bytes(value: ir.Value) -> int | None:
    """The size of ``value``; None where it is not known."""
    if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING:
        return value.const_value.nbytes
    if value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return None
    width = 4 if value.dtype is None or value.dtype == ir.DataType.STRING else max(1, int(value.dtype.itemsize))
    return width * prod(d for d in value.shape if isinstance(d, int))


def _memory() -> int:
    """Bytes of memory that this machine has; a lot where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 40
