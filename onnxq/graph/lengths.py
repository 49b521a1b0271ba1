"""Outputs as long as values say, not as shapes say: predicted durations, what NonMaxSuppression or NonZero picks.

A node decides lengths where an input that shapes its output (the limits of a Range, the condition of a Compress...) was
computed by layers that can be quantized: a little noise there, and the output has another length. What only shapes or
the user's own inputs decide has the same length in any quantized model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxq.graph.length import Length
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Role
from onnxq.query import attribute

# By operator, the inputs that decide the shape of its output by their values, and how.
_DECIDING: dict[str, tuple[tuple[int, ...], Length]] = {
    "NonMaxSuppression": ((0, 1, 2, 3, 4), Length.DETECTED),
    "NonZero": ((0,), Length.PICKED),
    "Compress": ((1,), Length.PICKED),
    "Unique": ((0,), Length.PICKED),
    "TopK": ((1,), Length.PICKED),
    "Range": ((0, 1, 2), Length.STRETCHED),
    "ConstantOfShape": ((0,), Length.STRETCHED),
    "Expand": ((1,), Length.STRETCHED),
    "Tile": ((1,), Length.STRETCHED),
    "Reshape": ((1,), Length.STRETCHED),
    "Slice": ((1, 2, 3, 4), Length.STRETCHED),
    "Resize": ((1, 2, 3), Length.STRETCHED),
    "Upsample": ((1,), Length.STRETCHED),
    "Pad": ((1, 3), Length.STRETCHED),
    "OneHot": ((1,), Length.STRETCHED),
    "CenterCropPad": ((1,), Length.STRETCHED),
    "Split": ((1,), Length.STRETCHED),
    "SequenceAt": ((1,), Length.STRETCHED),
    "Loop": ((0, 1), Length.STRETCHED),
    "If": ((0,), Length.STRETCHED),
}
_SHAPES = ("Shape", "Size")
# Their output is as long as their first input, whatever the others are.
_AS_FIRST = ("ScatterND", "ScatterElements", "Scatter")


@dataclass(frozen=True)
class ValueLengths:
    """How lengths follow from values in a model.

    ``outputs``: by name of each output that may be of another length, how it comes by it. ``deciding``: the names of
    the nodes whose values decide lengths, those nearest to the decision first; ``only``: those of them that nothing
    else depends on.
    """

    outputs: dict[str, Length] = field(default_factory=dict)
    deciding: tuple[str, ...] = ()
    only: frozenset[str] = frozenset()


def value_lengths(model: ir.Model) -> ValueLengths:
    """The ``ValueLengths`` of ``model``."""
    trace = _Trace()
    trace.follow(model.graph)
    if not trace.decisions:
        return ValueLengths()
    known = {str(d) for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int) and d.value}
    outputs: dict[str, Length] = {}
    for value in model.graph.outputs:
        how = trace.longs.get(value, frozenset())
        if how and (Length.DETECTED in how or not _said(value, known)):
            outputs[value.name or ""] = next(length for length in Length if length in how)
    if not outputs:
        return ValueLengths()
    deciding = _upstream([v for node, values in trace.decisions for v in values], trace, through_decisions=True)
    others = set(_upstream(model.graph.outputs, trace, through_decisions=False))
    return ValueLengths(outputs, tuple(deciding), frozenset(deciding) - others)


def _said(value: ir.Value, known: set[str]) -> bool:
    """Whether all dimensions of an output are numbers, or those of inputs."""
    return value.shape is not None and all(isinstance(d, int) or str(d) in known for d in value.shape)


class _Trace:
    """What is known of each value on the way through a graph.

    ``rounded``: what noise reaches. ``longs``: how its length follows from values. ``numbers``: of numbers that are
    lengths, how those lengths do. ``sources``: of what enters and leaves a body, the values outside and inside.
    """

    def __init__(self) -> None:
        self.rounded = set[ir.Value]()
        self.longs: dict[ir.Value, frozenset[Length]] = {}
        self.numbers: dict[ir.Value, frozenset[Length]] = {}
        self.sources: dict[ir.Value, list[ir.Value]] = {}
        self.decisions: list[tuple[ir.Node, list[ir.Value]]] = []
        self._noted = set[ir.Node]()

    def follow(self, graph: ir.Graph) -> None:
        """Goes through ``graph``."""
        for node in graph:
            self._node(node)

    def _node(self, node: ir.Node) -> None:
        inputs = [v for v in node.inputs if v is not None]
        bodies = list(bodies_of(node))
        if bodies:
            self._bodies(node, bodies)
            inputs += [v for body in bodies for v in body.outputs]
        if node.op_type in _SHAPES:
            found = self._of(self.longs, inputs)
            if found:
                self._mark(node, frozenset(), found)
            return
        indices, own = _DECIDING.get(node.op_type, ((), Length.STRETCHED))
        values = [
            v for i in indices if i < len(node.inputs) and (v := node.inputs[i]) is not None and v in self.rounded
        ]
        longs = self._of(self.longs, inputs[:1] if node.op_type in _AS_FIRST else inputs)
        if values and (node.op_type != "If" or _uneven(bodies)):
            longs |= self._of(self.numbers, values) or {own}
            if node not in self._noted:
                self._noted.add(node)
                self.decisions.append((node, values))
        rounds = operator(node).role is Role.ANCHOR
        if rounds or any(v in self.rounded for v in inputs):
            self._mark(node, longs, self._of(self.numbers, inputs))

    def _mark(self, node: ir.Node, longs: frozenset[Length], numbers: frozenset[Length]) -> None:
        for value in node.outputs:
            self.rounded.add(value)
            self.longs[value] = self.longs.get(value, frozenset()) | longs
            self.numbers[value] = self.numbers.get(value, frozenset()) | numbers

    @staticmethod
    def _of(known: dict[ir.Value, frozenset[Length]], values: Iterable[ir.Value]) -> frozenset[Length]:
        return frozenset(how for value in values for how in known.get(value, ()))

    def _bodies(self, node: ir.Node, bodies: list[ir.Graph]) -> None:
        """Goes through the bodies of ``node``; twice where what they compute comes back."""
        outer = list(node.inputs)
        for _ in range(2):
            for body in bodies:
                given = outer if node.op_type == "Loop" else outer[len(outer) - len(body.inputs) :]
                for inside, outside in zip(body.inputs, given, strict=False):
                    back = _returned(node, body, inside)
                    self._link(inside, [v for v in (outside, back) if v is not None])
                self.follow(body)
        for value in node.outputs:
            self.sources[value] = [v for body in bodies for v in body.outputs]

    def _link(self, inside: ir.Value, outside: list[ir.Value]) -> None:
        self.sources[inside] = outside
        if any(v in self.rounded for v in outside):
            self.rounded.add(inside)
        self.longs[inside] = self._of(self.longs, outside)
        self.numbers[inside] = self._of(self.numbers, outside)


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that ``node`` holds."""
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            yield attr.as_graph()


def _returned(node: ir.Node, body: ir.Graph, inside: ir.Value) -> ir.Value | None:
    """The value of a body that comes back to it as ``inside`` in the next round."""
    at = list(body.inputs).index(inside)
    if node.op_type == "Loop":
        at -= 1  # the body takes number and condition, and gives the condition
    elif node.op_type != "Scan" or at >= len(body.inputs) - attribute(node, "num_scan_inputs", 0):
        return None
    return body.outputs[at] if 0 <= at < len(body.outputs) else None


def _uneven(bodies: list[ir.Graph]) -> bool:
    """Whether the outputs of bodies are not known to be of one shape."""
    shapes = [[v.shape for v in body.outputs] for body in bodies]
    return any(shape is None for of in shapes for shape in of) or any(of != shapes[0] for of in shapes)


def _upstream(values: Iterable[ir.Value], trace: _Trace, *, through_decisions: bool) -> list[str]:
    """The names of the nodes that compute ``values`` from what noise reaches, the nearest first.

    Without ``through_decisions`` what only decides lengths is not followed.
    """
    deciding = {} if through_decisions else {node: set(found) for node, found in trace.decisions}
    seen, names = set[ir.Value](), dict[str, None]()
    pending = list(values)
    while pending:
        later: list[ir.Value] = []
        for value in pending:
            if value in seen or value not in trace.rounded:
                continue
            seen.add(value)
            later += trace.sources.get(value, [])
            node = value.producer()
            if node is not None:
                names[node.name or ""] = None
                later += [v for v in node.inputs if v is not None and v not in deciding.get(node, ())]
        pending = later
    return list(names)
