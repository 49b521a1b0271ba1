"""One candidate: a plan, its parameters and the model they make, with every planned kernel confirmed by the runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from onnxq.calibrate.layer_inputs import LayerInput
from onnxq.calibrate.observers import merge
from onnxq.calibrate.runner import Feeds, Statistics, run_observers
from onnxq.config import Config
from onnxq.emit import emit
from onnxq.files.scratch import Scratch
from onnxq.graph.linear import products
from onnxq.graph.runtime_model import to_runtime
from onnxq.kernels.targets import Target
from onnxq.measure.assignment import KernelAssignment, assignments
from onnxq.measure.kernels import KernelMap, kernel_map
from onnxq.parameters.align import aligned
from onnxq.parameters.choose import Parameters, choose
from onnxq.parameters.concat import joined
from onnxq.plan import KeptFloat, Plan, ReasonCode, Storage, make_plan
from onnxq.plan.place import Placement
from onnxq.query import nodes
from onnxq.ranges.fit import compensated_inputs
from onnxq.ranges.layer import concrete

# Each round gives the nodes back to float that the runtime did not fuse; that can unsettle neighbours, once or twice.
_MOST_ROUNDS = 5


@dataclass(frozen=True, eq=False)
class Draft:
    """A quantized model that the runtime has not been asked about; ``runtime_model``: as the runtime loads it."""

    plan: Plan
    parameters: Parameters
    model: ir.Model
    runtime_model: bytes | Path


@dataclass(frozen=True, eq=False)
class Built(Draft):
    """A quantized model whose planned kernels are confirmed; ``kept_float``: all nodes that had to be given up."""

    kernels: KernelMap
    assignments: tuple[KernelAssignment, ...]
    kept_float: Mapping[str, KeptFloat]


@dataclass
class Builder:
    """Builds candidates for one prepared model; statistics and parameters, once computed, serve all of them.

    ``placement`` says what costs decided, ``fixed`` what stays float whatever they say; both hold for every candidate.
    ``watched`` is the model that is run to see tensors (None: ``prepared`` itself), ``trusted`` the names of those
    whose values can be believed (None: all), ``unseen`` the reason given for nodes whose tensors were not seen.
    ``ahead``: whether ranges are made for samples that are yet to come. ``scratch`` holds all that is large.
    """

    prepared: ir.Model
    config: Config
    target: Target
    feeds: Feeds
    folder: Path
    progress: Callable[[int], None] | None = None
    watched: ir.Model | None = None
    trusted: frozenset[str] | None = None
    placement: Placement = field(default_factory=Placement)
    fixed: Mapping[str, KeptFloat] = field(default_factory=dict)
    ahead: bool = False
    unseen: ReasonCode = ReasonCode.NEVER_REACHED
    statistics: Statistics = field(default_factory=Statistics)
    parameters: Parameters | None = None
    scratch: Scratch = field(default_factory=Scratch)
    _observed: set[str] = field(default_factory=set)

    def build(self, keep_float: Mapping[str, KeptFloat] | None = None) -> Built:
        """The candidate in which the nodes of ``keep_float``, and those that the runtime will not fuse, stay float."""
        kept = self._kept(keep_float or {})
        for _ in range(_MOST_ROUNDS):
            plan = self._plan(kept)
            while unseen := self._observe(plan):  # ends: each time more nodes stay float
                kept.update(unseen)
                plan = self._plan(kept)
            draft = self._drafted(plan)
            kernels = kernel_map(draft.runtime_model)
            found = assignments(draft.runtime_model, kernels)
            refused = (
                {}
                if self.config.simulated
                else {
                    f.node: KeptFloat.of(ReasonCode.RUNTIME_KERNEL, Storage.DYNAMIC, why=f.why or f.kernel or "")
                    for f in found
                    if f.node in plan.anchors and not f.integer and f.node not in kept
                }
            )
            if not refused:
                break
            kept.update(refused)
        return Built(plan, draft.parameters, draft.model, draft.runtime_model, kernels, found, kept)

    def draft(self, keep_float: Mapping[str, KeptFloat]) -> Draft:
        """As ``build``, for a look in passing, without asking the runtime about its kernels."""
        kept = self._kept(keep_float)
        plan = self._plan(kept)
        if unseen := self._observe(plan):
            plan = self._plan({**kept, **unseen})
        return self._drafted(plan)

    def with_extrapolated_ranges(self) -> Builder:
        """The same with ranges for samples that are yet to come; weights stay as they are."""
        known = None if self.parameters is None else replace(self.parameters, tensors={})
        return replace(self, ahead=True, parameters=known)

    def of_another(self, prepared: ir.Model, fixed: Mapping[str, KeptFloat]) -> Builder:
        """The same for another float graph with these nodes fixed; nothing has been seen of it."""
        return replace(self, prepared=prepared, fixed=fixed, statistics=Statistics(), parameters=None, _observed=set())

    def see_more(self, feeds: Feeds, plan: Plan) -> None:
        """Adds what ``feeds`` show of all tensors that were seen so far to the statistics; parameters stay."""
        watched = self.prepared if self.watched is None else self.watched
        layers = fitted_layers(self.prepared, plan, self.config, self._observed)
        seen = run_observers(watched, sorted(self._observed), feeds, layers=layers, scratch=self.scratch)
        histograms, moments = self.statistics.histograms, self.statistics.moments
        for name, new in seen.histograms.items():
            histograms[name] = merge(histograms.get(name), new) or new
        for place, more in seen.moments.items():
            if place in moments and moments[place].second.shape == more.second.shape:
                moments[place] = moments[place] + more

    def _kept(self, asked: Mapping[str, KeptFloat]) -> dict[str, KeptFloat]:
        """What stays float: what costs decided, what is so for every candidate, and what is ``asked`` for."""
        return {**self.placement.keep_float, **self.fixed, **asked}

    def _plan(self, kept: Mapping[str, KeptFloat]) -> Plan:
        placed = self.placement
        return make_plan(
            self.prepared,
            self.config,
            self.target,
            keep_float=kept,
            force_gemm=placed.force_gemm,
            slower=placed.slower,
        )

    def _drafted(self, plan: Plan) -> Draft:
        parameters = choose(
            self.prepared,
            plan,
            self.statistics,
            self.config,
            known=self.parameters,
            ahead=self.ahead,
            scratch=self.scratch,
        )
        self.parameters = parameters
        tensors = aligned(self.prepared, plan, parameters.tensors, self.statistics.histograms)
        tensors = joined(self.prepared, plan, tensors, self.statistics.histograms)
        parameters = replace(parameters, tensors=tensors)
        model = emit(self.prepared, plan, **vars(parameters), scratch=self.scratch)
        return Draft(plan, parameters, model, to_runtime(model, self.folder))

    def _observe(self, plan: Plan) -> dict[str, KeptFloat]:
        """Sees the tensors of ``plan`` that no earlier plan had; the readers of those that were never computed."""
        # Tensors with shared parameters are seen too: they need their own once a neighbour is given back to float.
        tensors = list(dict.fromkeys([*(p.tensor for p in plan.points), *fit_tensors(self.prepared, plan)]))
        new = [t for t in tensors if t not in self._observed and (self.trusted is None or t in self.trusted)]
        if new:
            watched = self.prepared if self.watched is None else self.watched
            layers = fitted_layers(self.prepared, plan, self.config, set(new))
            seen = run_observers(watched, new, self.feeds, layers=layers, scratch=self.scratch, progress=self.progress)
            self.statistics.histograms.update(seen.histograms)
            self.statistics.moments.update(seen.moments)
            self._observed.update(new)
        missing = {t for t in plan.observed if t not in self.statistics.histograms}
        if not missing:
            return {}
        reason = KeptFloat.of(self.unseen, Storage.DYNAMIC)
        return {name: reason for name in plan.integer if touches(self.prepared, name, missing)}


def touches(model: ir.Model, node: str, tensors: set[str]) -> bool:
    """Whether the node called ``node`` reads or settles into one of ``tensors``."""
    from onnxq.plan import fused_output

    for candidate in nodes(model):
        if candidate.name == node:
            names = {v.name for v in candidate.inputs if v is not None} | {o.name for o in candidate.outputs}
            return bool(names & tensors) or fused_output(candidate).name in tensors
    return False


def fit_tensors(model: ir.Model, plan: Plan) -> list[str]:
    """What weights are multiplied with that are fitted to it though no point of ``plan`` says so.

    Those of few bits, even in float, and those of layers that measure their ranges at run time.
    """
    unseen = [w for w in plan.weights if not w.storage.computes]
    fitted = {(w.node, w.index) for w in unseen if w.stored.packed or w.storage is Storage.DYNAMIC}
    found = [v for n in nodes(model) for i, (v, _) in products(n).items() if (n.name or "", i) in fitted]
    return [v.name for v in found if v.name and not v.is_initializer()]


# What the second moments of all layers may take: beyond, a layer makes do with the squares alone.
MOST_MOMENT_BYTES = 2 << 30
_MOMENT_BYTES = 8


def fitted_layers(model: ir.Model, plan: Plan, config: Config, tensors: set[str]) -> dict[tuple[str, int], LayerInput]:
    """By node and input, the weights of ``plan`` that are multiplied with one of ``tensors`` and fitted to it."""
    if config.objective == "tensor" and config.restore == "none" and config.rounding == "nearest":
        return {}
    found = {}
    weights = {(w.node, w.index): w for w in plan.weights}
    held = 0
    for node in nodes(model):
        for index, (source, layer) in products(node).items():
            weight = weights.get((node.name or "", index))
            if weight is None or source.name not in tensors:
                continue
            goal = concrete(config.objective, layer.inputs, weight.stored.code_type(weight.qtype))
            full = goal == "output" or layer.inputs <= compensated_inputs(config.rounding, weight.stored.bits)
            held += layer.groups * layer.inputs**2 * _MOMENT_BYTES if full else 0
            found[weight.node, index] = LayerInput(source.name, layer, full and held <= MOST_MOMENT_BYTES)
    return found
