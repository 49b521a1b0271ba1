"""What a model computes in, and which of its nodes need another type of floats than float32."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import float_constant, integer, is_op
from onnxq.graph.widened import FLOATS, OTHER
from onnxq.kernels.operators import operator

# Their bodies hand over what they compute, so that both change together.
_CONTROL_FLOW = ("If", "Loop", "Scan")
# What reads or writes sequences and optionals, which nothing casts.
_NO_TENSORS = (
    *("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength"),
    *("SequenceMap", "SplitToSequence", "ConcatFromSequence"),
    *("Optional", "OptionalGetElement", "OptionalHasElement"),
)
# A mean of so many standard deviations: float32 has 24 bits, and 14 of them are left behind it (86 dB).
_FAR = 1024.0
# The most elements of a constant that is no weight: sizes, scales, steps.
_FEW = 64


def islands(model: ir.Model, *, known: Collection[str]) -> set[ir.Node]:
    """The nodes that keep their float types in a model which changes to float32; all in their bodies among them.

    | node                                        | since                                                          |
    |---------------------------------------------|----------------------------------------------------------------|
    | of a domain that is not in ``known``        | who knows what it takes; trees compare with their very numbers |
    | that reads or writes a sequence or optional | a Cast does not take one                                       |
    | BitCast, Cast to text                       | bits and digits change                                         |
    | of numbers made of integers, for integers   | a size rounded otherwise is another size                       |
    | that takes a large mean off a double input  | float32 has lost by then what makes the inputs differ          |
    """
    kept = {
        node
        for graph in all_graphs(model)
        for node in graph
        if not is_op(node, *_CONTROL_FLOW) and (node.domain not in known or _needs_its_type(node))
    }
    kept |= {near for graph in all_graphs(model) for node in graph for near in _standardized(node)}
    kept |= {inner for node in kept for body in bodies(node) for inner in body.all_nodes()}
    for group in _connected(model):
        if not kept.intersection(group) and _only_counts(group):
            kept.update(group)
    return kept


def computed_in_float32(model: ir.Model) -> bool:
    """Whether at least half of the multiply-accumulates of ``model`` are of float32; of nodes, if nothing multiplies.

    As far as shapes are known, which have to be inferred: a dimension that is not counts once.
    """
    work: Counter[ir.DataType] = Counter()
    count: Counter[ir.DataType] = Counter()
    for graph in all_graphs(model):
        for node in graph:
            kind = _computed_in(node)
            if kind is not None:
                work[kind] += _work(node)
                count[kind] += 1
    decides = work if work.total() else count
    return 2 * decides[ir.DataType.FLOAT] >= decides.total()


def _computed_in(node: ir.Node) -> ir.DataType | None:
    """The float type that ``node`` computes in: that of its result; None for a Cast, and for what is not of floats."""
    if node.op_type in ("Cast", "CastLike", "Constant"):
        return None
    kinds = [v.dtype for v in (*node.outputs, *node.inputs) if v is not None and v.dtype in FLOATS]
    return kinds[0] if kinds else None


def _work(node: ir.Node) -> int:
    """The multiply-accumulates of a layer for one sample: elements of the weight, times positions of the result."""
    record = operator(node)
    if not record.computes:
        return 0
    sizes = [math.prod(v.const_value.shape.numpy()) for v in node.inputs if v is not None and v.const_value is not None]
    shape = node.outputs[0].shape
    inner = [] if shape is None else list(shape)[2:] if record.name.startswith("Conv") else list(shape)[1:-1]
    return max(sizes, default=0) * math.prod(dim for dim in inner if isinstance(dim, int))


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of ``node``, at any depth."""
    for attribute in node.attributes.values():
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        for body in (attribute.value,) if attribute.type == ir.AttributeType.GRAPH else attribute.value:
            yield body
            for inner in body:
                yield from bodies(inner)


def _needs_its_type(node: ir.Node) -> bool:
    if is_op(node, "Cast"):
        return integer(node, "to", 0) == ir.DataType.STRING.value
    return is_op(node, "BitCast", *_NO_TENSORS)


def _standardized(node: ir.Node) -> list[ir.Node]:
    """``node`` and what divides behind it, where they standardize a double input far from 0: ``(x - mean) / scale``."""
    if not is_op(node, "Sub", "Add") or node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.DOUBLE:
        return []
    x, mean = node.inputs[0], float_constant(node.inputs[1])
    maker = x.producer()
    if mean is None or not (x.is_graph_input() or is_op(maker, "Cast")):
        return []
    behind = [use.node for use in node.outputs[0].uses() if is_op(use.node, "Div", "Mul") and use.idx == 0]
    scales = [(reader, float_constant(reader.inputs[1])) for reader in behind]
    farthest = np.abs(mean).max(initial=0.0)
    for reader, scale in scales:
        if scale is not None and scale.size and scale.all():
            with np.errstate(over="ignore"):
                ratio = np.abs(mean / scale) if is_op(reader, "Div") else np.abs(mean * scale)
            farthest = max(farthest, ratio.max(initial=0.0))
    return [node, *(reader for reader, scale in scales if scale is not None)] if farthest >= _FAR else []


def _others(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    return [v for v in values if v is not None and isinstance(v.type, ir.TensorType) and v.dtype in OTHER]


def _connected(model: ir.Model) -> list[list[ir.Node]]:
    """The nodes that other types of floats pass between, in groups of which none hands such a number to another."""
    nodes = [n for graph in all_graphs(model) for n in graph if _others((*n.inputs, *n.outputs))]
    group = {node: [node] for node in nodes}
    for node in nodes:
        for value in _others(node.outputs):
            for use in value.uses():
                joined, other = group[node], group.get(use.node, group[node])
                if joined is not other:
                    few, many = sorted((joined, other), key=len)
                    many += few
                    group.update(dict.fromkeys(few, many))
    return list({id(members): members for members in group.values()}.values())


def _only_counts(group: list[ir.Node]) -> bool:
    """Whether ``group`` begins with integers and a few constants, and gives nothing but integers and truth values."""
    inside = {id(value) for node in group for value in node.outputs}
    for node in group:
        if operator(node).computes or is_op(node, *_CONTROL_FLOW):
            return False
        for value in _others(node.inputs):
            tensor = value.const_value
            if id(value) not in inside and (tensor is None or tensor.size > _FEW):
                return False
        if any(v.dtype in FLOATS and (v.is_graph_output() or v.dtype not in OTHER) for v in node.outputs):
            return False
    return True
