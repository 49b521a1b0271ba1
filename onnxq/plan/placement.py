"""Where integers pay: the placement of least cost, found exactly as a minimum cut.

Every node that could run on integers either does or stays float, at a cost from the table. A tensor that a float node
writes and an integer node reads must be quantized, once however many read it; one that an integer node writes and a
float node reads must be dequantized, once. The total is a sum of terms of at most two of these decisions each, every
one of which is cheaper where both decide alike. Such a sum is least at a minimum cut of a graph with a vertex for each
decision (Kolmogorov and Zabih, What energy functions can be minimized via graph cuts, PAMI 2004, section 4): the side
of the source is integer, the side of the sink float.

    source -> node       cost in float                 node -> sink          cost on integers
    reader -> Q -> writer    quantizing, paid if a reader is integer and the writer is not
    writer -> D -> reader    dequantizing, paid if the writer is integer and a reader is not

Nodes about which nothing is known cost nothing either way, except that a layer with weights then prefers integers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.kernels import ops
from onnxq.kernels.costs import A_PASS, COPY, DEQUANTIZE, ENTER_BLOCKS, LEAVE_BLOCKS, QUANTIZE, CostTable
from onnxq.kernels.operators import operator
from onnxq.kernels.targets import Target
from onnxq.kernels.work import (
    Shapes,
    Work,
    blocked,
    breaks_blocks,
    elements,
    fused_in_float,
    in_layout,
    work_of,
)
from onnxq.plan.reasons import ReasonCode
from onnxq.plan.types import KeptFloat, Plan, Storage
from onnxq.plan.units import absorbed, ends_in_activation, read, written
from onnxq.query import nodes

# What a layer of unknown size is taken to gain, in microseconds.
_UNKNOWN_GAIN = 1.0


@dataclass(frozen=True)
class Costs:
    """What is known of a model: ``float_us`` and ``integer_us`` by node that could run on integers.

    ``pace``: how much slower than the machine of the cost table this one is; conversions are taken from the table.
    """

    float_us: Mapping[str, float]
    integer_us: Mapping[str, float]
    pace: float = 1.0


def table_costs(model: ir.Model, plan: Plan, shapes: Shapes, table: CostTable, target: Target) -> Costs:
    """The ``Costs`` of the nodes that ``plan`` runs on integers, from ``table``."""
    float_us, integer_us = {}, {}
    integer, anchors = set(plan.integer), set(plan.anchors)
    for node in nodes(model):
        name = node.name or ""
        if name not in integer:
            continue
        work = work_of(node, shapes, target)
        if work is None or not work.known(table):
            float_us[name], integer_us[name] = (_UNKNOWN_GAIN if name in anchors else 0.0), 0.0
            continue
        fused = ops.weight_slot(node) is None and fused_in_float(node)
        float_us[name] = 0.0 if fused else work.cost(table, "float") + _beside(node, shapes, table, target)
        integer_us[name] = work.on_integers(table)
    return Costs(float_us, integer_us)


def _beside(node: ir.Node, shapes: Shapes, table: CostTable, target: Target) -> float:
    """What ``node`` takes in float besides its own kernel."""
    return _clipping(node, shapes, table) + _reordering(node, shapes, table, target)


def _reordering(node: ir.Node, shapes: Shapes, table: CostTable, target: Target) -> float:
    """Changes of layout around ``node``, where float convolutions beside it keep channels in blocks and it cannot."""
    if not breaks_blocks(node, shapes, target):
        return 0.0
    before = [elements(v, shapes) for v in read(node) if blocked(v.producer())]
    after = [elements(v, shapes) for v in node.outputs if any(blocked(use.node) for use in v.uses())]
    reorders = [(LEAVE_BLOCKS, n) for n in before] + [(ENTER_BLOCKS, n) for n in after]
    return sum(table.cost(kernel, "float", count) for kernel, count in reorders if count is not None)


def _clipping(node: ir.Node, shapes: Shapes, table: CostTable) -> float:
    """What a Clip behind ``node`` takes in float: a pass of its own, even where it is fused; only Relu costs nothing.

    On integers the quantizer clips.
    """
    clip = next((n for n in absorbed(node) if operator(n).absorbed and not operator(n).free_in_float), None)
    count = None if clip is None else elements(clip.outputs[0], shapes)
    return 0.0 if count is None else table.cost(A_PASS, "float", count)


def uneconomic(
    model: ir.Model,
    plan: Plan,
    shapes: Shapes,
    table: CostTable,
    target: Target,
    *,
    costs: Costs | None = None,
    wanted: Collection[str] = (),
) -> dict[str, KeptFloat]:
    """The nodes of ``plan`` that are cheaper in float, conversions included, and why.

    Args:
        model: what ``plan`` was made for.
        plan: the plan with everything on integers that can be.
        shapes: by tensor, as one run had them; tensors that are missing cost nothing.
        target: what ``plan`` was made for.
        table: the costs of conversions, and of kernels where ``costs`` is not given.
        costs: of kernels, if they were measured.
        wanted: nodes that shall run on integers whatever that costs.
    """
    costs = table_costs(model, plan, shapes, table, target) if costs is None else costs
    kept = Cut(model, plan, shapes, table, costs, wanted).float_side()
    by_name = {n.name or "": n for n in nodes(model)}
    return {
        name: KeptFloat.of(ReasonCode.NOT_WORTH_IT, _stored(by_name[name])) for name in plan.integer if name in kept
    }


def writes_codes(node: ir.Node) -> bool:
    """Whether the integer kernel of ``node`` writes 8-bit codes whatever reads them."""
    return ops.weight_slot(node) is None or operator(node).between_codes


def _stored(node: ir.Node) -> Storage | None:
    return Storage.PACKED if ops.weight_slot(node) is not None else None


class Cut:
    """The graph whose minimum cut is the best placement. Vertices: names of nodes, and ("Q" | "D", tensor)."""

    SOURCE, SINK = ("source",), ("sink",)

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        shapes: Shapes,
        table: CostTable,
        costs: Costs,
        wanted: Collection[str],
    ) -> None:
        import networkx

        self.graph = networkx.DiGraph()
        self.graph.add_nodes_from((self.SOURCE, self.SINK))
        self.names, anchors = set(plan.integer), set(plan.anchors)
        self.shapes, self.table, self.pace = shapes, table, costs.pace
        chosen = [n for n in nodes(model) if (n.name or "") in self.names]
        self.writer = {id(value): node for node in chosen for value in written(node)}
        for node in chosen:
            name = node.name or ""
            self._edge(self.SOURCE, name, None if name in wanted else costs.float_us[name])
            self._edge(name, self.SINK, costs.integer_us[name])
            if name not in anchors:
                self._follows(node)
        tensors = {id(v): v for n in chosen for v in (*read(n), *written(n))}
        for value in tensors.values():
            self._conversions(value)

    def float_side(self) -> set[str]:
        """The names of the nodes that are cheapest in float; of several minima the one with the fewest integers."""
        import networkx

        residual = networkx.algorithms.flow.preflow_push(self.graph, self.SOURCE, self.SINK)
        integer: set[object] = {self.SOURCE}
        pending: list[object] = [self.SOURCE]
        while pending:
            for other, edge in residual[pending.pop()].items():
                room = edge["capacity"] - edge["flow"]
                if other not in integer and room > _ROUNDING * max(1.0, min(edge["capacity"], 1e9)):
                    integer.add(other)
                    pending.append(other)
        return {name for name in self.names if name not in integer}

    def _edge(self, tail: object, head: object, capacity: float | None) -> None:
        """Adds ``capacity`` (None: never to be cut) between two vertices."""
        if capacity is None:
            self.graph.add_edge(tail, head)
        elif self.graph.has_edge(tail, head):
            if "capacity" in self.graph[tail][head]:
                self.graph[tail][head]["capacity"] += capacity
        else:
            self.graph.add_edge(tail, head, capacity=capacity)

    def _follows(self, node: ir.Node) -> None:
        """A node without weights runs on integers only if what it reads is there in integers."""
        for value in read(node):
            writer = self.writer.get(id(value))
            if writer is not None and writes_codes(writer):
                self._edge(node.name, writer.name, None)
            elif ops.wants_channels_last(node):
                self._edge(node.name, self.SINK, None)
            elif not (ops.cheap_operand(node, value) or ops.quantizes_its_inputs(node)):
                reader = next((n for n in self._readers(value) if n is not None and operator(n).between_codes), None)
                self._edge(node.name, self.SINK if reader is None else reader.name, None)

    def _readers(self, value: ir.Value) -> list[ir.Node | None]:
        """The nodes that may read ``value`` as integers, None for each other reader."""
        found: list[ir.Node | None] = [None] if value.is_graph_output() else []
        for use in value.uses():
            known = (use.node.name or "") in self.names and value in read(use.node)
            found.append(use.node if known else None)
        return found

    def _conversions(self, value: ir.Value) -> None:
        readers = self._readers(value)
        writer = self.writer.get(id(value))
        integer_writer = writer is not None and (writes_codes(writer) or ends_in_activation(writer))
        # A matrix product with one reader writes what that reader wants; with several it writes float.
        joined = writer is not None and not integer_writer and len(readers) == 1 and readers[0] is not None
        name = writer.name if writer is not None and (integer_writer or joined) else self.SINK
        if any(r is not None for r in readers):
            q = ("Q", value.name)
            self._edge(q, name, self._quantize(value))
            for reader in readers:
                if reader is not None:
                    self._edge(reader.name, q, None)
        if integer_writer:
            d = ("D", value.name)
            self._edge(name, d, self._dequantize(value))
            for reader in readers:
                self._edge(d, self.SINK if reader is None else reader.name, None)

    def _quantize(self, value: ir.Value) -> float:
        cost = self._of(QUANTIZE, value)
        if in_layout(value, self.shapes):  # out of the blocks of float convolutions, channels last for integer ones
            cost += self._of(COPY, value, "int8")
            cost += self._of(LEAVE_BLOCKS, value) if blocked(value.producer()) else 0.0
        return cost

    def _dequantize(self, value: ir.Value) -> float:
        cost = self._of(DEQUANTIZE, value)
        if in_layout(value, self.shapes):
            cost += self._of(COPY, value, "int8")
            cost += self._of(ENTER_BLOCKS, value) if any(blocked(use.node) for use in value.uses()) else 0.0
        return cost

    def _of(self, kernel: str, value: ir.Value, number: str = "float") -> float:
        count = elements(value, self.shapes)
        return 0.0 if count is None else self.pace * self.table.cost(kernel, number, count)


# What a flow in floating point may leave of an edge that it has filled.
_ROUNDING = 1e-9


def force_gemm(model: ir.Model, shapes: Shapes, table: CostTable, target: Target) -> frozenset[str]:
    """The convolutions that are faster by matrix products than by onnxruntime's direct kernel."""
    convolutions = [n for n in nodes(model) if operator(n).direct]
    works: dict[str, Work | None] = {n.name or "": work_of(n, shapes, target) for n in convolutions}
    return frozenset(name for name, work in works.items() if work is not None and work.force_gemm(table))
