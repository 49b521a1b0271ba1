"""The cheapest step towards float that is good, with few trials.

Each step makes less noise than the one before it and takes longer. How much noise is too much only the judge knows: the
budget is found by taking more and more of it away, in decibels, and then by halving the time between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from onnxq.build.candidate import Built
from onnxq.errors import RuntimeFailure
from onnxq.plan import KeptFloat, ReasonCode, Storage
from onnxq.plan.tradeoff import Step
from onnxq.report.curve import CurvePoint
from onnxq.search.acceptance import Verdict

# What the first trial takes away, in decibels, and how many times as much each further one does.
_FIRST_GAIN, _GROWTH = 1.0, 2.5
# Of the time between all integers and float: steps nearer to each other than that need not be told apart.
_CLOSE = 0.03
# Where more of it is given away than that, another way is looked for.
_DEAR = 0.5
_LEAST_NOISE = 1e-15


class Evaluator(Protocol):
    """Makes a candidate with some nodes kept float, and judges one."""

    def build(self, kept: Mapping[str, KeptFloat]) -> Built:
        """The candidate with ``kept`` float."""

    def verdict(self, built: Built) -> Verdict:
        """What is said of it."""


class Tried(NamedTuple):
    """A step that was built, and the verdict on it."""

    step: Step
    built: Built
    verdict: Verdict


@dataclass
class Climb:
    """A way from ``first``, which is not good, through stages of steps.

    ``most``: the share of the time between the candidate and float that may be given away.
    """

    first: Built
    verdict: Verdict
    evaluator: Evaluator
    most: float = 1.0
    tried: list[Tried] = field(default_factory=list)
    _span: tuple[float, float] = (0.0, 0.0)  # the time of the candidate and of float, and what they cost beside it
    _in_float: float = 0.0  # microseconds

    def good(self, stages: Iterable[Sequence[Step]]) -> Tried | None:
        """The fastest step found that is good; None where none is."""
        least = math.inf
        for steps in stages:
            if not self.tried:
                self._span, self._in_float = (steps[0].time, steps[-1].time), steps[-1].microseconds
                self.tried.append(Tried(steps[0], self.first, self.verdict))
            allowed = [s for s in steps if self._share(s) <= self.most]
            # What makes more noise than what was too noisy before is no better for having float weights.
            further = [s for s in allowed if s.noise < least]
            found = self._search(further) if further else None
            if found is not None:
                return found
            least = min([least, *(s.noise for s in allowed)])
            if self.most < 1.0:
                return None
        return None

    def best(self) -> Tried:
        """The best of all that were tried, where none is good."""
        return max(self.tried, key=lambda tried: tried.verdict.standing)

    def curve(self, taken: Built) -> tuple[CurvePoint, ...]:
        """All that were tried, with the one that is ``taken`` marked."""
        whole = self._in_float
        return tuple(
            CurvePoint(
                described(self.first, step),
                step.microseconds / whole if whole > 0.0 else None,
                verdict.agreement,
                verdict.sqnr_db,
                verdict.good,
                built is taken,
                verdict.weakest,
            )
            for step, built, verdict in self.tried
        )

    def dear(self, built: Built) -> bool:
        """Whether ``built``, one of those tried, gives away so much time that another way is worth a look."""
        return self._share(self._step_of(built)) > _DEAR

    def cheaper(self, other: Tried, built: Built) -> bool:
        """Whether ``other``, which is on the curve from now on, takes less time than ``built``, one of those tried."""
        self.tried.append(other)
        return other.step.time < self._step_of(built).time

    def _step_of(self, built: Built) -> Step:
        return next(tried.step for tried in self.tried if tried.built is built)

    def _search(self, steps: Sequence[Step]) -> Tried | None:
        """The first good one of ``steps``; what is good for one is taken to be so for all behind it."""
        found: dict[int, Tried | None] = {}

        def good(index: int) -> bool:
            if index not in found:
                found[index] = self._judged(steps[index])
            tried = found[index]
            return tried is not None and tried.verdict.good_but_for_lengths

        low = 0 if not steps[0].ways else -1  # as planned: known to be bad
        gain, last = _FIRST_GAIN, len(steps) - 1
        while low < last:
            high = next((i for i in range(low + 1, last) if level(steps[i]) <= level(steps[0]) - gain), last)
            if good(high):
                break
            low, gain = high, _GROWTH * gain
        else:
            return None
        while high - low > 1 and not self._close(steps[max(low, 0)], steps[high]):
            aim = (steps[max(low, 0)].time + steps[high].time) / 2.0
            middle = min(range(low + 1, high), key=lambda i: abs(steps[i].time - aim))
            low, high = (low, middle) if good(middle) else (middle, high)
        return found[high]

    def _close(self, one: Step, other: Step) -> bool:
        return abs(self._share(other) - self._share(one)) <= _CLOSE

    def _judged(self, step: Step) -> Tried | None:
        try:
            built = self.evaluator.build({**self.first.kept_float, **kept_float(step)})
            tried = Tried(step, built, self.evaluator.verdict(built))
        except RuntimeFailure:
            return None
        self.tried.append(tried)
        return tried

    def _share(self, step: Step) -> float:
        """How far ``step`` is from the candidate towards float, by time."""
        start, end = self._span
        return 0.0 if end <= start else (step.time - start) / (end - start)


def level(step: Step) -> float:
    """The noise of ``step`` in decibels."""
    return 10.0 * math.log10(max(step.noise, _LEAST_NOISE))


def kept_float(step: Step) -> dict[str, KeptFloat]:
    """What ``step`` asks of a candidate."""
    codes: dict[Storage | None, ReasonCode] = {Storage.TWO_PARTS: ReasonCode.TWO_PARTS}
    return {n: KeptFloat.of(codes.get(w.weight, ReasonCode.ACCURACY), w.weight) for n, w in sorted(step.ways.items())}


def _layers(count: int) -> str:
    return f"{count} layer" + ("s" if count != 1 else "")


def described(first: Built, step: Step) -> str:
    """``step`` in a few words."""
    layers, integer = set(first.plan.layers), set(first.plan.integer)
    gone = {name: way for name, way in step.ways.items() if not way.integer}
    dynamic = sum(way.weight is Storage.DYNAMIC for way in gone.values())
    twice = sum(way.weight is Storage.TWO_PARTS for way in gone.values())
    count = sum(name in layers for name in gone) - dynamic - twice
    others = sum(name in integer - layers for name in gone)
    stored = sum(name not in integer | layers for name in gone)
    bare = sum(name in layers and way.weight is None for name, way in gone.items())
    parts = [f"{count} of {len(layers)} layers float"] if count else []
    parts += [f"{bare} of these with their weights"] if bare else []
    parts += [f"{others} nodes between layers float"] if others else []
    parts += [f"{_layers(dynamic)} with ranges of the run"] if dynamic else []
    parts += [f"{_layers(twice)} read in two parts"] if twice else []
    parts += [f"{stored} weights float again"] if stored else []
    return ", ".join(parts) or "as planned"
