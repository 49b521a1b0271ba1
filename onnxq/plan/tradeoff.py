"""Time against noise: the placements that are worth having, each a minimum cut in which noise costs time.

Noise of independent sources adds up. With a price for noise a node costs its time and, times the price, the noise that
it makes: the minimum cut of ``placement`` then is the placement of least ``time + price * noise``, conversions between
neighbours counted. No other placement makes as little noise in as little time. Those of all prices are the lower convex
hull of noise over time, and the hull is found by halving: between two of its points lies another one exactly where the
price of the line through them leads to one.

A tensor's rounding makes noise where it is read, once for all that read it alike. It is paid if the writer writes
codes, or if one of those readers reads codes:

    writer -> P, reader -> P, P -> sink     price * noise, paid if any of them is integer

Of several outputs the worst counts: a price holds for a weighted sum, whose weights move to those that are worst.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.kernels.costs import CostTable
from onnxq.kernels.work import Shapes
from onnxq.plan.placement import Costs, Cut, writes_codes
from onnxq.plan.types import Plan, Storage
from onnxq.plan.units import ends_in_activation
from onnxq.query import nodes, values_by_name

# Points of the hull nearer than that are as good as one: a ratio of noises, a share of all time; the latter with other
# weights too, which only add what those before them left out.
_NEAR_NOISE = 1.1
_NEAR_TIME, _NEAR_TIME_REWEIGHED = 0.02, 0.05
# Of more nodes than that between two points of the hull the order is that of the graph; so many are looked at alone.
_MOST_GREEDY, _MOST_SINGLE = 12, 256
_LEAST_TIME, _LEAST_NOISE = 1e-3, 1e-15
# How far down, by the logarithm of noise, other outputs may be the worst.
_REWEIGHED = (0.3, 0.6)

F64 = npt.NDArray[np.float64]


Noise: TypeAlias = "tuple[float, ...]"  # of each output, as a share of its energy; nothing: none


class Way(NamedTuple):
    """What a node can become: ``weight`` as in ``KeptFloat``, microseconds, the noise that it makes by itself.

    ``integer``: whether its neighbours see a node on integers. ``price``: what it costs beside time, as time.
    """

    weight: Storage | None
    time: float
    noise: Noise = ()
    integer: bool = False
    price: float = 0.0

    @property
    def cost(self) -> float:
        """Time and what it costs beside that."""
        return self.time + self.price


@dataclass(frozen=True)
class Reading:
    """The noise that rounding ``tensor`` makes where ``readers``, names of nodes, read it."""

    tensor: str
    readers: tuple[str, ...]
    noise: Noise


@dataclass(frozen=True)
class Sources:
    """Where the noise of a plan comes from.

    ``ways``: what nodes can become beside, or instead of, what costs say of them; where one is integer it stands for
    the node as it is in the plan. ``floor``: what is left whatever becomes of the nodes. ``tied``: by node, the one
    that it goes with.
    """

    readings: tuple[Reading, ...]
    ways: Mapping[str, tuple[Way, ...]] = field(default_factory=dict)
    floor: Noise = ()
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A placement: the way of each node that is not as the plan has it, microseconds, and noise in all.

    ``noise``: that of the worst output; ``noises``: of each. ``time`` holds what ways cost beside it too.
    """

    ways: Mapping[str, Way]
    time: float
    noise: float
    noises: Noise = ()

    @property
    def microseconds(self) -> float:
        """The time alone."""
        return self.time - sum(way.price for way in self.ways.values())


class Tradeoff(Cut):
    """The placements between ``plan`` and float."""

    def __init__(
        self, model: ir.Model, plan: Plan, shapes: Shapes, table: CostTable, costs: Costs, sources: Sources
    ) -> None:
        super().__init__(model, plan, shapes, table, costs, ())
        known = [r.noise for r in sources.readings] + [w.noise for ways in sources.ways.values() for w in ways]
        self._outputs = max((len(noise) for noise in (*known, sources.floor)), default=1) or 1
        self._floor = self._vector(sources.floor)
        self._order = [name for node in nodes(model) if (name := node.name or "") in self.names | sources.ways.keys()]
        self._float: dict[str, tuple[Way, ...]] = {}
        self._integer: dict[str, tuple[Way, ...]] = {}
        anchors = set(plan.anchors)
        self.names |= sources.ways.keys()
        for name in sorted(self.names):
            own = sources.ways.get(name, ())
            stored = Storage.PACKED if name in anchors else None
            self._float[name] = tuple(w for w in own if not w.integer) or (Way(stored, costs.float_us.get(name, 0.0)),)
            integer = tuple(w for w in own if w.integer)
            self._integer[name] = integer or (Way(None, costs.integer_us.get(name, 0.0), (), True),)
            for edge in ((self.SOURCE, name), (name, self.SINK)):
                self.graph.add_edge(*edge, capacity=0.0)
        for node, other in sources.tied.items():
            if {node, other} <= self.names:
                self._edge(node, other, None)
                self._edge(other, node, None)
        self._microseconds = {
            (u, v): c
            for u, v, c in self.graph.edges(data="capacity")
            if c is not None and (u, v) != (self.SOURCE, v) and not (v == self.SINK and u in self.names)
        }
        self._noise: dict[tuple[object, object], F64] = {}
        values = values_by_name(model)
        for index, reading in enumerate(sources.readings):
            self._read(("P", index), reading, values[reading.tensor])
        # What is neither a node nor an end goes with the nodes that it hangs on.
        ends = (self.SOURCE, self.SINK)
        self._between_nodes = [v for v in self.graph if v not in self.names and v not in ends]
        # Until other weights are asked for, outputs count by the noise that they have.
        self.weights = np.ones(self._outputs)
        self.weights = np.array(self.as_planned().noises) + _LEAST_NOISE

    def _vector(self, noise: Noise) -> F64:
        """``noise`` of each output; what is known of none is taken to be the same for all."""
        if len(noise) == self._outputs:
            return np.array(noise, np.float64)
        return np.full(self._outputs, max(noise, default=0.0))

    def _priced(self, way: Way, price: float) -> float:
        return way.cost + price * float(self.weights @ self._vector(way.noise))

    def _weighed(self, step: Step) -> float:
        return float(self.weights @ np.array(step.noises))

    def _read(self, vertex: object, reading: Reading, value: ir.Value) -> None:
        """Adds a vertex that is integer where the noise of ``reading`` is made."""
        writer = self.writer.get(id(value))
        codes = writer is not None and (writes_codes(writer) or ends_in_activation(writer))
        makers = [writer.name] if writer is not None and codes else []
        makers += [name for name in reading.readers if name in self.names]
        for name in makers:
            self._edge(name, vertex, None)
        if makers:
            self._edge(vertex, self.SINK, 0.0)
            self._microseconds[vertex, self.SINK] = 0.0
            self._noise[vertex, self.SINK] = self._vector(reading.noise)

    def as_planned(self) -> Step:
        """Everything as the plan has it."""
        return self._step({name: ways[0] for name, ways in self._integer.items()})

    def in_float(self) -> Step:
        """Everything in float, the way of least noise of each node."""
        return self._step({name: min(ways, key=lambda w: (sum(w.noise), w.cost)) for name, ways in self._float.items()})

    def giving(self, names: Iterable[str]) -> Step:
        """The plan with the nodes called ``names`` in float, and those that cannot do without them."""
        at, last = self.as_planned(), self.in_float()
        for name in names:
            at = self._moved(at, last, name)
        return at

    def at(self, price: float) -> Step:
        """The placement of least time where the noise of all outputs, as ``weights`` has them, costs ``price``."""
        for edge, time in self._microseconds.items():
            noise = self._noise.get(edge)
            self.graph.edges[edge]["capacity"] = time if noise is None else time + price * float(self.weights @ noise)
        best: dict[str, tuple[Way, Way]] = {}
        for name in self.names:
            both = self._integer[name], self._float[name]
            integer, in_float = (min(ways, key=lambda way: self._priced(way, price)) for ways in both)
            best[name] = integer, in_float
            self.graph.edges[name, self.SINK]["capacity"] = self._priced(integer, price)
            self.graph.edges[self.SOURCE, name]["capacity"] = self._priced(in_float, price)
        kept = self.float_side()
        return self._step({name: ways[name in kept] for name, ways in best.items()})

    def steps(self) -> list[Step]:
        """From the plan to float, the lower convex hull of noise over time, and steps of single nodes beside it.

        Each makes less noise than the one before it; behind the plan, which may not be the fastest, each takes longer.
        """
        first, last = self.as_planned(), self.in_float()
        hull = worthwhile([first, last, *self._hull(first, last, _NEAR_TIME)])
        for part in _REWEIGHED if self._outputs > 1 else ():
            aim = first.noise ** (1.0 - part) * max(last.noise, _LEAST_NOISE) ** part
            there = next((step for step in hull if step.noise <= aim), last)
            self.weights = np.square(np.array(there.noises)) + _LEAST_NOISE
            hull = worthwhile([*hull, *self._hull(first, last, _NEAR_TIME_REWEIGHED)])
        cheap = self._step({name: min(ways, key=lambda way: way.cost) for name, ways in self._float.items()})
        single = [self._moved(first, to, name) for name in self._order[:_MOST_SINGLE] for to in (cheap, last)]
        every = worthwhile([*hull, *single, *(step for pair in pairwise(hull) for step in self._between(*pair))])
        return [first, *(step for step in every if step.noise < first.noise)]

    def _hull(self, first: Step, last: Step, near: float) -> list[Step]:
        """The points of the lower convex hull between ``first`` and ``last`` by ``weights``, ``near`` or more apart."""
        found, pending = [], [(first, last)]
        little = near * abs(last.time - first.time)
        while pending:
            before, behind = pending.pop()
            gain = self._weighed(before) - self._weighed(behind)
            if gain <= (_NEAR_NOISE - 1.0) * self._weighed(behind) or behind.time - before.time <= little:
                continue
            price = (behind.time - before.time) / gain
            middle = self.at(price)
            ends = before.time + price * self._weighed(before)
            if middle.time + price * self._weighed(middle) < ends * (1.0 - _ROUNDING):
                found.append(middle)
                pending += [(before, middle), (middle, behind)]
        return found

    def _between(self, low: Step, high: Step) -> list[Step]:
        """The steps from ``low`` to ``high``, one node after another: what takes away most noise for its time first."""
        left = [name for name in self._order if low.ways.get(name) != high.ways.get(name)]
        greedy, at, steps = len(left) <= _MOST_GREEDY, low, []
        while len(left) > 1:
            found = [self._moved(at, high, name) for name in (left if greedy else left[:1])]
            at = min(found, key=lambda to: (to.noise - at.noise) / max(to.time - at.time, _LEAST_TIME))
            left = [other for other in left if at.ways.get(other) != high.ways.get(other)]
            steps.append(at)
        return steps

    def _moved(self, at: Step, high: Step, name: str) -> Step:
        """``at`` with the way of ``high`` for the node called ``name``, and for those that cannot do without it."""
        ways = {other: at.ways.get(other, self._integer[other][0]) for other in self.names}
        pending = [name]
        while pending:
            moved = pending.pop()
            ways[moved] = high.ways.get(moved, self._integer[moved][0])
            if not ways[moved].integer:
                pending += [u for u in self.graph.predecessors(moved) if u in ways and ways[u].integer]
        return self._step(ways)

    def _step(self, ways: Mapping[str, Way]) -> Step:
        """What ``ways``, one for each node, come to."""
        integer: set[object] = {self.SOURCE, *(name for name, way in ways.items() if way.integer)}
        for vertex in self._between_nodes:
            if vertex[0] == "D":
                if all(w in integer for w in self.graph.successors(vertex)):
                    integer.add(vertex)
            elif any(u in integer for u in self.graph.predecessors(vertex)):
                integer.add(vertex)
        time, noises = 0.0, self._floor.copy()
        for (u, v), microseconds in self._microseconds.items():
            if u in integer and v not in integer:
                time += microseconds
                noise = self._noise.get((u, v))
                if noise is not None:
                    noises += noise
        for way in ways.values():
            time += way.cost
            if way.noise:
                noises += self._vector(way.noise)
        chosen = {name: way for name, way in ways.items() if way != self._integer[name][0]}
        return Step(chosen, time, float(noises.max()), tuple(noises.tolist()))


# What one sum in floating point may differ from another one by.
_ROUNDING = 1e-9


def worthwhile(steps: Collection[Step]) -> list[Step]:
    """Those of ``steps`` that make less noise than all that take no longer, the fastest first."""
    found: list[Step] = []
    for step in sorted(steps, key=lambda s: (s.time, s.noise)):
        if not found or step.noise < found[-1].noise:
            found.append(step)
    return found
