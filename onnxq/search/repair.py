"""Float fallback: where data shows that too much was lost, what gains most accuracy for its time is float again.

Where times are known, the steps of ``rungs`` are climbed until the judge says that it is enough: single tensors, sums
and layers, each for the noise that it makes and the time that it saves. Where nothing is known of times, a ranker
orders layers by the noise that each makes at the model's outputs when it alone is quantized, and the fewest of them go
back, by doubling and halving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from onnxq.build.candidate import Built
from onnxq.errors import RuntimeFailure
from onnxq.plan import KeptFloat, Plan, ReasonCode, Storage
from onnxq.plan.tradeoff import Step
from onnxq.report.curve import CurvePoint
from onnxq.search.acceptance import Shortfall, Verdict
from onnxq.search.climb import Climb, Evaluator, Tried

Progress = Callable[[int, int], None]

_SHOWN = 4
STOPPED = (
    "more accuracy would cost speed, and keep_accuracy = 'fast' gives none away: 'default' goes on until the promise "
    "is kept"
)


class Ranker(Protocol):
    """Measures the noise at the outputs with some nodes kept float."""

    def noise(self, kept: Mapping[str, KeptFloat]) -> float:
        """Relative noise energy with ``kept`` float."""


class Repaired(NamedTuple):
    """What is left of a candidate: ``fallback`` names the layers that compute in float for accuracy.

    ``between``: the other nodes that do; ``dynamic``: the layers that measure their ranges at every run instead;
    ``curve``: the points that were built; ``stopped``: whether more might have gone back, but was not to.
    """

    built: Built
    verdict: Verdict
    fallback: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    stopped: bool = False


class Ladder(NamedTuple):
    """What there is between a candidate and float: ``stages`` of steps, and the share of the way that may be gone.

    ``giving``: the step where layers with these names go back.
    """

    stages: Callable[[], Iterable[Sequence[Step]]]
    most: float = 1.0
    giving: Callable[[Iterable[str]], Step] | None = None


def repair(
    first: Built,
    evaluator: Evaluator,
    ranker: Ranker,
    *,
    depends_on: Mapping[str, str] | None = None,
    deciding: Callable[[Built], Sequence[str]] | None = None,
    progress: Progress | None = None,
    ladder: Ladder | None = None,
) -> Repaired:
    """The fastest candidate by ``ladder`` that is good; without one, that with the fewest float layers.

    Without one a layer that falls back first keeps its weights as int8, since it is mostly activations that 8 bits are
    too few for; if that is good for no number of layers, they get their float weights back too, and then the nodes that
    compute in float with stored weights. Where nothing is good, the best one by (agreement, SQNR).

    ``depends_on``: by layer that has no other use than another one, the name of that, with which it falls back.
    ``deciding``: the layers that can go back where lengths differ, those nearest to the decision first; what else is
    float decides no lengths.
    """
    depends_on = depends_on or {}
    every = dict.fromkeys(first.plan.layers)
    layers = [name for name in every if name not in depends_on]
    stored = list(dict.fromkeys(w.node for w in first.plan.weights if w.node not in every))
    verdict = evaluator.verdict(first)
    if not verdict.good and deciding is not None and Shortfall.LENGTHS in verdict.shortfalls:
        lengths = _Attempts(first, evaluator, depends_on, [n for n in deciding(first) if n in layers])
        found = lengths.of_equal_lengths(Storage.PACKED) or lengths.of_equal_lengths(None)
        if found:
            return found
    if verdict.good_but_for_lengths or not (layers or stored):
        return Repaired(first, verdict)
    if ladder is not None:
        climb = Climb(first, verdict, evaluator, ladder.most)
        found = _climbed(climb, ladder)
        if ladder.giving is None or not found.verdict.good or not climb.dear(found.built):
            return found
        # Noise did not add up as it should have: what goes back layer by layer may be less.
        attempts = _Attempts(first, evaluator, depends_on, ranked(first, layers, ranker, progress=progress))
        attempts.tried[0, Storage.PACKED] = (first, verdict)
        other = attempts.fewest(Storage.PACKED)
        if other is None:
            return found
        tried = Tried(ladder.giving(other.fallback), other.built, other.verdict)
        taken = other if climb.cheaper(tried, found.built) else found
        return taken._replace(curve=climb.curve(taken.built))
    attempts = _Attempts(first, evaluator, depends_on, ranked(first, layers, ranker, progress=progress))
    attempts.tried[0, Storage.PACKED] = (first, verdict)
    return (
        attempts.fewest(Storage.PACKED)
        or attempts.fewest(None)
        or (stored and attempts.with_more(_ranked_stored(first, stored, ranker, progress)).fewest(None, len(layers)))
        or attempts.best()
    )


def _climbed(climb: Climb, ladder: Ladder) -> Repaired:
    """The fastest good candidate on the way, or the best of those tried."""
    found = climb.good(ladder.stages())
    step, built, verdict = found or climb.best()
    plan, gone = climb.first.plan, {n for n, way in step.ways.items() if not way.integer}
    dynamic = {n for n in gone if (weight := step.ways[n].weight) is not None and weight.measures}
    layers = set(plan.layers)
    return Repaired(
        built,
        verdict,
        tuple(n for n in step.ways if n in gone - dynamic and n in layers),
        tuple(n for n in plan.integer if n in gone - layers),
        tuple(n for n in plan.layers if n in dynamic),
        climb.curve(built),
        found is None and ladder.most < 1.0,
    )


@dataclass(frozen=True)
class _Attempts:
    """Candidates with the first so many layers of ``ranking`` float, built at most once each.

    ``tried``: by the number of layers and what becomes of their weights (None: float); None where it does not run.
    """

    first: Built
    evaluator: Evaluator
    depends_on: Mapping[str, str]
    ranking: Sequence[str]
    tried: dict[tuple[int, Storage | None], tuple[Built, Verdict] | None] = field(default_factory=dict)

    def with_more(self, names: Sequence[str]) -> _Attempts:
        """The same with ``names`` behind all others."""
        return _Attempts(self.first, self.evaluator, self.depends_on, (*self.ranking, *names), self.tried)

    def fewest(self, weight: Storage | None, least: int = 0) -> Repaired | None:
        """The good one with the fewest layers above ``least``; None where none is."""
        return self._fewest(weight, least, lambda verdict: verdict.good_but_for_lengths)

    def of_equal_lengths(self, weight: Storage | None) -> Repaired | None:
        """The good one with the fewest layers, lengths included; None where none is."""
        return self._fewest(weight, 0, lambda verdict: verdict.good)

    def _fewest(self, weight: Storage | None, least: int, good: Callable[[Verdict], bool]) -> Repaired | None:
        count = fewest(least, len(self.ranking), lambda count: self._is(good, count, weight))
        found = None if count is None else self.tried[count, weight]
        return None if count is None or found is None else self._repaired(count, *found)

    def best(self) -> Repaired:
        """The best of all that were tried, where none is good."""
        ends = [(count, *found) for (count, _), found in self.tried.items() if found is not None]
        return self._repaired(*max(ends, key=lambda end: end[2].standing))

    def _is(self, good: Callable[[Verdict], bool], count: int, weight: Storage | None) -> bool:
        if (count, weight) not in self.tried:
            given = set(self.ranking[:count])
            given.update(layer for layer, other in self.depends_on.items() if other in given)
            back = KeptFloat.of(ReasonCode.ACCURACY, weight)
            self.tried[count, weight] = self._judged({**self.first.kept_float, **dict.fromkeys(sorted(given), back)})
        found = self.tried[count, weight]
        return found is not None and good(found[1])

    def _judged(self, kept: Mapping[str, KeptFloat]) -> tuple[Built, Verdict] | None:
        try:
            built = self.evaluator.build(kept)
            return built, self.evaluator.verdict(built)
        except RuntimeFailure:
            return None

    def _repaired(self, count: int, built: Built, verdict: Verdict) -> Repaired:
        return Repaired(built, verdict, tuple(self.ranking[:count]))


def fewest(least: int, limit: int, good: Callable[[int], bool]) -> int | None:
    """The smallest number above ``least`` and up to ``limit`` that is ``good``, by doubling and halving; None if none.

    What is good for a number is taken to be so for all above it.
    """
    if limit <= least:
        return None
    step = 1
    while least + step < limit and not good(least + step):
        step *= 2
    high = min(least + step, limit)
    if not good(high):
        return None
    low = least + step // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def ranked(
    first: Built,
    layers: Sequence[str],
    ranker: Ranker,
    *,
    progress: Progress | None = None,
    among: Sequence[str] | None = None,
) -> list[str]:
    """The ``layers`` of ``first``, the noisiest one first: each in turn is all that is rounded ``among`` all layers."""
    noise: dict[str, float] = {}
    alone = KeptFloat.of(ReasonCode.QUANTIZED_ALONE)
    for done, name in enumerate(layers, start=1):
        others = {n: alone for n in among or first.plan.layers if n != name}
        noise[name] = ranker.noise({**first.kept_float, **others})
        if progress is not None:
            progress(done, len(layers))
    return sorted(noise, key=lambda n: -noise[n])


def _ranked_stored(first: Built, stored: Sequence[str], ranker: Ranker, progress: Progress | None) -> list[str]:
    """The nodes that compute in float with ``stored`` weights, the noisiest one first."""
    return ranked(first, stored, ranker, progress=progress, among=(*first.plan.layers, *stored))


def summary(plan: Plan, fallback: tuple[str, ...]) -> str:
    """One line for the user about the layers that fell back to float."""
    total = len(plan.layers) + len(fallback)
    return f"{len(fallback)} of {total} layers stay float because they cost too much accuracy: {_named(fallback)}"


def notes(found: Repaired) -> list[str]:
    """Lines for the user about what became of a candidate."""
    lines = [summary(found.built.plan, found.fallback)] if found.fallback else []
    if found.between:
        count = f"{len(found.between)} nodes" if len(found.between) > 1 else "1 node"
        verb = "compute" if len(found.between) > 1 else "computes"
        lines.append(
            f"{count} between layers {verb} in float, so that what is handed on is not rounded again: "
            f"{_named(found.between)}"
        )
    if found.dynamic:
        lines.append(f"ranges measured at every run, for accuracy: {_named(found.dynamic)}")
    if found.stopped:
        lines.append(STOPPED)
    return lines


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
