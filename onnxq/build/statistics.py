"""What calibration data shows of the tensors of candidates, run once for each tensor and kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.layer_inputs import LayerInput
from onnxq.calibrate.observers import merge
from onnxq.calibrate.runner import Feeds, Statistics, run_observers
from onnxq.config import Config
from onnxq.files.scratch import Scratch
from onnxq.graph.geometry import Product
from onnxq.graph.linear import products
from onnxq.numerics import INT8, QType
from onnxq.plan import Plan, fused_output
from onnxq.plan.stored import stored_formats
from onnxq.query import nodes
from onnxq.ranges.fit import compensated_inputs
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.layer import concrete
from onnxq.ranges.moments import Moments, added
from onnxq.weights import WeightFormat, weight_format

Place: TypeAlias = "tuple[str, int]"  # node and input

# What the second moments of all layers may take: beyond, a layer makes do with the squares alone.
MOST_MOMENT_BYTES = 2 << 30
_MOMENT_BYTES = 8


@dataclass
class _Seen:
    """Of one watched model: the tensors and layers that were looked at, and what was there to be seen."""

    tensors: set[str] = field(default_factory=set)
    layers: set[tuple[Place, bool]] = field(default_factory=set)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    moments: dict[tuple[Place, bool], Moments] = field(default_factory=dict)
    masks: set[str] = field(default_factory=set)
    elements: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StatisticsCache:
    """What ``feeds``, one part after another, show: by watched model, by tensor, by layer and whether all of its second
    moments are wanted. It only grows, and nothing in it changes: more data makes another cache (``with_more``).
    """

    feeds: tuple[Feeds, ...]
    scratch: Scratch = field(default_factory=Scratch)
    progress: Callable[[int], None] | None = None
    _by_model: dict[ir.Model, _Seen] = field(default_factory=dict)

    def observe(self, model: ir.Model, tensors: Sequence[str], layers: Mapping[Place, LayerInput]) -> Statistics:
        """The ``Statistics`` of everything seen of ``model``, ``tensors`` and ``layers`` among it; moments of those."""
        seen = self._by_model.setdefault(model, _Seen())
        missing = {place: layer for place, layer in layers.items() if (place, layer.full) not in seen.layers}
        new = [t for t in tensors if t not in seen.tensors]
        new += [t for t in dict.fromkeys(layer.tensor for layer in missing.values()) if t not in new]
        if new:
            found = self._run(model, new, missing)
            for name, histogram in found.histograms.items():
                seen.histograms.setdefault(name, histogram)
                seen.elements.setdefault(name, found.elements[name])
            seen.moments.update({(place, missing[place].full): m for place, m in found.moments.items()})
            seen.masks.update(found.masks)
            seen.tensors.update(new)
            seen.layers.update((place, layer.full) for place, layer in missing.items())
        known = {place: seen.moments.get((place, layer.full)) for place, layer in layers.items()}
        moments = {place: m for place, m in known.items() if m is not None}
        return Statistics(dict(seen.histograms), moments, frozenset(seen.masks))

    def _run(self, model: ir.Model, tensors: Sequence[str], layers: Mapping[Place, LayerInput]) -> Statistics:
        found = Statistics()
        for feeds in self.feeds:
            part = run_observers(model, tensors, feeds, layers=layers, scratch=self.scratch, progress=self.progress)
            found = _merged(found, part, self.scratch)
        return found

    def with_more(self, feeds: Feeds, layers: Mapping[ir.Model, Mapping[Place, LayerInput]]) -> StatisticsCache:
        """Another cache, of these feeds and of ``feeds``; of the models in ``layers`` that was seen which this had."""
        more: dict[ir.Model, _Seen] = {}
        for model, wanted in layers.items():
            seen = self._by_model.get(model, _Seen())
            known = {p: layer for p, layer in wanted.items() if (p, layer.full) in seen.layers}
            part = run_observers(model, sorted(seen.tensors), feeds, layers=known, scratch=self.scratch)
            before = Statistics(
                dict(seen.histograms),
                {p: seen.moments[p, of.full] for p, of in known.items() if (p, of.full) in seen.moments},
                frozenset(seen.masks),
                dict(seen.elements),
            )
            both = _merged(before, part, self.scratch)
            moments = {(place, known[place].full): m for place, m in both.moments.items()}
            looked = {(p, of.full) for p, of in known.items()}
            more[model] = _Seen(
                set(seen.tensors), looked, both.histograms, moments, set(both.masks), dict(both.elements)
            )
        return StatisticsCache((*self.feeds, feeds), self.scratch, self.progress, more)

    def elements(self, model: ir.Model, *, feeds: int) -> float:
        """Elements of ``model``'s tensors that one feed showed; ``feeds``: how many there are, where nobody knows."""
        count = getattr(self.feeds[0], "len_hint", None)
        return sum(self._by_model.get(model, _Seen()).elements.values()) / (count or feeds)

    def counted(self, model: ir.Model, *, feeds: int) -> float:
        """``elements``, of each tensor only those that its histogram counted."""
        count = getattr(self.feeds[0], "len_hint", None)
        return sum(h.total for h in self._by_model.get(model, _Seen()).histograms.values()) / (count or feeds)


def _merged(one: Statistics, other: Statistics, scratch: Scratch) -> Statistics:
    """What both saw together; neither changes."""
    histograms, moments, elements = dict(one.histograms), dict(one.moments), dict(one.elements)
    for name, new in other.histograms.items():
        histograms[name] = merge(histograms.get(name), new) or new
    for place, more in other.moments.items():
        before = moments.get(place)
        moments[place] = more if before is None else added(before, more, zeros=lambda s: scratch.zeros(s, np.float64))
    for name, count in other.elements.items():
        elements[name] = elements.get(name, 0) + count
    masks = one.masks | other.masks
    return Statistics({name: h for name, h in histograms.items() if name not in masks}, moments, masks, elements)


def nodes_that_touch(model: ir.Model, tensors: Collection[str]) -> set[str]:
    """The names of the nodes that read one of ``tensors`` or settle into one."""
    found = set()
    for node in nodes(model):
        names = (v.name for v in (*node.inputs, *node.outputs) if v is not None)
        if any(name in tensors for name in names) or (node.outputs and fused_output(node).name in tensors):
            found.add(node.name or "")
    return found


def wanted_tensors(model: ir.Model, plan: Plan) -> list[str]:
    """The tensors that must be seen for ``plan``.

    Those with shared parameters too: they need their own once a neighbour falls back to float.
    """
    return list(dict.fromkeys([*(p.tensor for p in plan.points), *fit_tensors(model, plan)]))


def fit_tensors(model: ir.Model, plan: Plan) -> list[str]:
    """What weights are multiplied with that are fitted to it though no point of ``plan`` says so.

    Those of few bits, even in float, and those of layers that measure their ranges at run time.
    """
    unseen = [w for w in plan.weights if not w.storage.computes]
    fitted = {(w.node, w.index) for w in unseen if w.stored.packed or w.storage.measures}
    found = [v for n in nodes(model) for i, (v, _) in products(n).items() if (n.name or "", i) in fitted]
    return [v.name for v in found if v.name and not v.is_initializer()]


def fitted_layers(model: ir.Model, plan: Plan, config: Config, *, more: Iterable[str] = ()) -> dict[Place, LayerInput]:
    """By node and input, the weights of ``plan`` that are fitted to one of the ``wanted_tensors`` or of ``more``."""
    if config.objective == "tensor" and config.restore == "none" and config.rounding == "nearest":
        return {}
    every = [
        ((node.name or "", index), source.name, layer)
        for node in nodes(model)
        for index, (source, layer) in products(node).items()
    ]
    weights = {(w.node, w.index): w for w in plan.weights}
    tensors = {*wanted_tensors(model, plan), *more}
    squares_only = _beyond_memory([(place, layer) for place, _, layer in every], model, config)
    found = {}
    for place, source, layer in every:
        if place in weights and source in tensors:
            weight = weights[place]
            full = _all_moments(layer, weight.stored, weight.qtype, config) and place not in squares_only
            found[place] = LayerInput(source or "", layer, full)
    return found


def _all_moments(layer: Product, stored: WeightFormat, computed: QType, config: Config) -> bool:
    """Whether all second moments of a layer's inputs count, not only the squares."""
    goal = concrete(config.objective, layer.inputs, stored.code_type(computed))
    return goal == "output" or layer.inputs <= compensated_inputs(config.rounding, stored.bits)


def _beyond_memory(layers: Sequence[tuple[Place, Product]], model: ir.Model, config: Config) -> set[Place]:
    """Those of ``layers`` whose second moments no longer fit beside those of the layers before them.

    All layers of the graph count, whatever stays float: what is known of one must not hang on the candidate.
    """
    sizes = {place: layer.groups * layer.inputs**2 * _MOMENT_BYTES for place, layer in layers}
    if sum(sizes.values()) <= MOST_MOMENT_BYTES:
        return set()
    formats, held, beyond = stored_formats(model, config), 0, set()
    for place, layer in layers:
        if _all_moments(layer, formats.get(place[0], weight_format("int8")), INT8, config):
            held += sizes[place]
            if held > MOST_MOMENT_BYTES:
                beyond.add(place)
    return beyond
