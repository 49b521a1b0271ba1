"""``--tune``: candidates built into real models, timed against the best so far in interleaved pairs.

A cost table knows operators one by one; only a run of the whole network knows what its caches and layouts do with them.
In this order, as long as there is time:

1. integers wherever there is an integer kernel, against the placement that the cost table gave;
2. the best placement, by the same minimum cut, for the times that this machine's own profiles show for every node;
3. every convolution by the faster of its two kernels, by the profiles of both;
4. standard operators against onnxruntime's own;
5. nodes of one kind and size together, from integers to float or back, with whatever the minimum cut then changes
   around them: first those that take long and are about as fast either way.

A candidate is kept if the whole interval of its paired ratio lies below 1, over all numbers of threads together, and is
below 1 for none of them beyond doubt the other way. So the result is never knowingly slower than where it started.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy.typing as npt

from onnxq.build.build import Context, build
from onnxq.build.candidate import Built, Candidate
from onnxq.errors import RuntimeFailure
from onnxq.graph.runtime_model import to_runtime
from onnxq.kernels.costs import conversion_table
from onnxq.kernels.operators import operator
from onnxq.kernels.work import Shapes, work_of
from onnxq.measure.attribution import Attribution, attribute
from onnxq.measure.latency import benchmark
from onnxq.measure.profile import profile
from onnxq.plan import Plan, Storage, absorbed, make_plan
from onnxq.plan.place import Placement, tensor_shapes, wanted_on_integers
from onnxq.plan.placement import Costs, table_costs, uneconomic
from onnxq.query import nodes
from onnxq.report.report import Trial
from onnxq.search.acceptance import faster_with_all

_log = logging.getLogger("onnxq.search")

Feed = Mapping[str, npt.NDArray[Any]]

# A profile counts whole microseconds and disturbs what it measures: only a clear difference is believed.
_CLEARLY = 0.95
_PROFILE_RUNS = 8
_FEWEST_ROUNDS = 12
# Of the time for tuning, at most this share goes into one candidate, for each number of threads.
_ONE_CANDIDATE = 1 / 40
# What the confirmation of the final best takes of it.
_CONFIRMING = 1 / 12
# Cost of a node that shall not run that way; far above any kernel, far below what would swallow the others' digits.
_NEVER = 1e9


@dataclass(frozen=True)
class Tuning:
    """``placement`` and ``operators`` (as in ``Config``) of the fastest candidate; ``trials``: what was timed."""

    placement: Placement
    operators: str
    trials: tuple[Trial, ...] = ()
    reused: bool = False


@dataclass(frozen=True)
class _Variant:
    what: str
    placement: Placement
    operators: str

    @property
    def choice(self) -> tuple[frozenset[str], frozenset[str], frozenset[str], str]:
        placed = self.placement
        return frozenset(placed.keep_float), placed.force_gemm, placed.slower, self.operators


def tune(
    start: Candidate,
    context: Context,
    feeds: Sequence[Feed],
    *,
    threads: tuple[int, ...],
    seconds: float,
    seed: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Tuning:
    """The ``Tuning`` of ``start``'s model within about ``seconds``.

    Args:
        start: its placement is where the search starts.
        context: what it has observed serves every candidate.
        feeds: inputs to time on, taken in turn.
        threads: numbers of threads, which count alike.
        seconds: for timing; observing the calibration data and the last candidate come on top.
        seed: of the order of runs.
        progress: called with the seconds that have gone by and ``seconds``.
    """
    search = _Search(start, context, feeds, threads, seconds, seed)
    for candidate in search.candidates():
        search.consider(candidate)
        left = search.deadline - time.monotonic()
        progress(int(seconds - max(left, 0.0)), int(seconds))
        if left <= 0.0:
            break
    search.confirm()
    return Tuning(search.best.placement, search.best.operators, tuple(search.trials))


class _Search:
    def __init__(
        self,
        base: Candidate,
        context: Context,
        feeds: Sequence[Feed],
        threads: tuple[int, ...],
        seconds: float,
        seed: int,
    ) -> None:
        self.base, self.context, self.feeds = base, context, feeds
        self.threads, self.seconds, self.seed = threads, seconds, seed
        self.trials: list[Trial] = []
        self.everywhere = _Variant("integers wherever they can be", Placement(), base.config.operators)
        # First, so that all tensors are observed in one go.
        self.all_integer = self.build(self.everywhere)
        self.best = _Variant("by the cost table", base.placement, base.config.operators)
        self.fastest = self.build(self.best)
        self.start = self.best, self.fastest
        self.tried = {self.best.choice}
        self.deadline = time.monotonic() + seconds

    def candidates(self) -> Iterator[_Variant]:
        """What to try next, given what has won so far."""
        yield self.everywhere
        facts = _Facts(self)
        yield replace(self.best, what="by the profile of this machine", placement=facts.placement(self.best))
        gemm = facts.faster_as_products()
        if gemm != self.best.placement.force_gemm:
            placement = replace(self.best.placement, force_gemm=gemm)
            yield replace(self.best, what=f"{len(gemm)} convolutions as matrix products", placement=placement)
        if any(w.storage is Storage.FUSED for w in self.fastest.plan.weights):
            yield replace(self.best, what="standard operators only", operators="standard")
        for what, names, integer in facts.flips(self.best):
            before = self.best
            yield replace(
                before, what=what, placement=facts.placement(before, **{"to_integer" if integer else "to_float": names})
            )

    def consider(self, candidate: _Variant) -> None:
        """Times ``candidate`` against the best, and makes it the best if it is faster beyond noise."""
        if candidate.choice in self.tried:
            return
        self.tried.add(candidate.choice)
        try:
            built = self.build(candidate)
            if built.runtime_model == self.fastest.runtime_model:
                return
            trial = self._trial(candidate.what, self.fastest, built, self.seconds * _ONE_CANDIDATE)
        except RuntimeFailure as error:  # one of many
            _log.debug("%s: %s", candidate.what, error)
            return
        self.trials.append(trial)
        if trial.kept:
            self.best, self.fastest = candidate, built

    def confirm(self) -> None:
        """Goes back to the start unless the best beats that once more: of many candidates one may win by luck."""
        start, first = self.start
        if self.best is start:
            return
        trial = self._trial("the best of these, against the start", first, self.fastest, self.seconds * _CONFIRMING)
        self.trials.append(trial)
        if not trial.kept:
            self.best, self.fastest = start, first

    def _trial(self, what: str, before: Built, after: Built, seconds: float) -> Trial:
        report = benchmark(
            [before.runtime_model, after.runtime_model],
            self.feeds,
            threads=self.threads,
            seconds=seconds,
            min_rounds=_FEWEST_ROUNDS,
            seed=self.seed + len(self.trials),
            memory=False,
        )
        rows = [row for count in self.threads if (row := report.of(threads=count)[1]).sure]
        if not rows:  # others had the cores: nothing is known
            return Trial(what, 1.0, 0.0, math.inf, kept=False)
        ratio, low, high = (
            math.exp(sum(math.log(getattr(row, name)) for row in rows) / len(rows))
            for name in ("ratio", "ratio_low", "ratio_high")
        )
        return Trial(what, ratio, low, high, faster_with_all(high, [row.ratio_low for row in rows]))

    def build(self, candidate: _Variant) -> Built:
        config = replace(self.base.config, operators=candidate.operators)
        return build(replace(self.base, config=config, placement=candidate.placement), self.context)


class _Facts:
    """What profiles on this machine say of every node, in float and on integers."""

    def __init__(self, search: _Search) -> None:
        self.model, self.config, self.target = search.base.graph, search.base.config, search.context.target
        folder = search.context.folder
        self.plan: Plan = make_plan(self.model, self.config, self.target)
        self.table = conversion_table(self.target.name)
        self.search = search
        self.nodes = {n.name or "": n for n in nodes(self.model)}
        self.wanted = wanted_on_integers(self.model, self.config)
        self.shapes: Shapes = tensor_shapes(self.model, search.feeds[0], folder)
        in_float = self._attributed(to_runtime(self.model, folder))
        self.integer = self._attributed(search.all_integer.runtime_model)
        names = [n for n in self.plan.integer if n in search.all_integer.plan.integer]
        float_us = {n: self._unit(in_float, n) for n in names}
        integer_us = {n: self._unit(self.integer, n) for n in names}
        # What did not become an integer kernel is decided already.
        for name in set(self.plan.integer) - set(names):
            float_us[name], integer_us[name] = 0.0, _NEVER
        expected = table_costs(self.model, self.plan, self.shapes, self.table, self.target).float_us
        ratios = [float_us[n] / expected[n] for n in names if expected[n] > 0 and float_us[n] > 0]
        self.costs = Costs(float_us, integer_us, median(ratios) if ratios else 1.0)

    def placement(
        self, base: _Variant, *, to_float: tuple[str, ...] = (), to_integer: tuple[str, ...] = ()
    ) -> Placement:
        """The best placement by these times, the kernels of ``base`` as they are.

        Where it is decided how some nodes run, all others with weights stay as they are in ``base``: only what lies
        between them may follow.
        """
        decided = dict.fromkeys(to_integer, True) | dict.fromkeys(to_float, False)
        if decided:
            decided = {n: n not in base.placement.keep_float for n in self.plan.anchors} | decided
        float_us = {**self.costs.float_us, **{n: _NEVER for n, integer in decided.items() if integer}}
        integer_us = {**self.costs.integer_us, **{n: _NEVER for n, integer in decided.items() if not integer}}
        costs = Costs(float_us, integer_us, self.costs.pace)
        known = (self.model, self.plan, self.shapes, self.table, self.target)
        kept = uneconomic(*known, costs=costs, wanted=self.wanted)
        return replace(base.placement, keep_float=kept)

    def faster_as_products(self) -> frozenset[str]:
        """The convolutions that this machine runs faster by matrix products than directly."""
        convolutions = frozenset(n for n in self.plan.anchors if operator(self.nodes[n]).direct)
        if not convolutions:
            return convolutions
        force_gemm = replace(self.search.everywhere, placement=Placement(force_gemm=convolutions))
        times = self._attributed(self.search.build(force_gemm).runtime_model)
        return frozenset(
            n
            for n in convolutions
            if self._unit(times, n) < _CLEARLY * self._unit(self.integer, n) and n in times.nodes
        )

    def flips(self, base: _Variant) -> Iterator[tuple[str, tuple[str, ...], bool]]:
        """(what, nodes, whether to integers): nodes of one kind and size, the most promising first."""
        groups: dict[tuple[str, object, bool], list[str]] = defaultdict(list)
        for name in self.plan.integer:
            if self.costs.integer_us[name] < _NEVER and name not in self.wanted:
                node, on_integers = self.nodes[name], name not in base.placement.keep_float
                groups[node.op_type, work_of(node, self.shapes, self.target), not on_integers].append(name)

        def promise(names: list[str]) -> float:
            pairs = [(self.costs.float_us[n], self.costs.integer_us[n]) for n in names]
            both = [(a, b) for a, b in pairs if a > 0 and b > 0]
            return sum((a + b) * math.exp(-5.0 * abs(math.log(a / b))) for a, b in both)

        for (op, _, integer), names in sorted(groups.items(), key=lambda item: -promise(item[1])):
            example = f"{names[0]}" + (f" and {len(names) - 1} like it" if len(names) > 1 else "")
            yield f"{op} {example} {'to integers' if integer else 'to float'}", tuple(names), integer

    def _attributed(self, runtime_model: bytes | Path) -> Attribution:
        return attribute(runtime_model, profile(runtime_model, self.search.feeds, runs=_PROFILE_RUNS))

    def _unit(self, times: Attribution, name: str) -> float:
        """Microseconds of a node and of what its integer kernel takes in."""
        node = self.nodes[name]
        inner = (name, *(n.name or "" for n in absorbed(node)))
        return sum(times.nodes[n].microseconds for n in inner if n in times.nodes)
