"""What a repair chooses from: where the noise of a candidate comes from, and what its nodes can become instead.

Each source is measured by itself at the outputs, everything else in float: the rounding of a tensor where it is read,
the rounding of weights, a layer that measures its ranges at every run. Noise of independent sources adds up, so that
one pass each says what any choice of them comes to. A *rung* adds ways to the nodes of a candidate; times come from the
cost table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxq.build.candidate import Built
from onnxq.graph.linear import multiply_accumulates
from onnxq.kernels import ops
from onnxq.kernels.costs import QUANTIZE, CostTable
from onnxq.kernels.operators import operator
from onnxq.kernels.targets import Target
from onnxq.kernels.work import Shapes, elements, work_of
from onnxq.plan import KeptFloat, Plan, ReasonCode, Storage
from onnxq.plan.placement import Costs, table_costs
from onnxq.plan.tradeoff import Noise, Sources, Step, Tradeoff, Way
from onnxq.query import nodes, values_by_name
from onnxq.search.readings import TOGETHER, Readings, loudness, much_of

# A layer whose input makes a smaller share of all noise is not tried with ranges measured at run time.
_WORTH_A_TRIAL = 0.02
# Passes over what a layer reads that measuring its range and rounding it then takes.
_RANGE_PASSES = 1.5
# A recurrent layer, which no cost table has: microseconds of a multiply-accumulate in float, and the share of those on
# integers.
_A_PRODUCT = 1e-4
_ON_INTEGERS = 0.4
# The time of a layer with its input in two parts, rounding included, by that on integers: of products, and of recurrent
# layers, which read twice as much and have states as before (benchmarks/two_parts.py).
_TWICE, _TWICE_AS_WIDE = 2.1, 1.2
# A byte of a weight that becomes float again costs as much time as this share of the time of all layers, by that of the
# bytes of all weights.
_BYTES_FOR_TIME = 0.5


@dataclass(frozen=True, eq=False)
class Scene:
    """What is known of a candidate before anything is measured: its graph, sizes, and what kernels cost.

    ``timed``: whether that counts; else every layer counts the same. ``own_operators``: whether nodes that only
    onnxruntime knows may be used, as layers with their input in two parts are made of.
    """

    graph: ir.Model
    shapes: Shapes
    table: CostTable
    target: Target
    timed: bool = True
    own_operators: bool = False

    def costs(self, plan: Plan) -> Costs:
        """Those of the nodes of ``plan``."""
        if self.timed:
            return table_costs(self.graph, plan, self.shapes, self.table, self.target)
        anchors = set(plan.anchors)
        return Costs({name: float(name in anchors) for name in plan.integer}, dict.fromkeys(plan.integer, 0.0))


class Rungs:
    """The ways between ``first`` and float, in stages, each measured once it is asked for.

    ``depends_on``: by layer that goes wherever another one goes, that one.
    """

    def __init__(
        self,
        first: Built,
        readings: Readings,
        scene: Scene,
        *,
        depends_on: Mapping[str, str] | None = None,
    ) -> None:
        self.first, self.readings, self.scene = first, readings, scene
        self._tied = {n: to for n, to in (depends_on or {}).items() if n in first.plan.layers}
        self._layers = [name for name in first.plan.layers if name not in self._tied]
        self._values = values_by_name(scene.graph)
        self._nodes = {n.name or "": n for n in nodes(scene.graph)}
        if scene.timed and self._in_vain():
            self.scene = replace(scene, timed=False)
        self._costs = self.scene.costs(first.plan)

    def stages(self) -> Iterator[list[Step]]:
        """Steps from the candidate towards float; behind them weights that are only stored are given back too."""
        yield self._trade(self.sources()).steps()
        if further := self._without_stored_weights():
            yield further

    def giving(self, names: Iterable[str]) -> Step:
        """The candidate with the layers called ``names`` in float, and the time that it takes."""
        return self._trade(Sources(self.readings.found, tied=self._tied)).giving(names)

    def sources(self) -> Sources:
        """Where the noise comes from, and what the layers can become: weights that are float again cost their bytes."""
        nothing = KeptFloat.of(ReasonCode.QUANTIZED_ALONE)
        weights = self._weights()
        ways = {name: self._at_run_time(name) for name in self._layers if name not in self.first.plan.anchors}
        ways.update(self._linear_at_run_time())
        sizes = {w.node: self._bytes(w.tensor) for w in self.first.plan.weights}
        price = _BYTES_FOR_TIME * sum(self._costs.float_us.values()) / max(1, sum(sizes.values()))
        for name in self._layers:
            known = list(ways.get(name, ()))
            time = next((w.time for w in known if w.weight is Storage.PACKED), self._costs.float_us.get(name, 0.0))
            known = [w for w in known if w.weight is not Storage.PACKED]
            if name in self._costs.integer_us:
                known.append(Way(None, self._costs.integer_us[name], weights[name], integer=True))
            known.append(Way(Storage.PACKED, time, weights[name]))
            known.append(Way(None, time, price=price * sizes.get(name, 0)))
            ways[name] = tuple(known)
        floor = self.readings.noise(dict.fromkeys(self.first.plan.layers, nothing))
        return Sources(self.readings.found, ways, floor, self._tied)

    def _weights(self) -> dict[str, Noise]:
        """The noise that the rounded weight of each layer makes, of a few layers together unless it is much."""
        groups = [self._layers[i : i + TOGETHER] for i in range(0, len(self._layers), TOGETHER)]
        found = [self._alone(group, Storage.PACKED) for group in groups]
        much = much_of(found)
        weights: dict[str, Noise] = {}
        for group, noise in zip(groups, found, strict=True):
            apart = len(group) > 1 and loudness(noise) > much
            for name in group:
                weights[name] = self._alone([name], Storage.PACKED) if apart else tuple(of / len(group) for of in noise)
        return weights

    def _without_stored_weights(self) -> list[Step]:
        """Behind everything in float: nodes that compute in float get float weights too, the noisiest first."""
        plan = self.first.plan
        stored = list(dict.fromkeys(w.node for w in plan.weights if w.node not in plan.layers))
        every = {name: Way(None, 0.0) for name in plan.layers}
        nothing = KeptFloat.of(ReasonCode.QUANTIZED_ALONE)
        found: dict[str, float] = {}  # of the worst output
        for done, name in enumerate(stored, start=1):
            found[name] = loudness(self.readings.noise({n: nothing for n in (*plan.layers, *stored) if n != name}))
            self.readings.tell(done, len(stored))
        left, steps = sum(found.values()), []
        for count, name in enumerate(sorted(found, key=lambda n: -found[n]), start=1):
            every[name], left = Way(None, 0.0), left - found[name]
            steps.append(Step(dict(every), sum(self._costs.float_us.values()) + count, max(left, 0.0)))
        return [Step(steps[0].ways, steps[0].time - 1.0, sum(found.values())), *steps] if steps else []

    def _trade(self, sources: Sources) -> Tradeoff:
        scene = self.scene
        shapes = scene.shapes if scene.timed else {}
        return Tradeoff(scene.graph, self.first.plan, shapes, scene.table, self._costs, sources)

    def _in_vain(self) -> bool:
        """Whether nothing is faster for being on integers, as far as is known: then the fewest layers go back."""
        scene = self.scene
        trade = Tradeoff(
            scene.graph, self.first.plan, scene.shapes, scene.table, scene.costs(self.first.plan), Sources(())
        )
        return trade.in_float().time <= trade.as_planned().time

    def _linear_at_run_time(self) -> dict[str, tuple[Way, ...]]:
        """Ways of linear layers whose input makes much of the noise: with a range that is measured at every run."""
        total = sum(loudness(r.noise) for r in self.readings.found)
        found: dict[str, tuple[Way, ...]] = {}
        for name in self._layers:
            node = self._nodes[name]
            read = sum(loudness(r.noise) for r in self.readings.found if name in r.readers)
            if not self.scene.timed or name not in self._costs.integer_us or read < _WORTH_A_TRIAL * total:
                continue
            if not ops.can_be_dynamic(node, self.scene.target) or node.inputs[0] is None:
                continue
            count = elements(node.inputs[0], self.scene.shapes) or 0
            passes = _RANGE_PASSES * self.scene.table.cost(QUANTIZE, "float", count) if count else 0.0
            time = self._costs.integer_us[name] + passes
            way = Way(Storage.DYNAMIC, time, self._alone([name], Storage.DYNAMIC))
            found[name] = (
                Way(Storage.PACKED, self._costs.float_us[name]),
                way,
                *self._in_two_parts(name, self._costs.integer_us[name]),
            )
        return found

    def _at_run_time(self, name: str) -> tuple[Way, ...]:
        """The ways of a layer that measures its ranges at every run as it is, and in float."""
        node = self._nodes[name]
        work = work_of(node, self.scene.shapes, self.scene.target)
        products = multiply_accumulates(node, self.scene.shapes)
        time = max(1.0, products * _A_PRODUCT) if work is None else max(1.0, work.cost(self.scene.table, "float"))
        as_planned = Way(Storage.DYNAMIC, _ON_INTEGERS * time, self._alone([name], Storage.DYNAMIC), integer=True)
        return as_planned, *self._in_two_parts(name, as_planned.time), Way(Storage.PACKED, time)

    def _in_two_parts(self, name: str, time: float) -> list[Way]:
        """The way of layer ``name``, which takes ``time`` on integers, with its input in two parts."""
        if not self.scene.own_operators:
            return []
        factor = _TWICE if operator(self._nodes[name]).recurrence is None else _TWICE_AS_WIDE
        return [Way(Storage.TWO_PARTS, factor * time, self._alone([name], Storage.TWO_PARTS))]

    def _alone(self, names: Sequence[str], weight: Storage) -> Noise:
        """The noise of the layers called ``names`` with their weights like that, and all others in float."""
        others = KeptFloat.of(ReasonCode.QUANTIZED_ALONE)
        kept = dict.fromkeys(self.first.plan.layers, others)
        return self.readings.noise({**kept, **dict.fromkeys(names, KeptFloat.of(ReasonCode.QUANTIZED_ALONE, weight))})

    def _bytes(self, tensor: str) -> int:
        value = self._values.get(tensor)
        return 0 if value is None or value.const_value is None else int(value.const_value.nbytes)
