"""Outputs as long as values say, not as shapes say: predicted durations, what NonMaxSuppression or NonZero picks.

A node decides lengths where an input that shapes its output (the limits of a Range, the condition of a Compress...) was
computed by layers that can be quantized: a little noise there, and the output has another length. What only shapes or
the user's own inputs decide has the same length in any quantized model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxq.kernels.lengths import Length, Sizing, sizing
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Role
from onnxq.query import attribute


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
        inputs, how = [v for v in node.inputs if v is not None], sizing(node.op_type)
        bodies = list(bodies_of(node))
        if bodies:
            self._bodies(node, bodies, how)
            inputs += [v for body in bodies for v in body.outputs]
        if how.counts:
            found = self._of(self.longs, inputs)
            if found:
                self._mark(node, frozenset(), found)
            return
        given = [node.inputs[i] for i in how.inputs if i < len(node.inputs)]
        given += [v for body in bodies for v in body.outputs[: -(how.returns or 0)]]  # whether there is another round
        values = [v for v in given if v is not None and v in self.rounded]
        longs = self._of(self.longs, inputs[:1] if how.first else inputs)
        if values and not _same_either_way(bodies):
            longs |= self._of(self.numbers, values) or {how.length}
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

    def _bodies(self, node: ir.Node, bodies: list[ir.Graph], how: Sizing) -> None:
        """Goes through the bodies of ``node``; twice where what they compute comes back."""
        for _ in range(1 if how.returns is None else 2):
            for body in bodies:
                states = len(body.inputs) - attribute(node, "num_scan_inputs", 0)
                for at, (inside, outside) in enumerate(zip(body.inputs, node.inputs, strict=False)):
                    back = -1 if how.returns is None or at >= states else at + how.returns
                    returned = [body.outputs[back]] if 0 <= back < len(body.outputs) else []
                    self._link(inside, [*([] if outside is None else [outside]), *returned])
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


def _same_either_way(bodies: list[ir.Graph]) -> bool:
    """Whether one of ``bodies`` runs, and their outputs are known to be of one shape."""
    if not bodies or bodies[0].inputs:
        return False
    shapes = [[v.shape for v in body.outputs] for body in bodies]
    return all(shape is not None for of in shapes for shape in of) and all(of == shapes[0] for of in shapes)


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
