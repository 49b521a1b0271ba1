"""One candidate built: its plan, its parameters and the model they make, with every planned kernel confirmed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxq.build.candidate import Built, Candidate, Draft
from onnxq.build.statistics import StatisticsCache, fitted_layers, nodes_that_touch, wanted_tensors
from onnxq.calibrate.layer_inputs import LayerInput
from onnxq.calibrate.runner import Feeds, Statistics
from onnxq.emit import emit
from onnxq.files.scratch import Scratch
from onnxq.graph.copying import NAME, called
from onnxq.graph.runtime_model import to_runtime
from onnxq.kernels.targets import Target
from onnxq.measure.assignment import assignments
from onnxq.measure.kernels import kernel_map
from onnxq.parameters.align import aligned
from onnxq.parameters.cache import ParameterCache
from onnxq.parameters.choose import Parameters, choose
from onnxq.parameters.concat import joined
from onnxq.plan import KeptFloat, Plan, ReasonCode, Storage, make_plan
from onnxq.plan.place import Placement

# Each round leaves the nodes float that the runtime did not fuse; that can unsettle neighbours, once or twice.
_MOST_ROUNDS = 5


@dataclass(frozen=True, eq=False)
class Context:
    """What all candidates of a call share: data, target, folders, and the two caches, of what was seen and chosen.

    Caches have complete keys: what ``build`` makes of a candidate does not hang on what was built before.
    """

    target: Target
    folder: Path
    scratch: Scratch
    statistics: StatisticsCache
    parameters: ParameterCache
    _bases: dict[tuple[object, ...], _Base] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        target: Target,
        feeds: Feeds,
        folder: Path,
        *,
        scratch: Scratch | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Context:
        """That with nothing seen yet; ``progress`` is called with the feeds that were run."""
        scratch = scratch or Scratch()
        statistics = StatisticsCache((feeds,), scratch, progress)
        return cls(target, folder, scratch, statistics, ParameterCache(scratch))

    def with_more(self, feeds: Feeds, candidate: Candidate, plan: Plan) -> Context:
        """That in which ``feeds`` count too; of ``plan``'s model nothing is run again on those that it had."""
        layers = _layers(candidate, self, plan)
        statistics = self.statistics.with_more(feeds, {candidate.watched: layers})
        return replace(self, statistics=statistics, parameters=ParameterCache(self.scratch))

    def base_tensors(self, candidate: Candidate) -> Sequence[str]:
        """The tensors that ``candidate`` would need with nothing in ``kept``: what falls back was fitted to them."""
        if not candidate.kept:
            return ()
        key = (candidate.graph, candidate.config, id(candidate.placement), id(candidate.fixed))
        if key not in self._bases:
            plan = _plan(candidate, self, candidate.keeping({}).keep_float)
            tensors = tuple(wanted_tensors(candidate.graph, plan))
            self._bases[key] = _Base(candidate.placement, candidate.fixed, tensors)
        return self._bases[key].tensors


@dataclass(frozen=True, eq=False)
class _Base:
    """``tensors`` of a candidate that keeps nothing; the others are held so that nothing else gets their ``id``."""

    placement: Placement
    fixed: Mapping[str, KeptFloat]
    tensors: tuple[str, ...]


def build(candidate: Candidate, context: Context) -> Built:
    """The candidate in which the nodes that the runtime will not fuse stay float too."""
    kept = candidate.keep_float
    for _ in range(_MOST_ROUNDS):
        plan = _plan(candidate, context, kept)
        while unseen := _unseen(candidate, context, plan):  # ends: each time more nodes stay float
            kept.update(unseen)
            plan = _plan(candidate, context, kept)
        draft = _drafted(candidate, context, plan)
        kernels = kernel_map(draft.runtime_model)
        found, anchors = assignments(draft.runtime_model, kernels), set(plan.anchors)
        refused = (
            {}
            if candidate.config.simulated
            else {
                f.node: KeptFloat.of(ReasonCode.RUNTIME_KERNEL, Storage.DYNAMIC, why=f.why or f.kernel or "")
                for f in found
                if f.node in anchors and not f.integer and f.node not in kept
            }
        )
        if not refused:
            break
        kept.update(refused)
    return Built(plan, draft.parameters, draft.model, draft.runtime_model, kernels, found, kept)


def draft(candidate: Candidate, context: Context) -> Draft:
    """As ``build``, for a look in passing, without asking the runtime about its kernels."""
    kept = candidate.keep_float
    plan = _plan(candidate, context, kept)
    if unseen := _unseen(candidate, context, plan):
        plan = _plan(candidate, context, {**kept, **unseen})
    return _drafted(candidate, context, plan)


def planned(candidate: Candidate, context: Context) -> Plan:
    """What is meant to become of ``candidate``, before anything is observed and the runtime asked."""
    return _plan(candidate, context, candidate.keep_float)


def statistics(candidate: Candidate, context: Context, plan: Plan) -> Statistics:
    """What is seen of the tensors and layers of ``plan``, which is run for what is new in it."""
    tensors = [t for t in wanted_tensors(candidate.graph, plan) if candidate.watch.believes(t)]
    return context.statistics.observe(candidate.watched, tensors, _layers(candidate, context, plan))


def chosen(candidate: Candidate, context: Context, plan: Plan) -> Parameters:
    """The parameters for ``plan``, each by itself: before neighbours agree on some."""
    return choose(
        candidate.graph,
        plan,
        statistics(candidate, context, plan),
        candidate.config,
        known=candidate.learned,
        extrapolated=candidate.extrapolated,
        cache=context.parameters,
    )


def _layers(candidate: Candidate, context: Context, plan: Plan) -> dict[tuple[str, int], LayerInput]:
    """The weights of ``plan`` that are fitted to what they multiply.

    Those of layers that fell back to float among them, so that they lose no more than on integers.
    """
    layers = fitted_layers(candidate.graph, plan, candidate.config, more=context.base_tensors(candidate))
    return {place: layer for place, layer in layers.items() if candidate.watch.believes(layer.tensor)}


def _plan(candidate: Candidate, context: Context, kept: Mapping[str, KeptFloat]) -> Plan:
    placed = candidate.placement
    return make_plan(
        candidate.graph,
        candidate.config,
        context.target,
        keep_float=kept,
        force_gemm=placed.force_gemm,
        slower=placed.slower,
    )


def _drafted(candidate: Candidate, context: Context, plan: Plan) -> Draft:
    parameters = chosen(candidate, context, plan)
    histograms = statistics(candidate, context, plan).histograms
    tensors = aligned(candidate.graph, plan, parameters.tensors, histograms)
    tensors = joined(candidate.graph, plan, tensors, histograms)
    parameters = replace(parameters, tensors=tensors)
    model = emit(candidate.graph, plan, **vars(parameters), scratch=context.scratch)
    model.meta[NAME] = f"the quantized {called(candidate.graph).removeprefix('the ')}"
    return Draft(plan, parameters, model, to_runtime(model, context.folder))


def _unseen(candidate: Candidate, context: Context, plan: Plan) -> dict[str, KeptFloat]:
    """The nodes of ``plan`` whose tensors were never computed, cannot be believed, or have no range."""
    seen = statistics(candidate, context, plan)
    missing = {t for t in plan.observed if t not in seen.histograms}
    found = {}
    for tensors, reason in (
        (missing - seen.masks, KeptFloat.of(candidate.watch.unseen, Storage.DYNAMIC)),
        (missing & seen.masks, KeptFloat.of(ReasonCode.MASK, Storage.PACKED)),  # nor has it one at run time
    ):
        if tensors:
            touching = nodes_that_touch(candidate.graph, tensors)
            found.update({name: reason for name in plan.integer if name in touching})
    return found
