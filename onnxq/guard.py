"""Keeps the promise of accuracy: where held-out data shows that too much was lost, the noisiest layers return to float.

Layers are ranked by the noise that each makes at the model's outputs when it alone is quantized. Noise of small,
independent sources adds up, so the top of that list is where giving up speed buys most accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxq.build import Built
from onnxq.config import Config
from onnxq.measure.compare import Comparison, compare
from onnxq.plan import KeptFloat, Plan

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]
Build = Callable[[Mapping[str, KeptFloat]], Built]

# With fewer disagreements than chance explains at this level, the held-out data does not contradict the promise.
_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """What held-out data says of a candidate. ``agreement`` and ``sqnr_db`` are the worst over the outputs."""

    comparison: Comparison
    agreement: float
    sqnr_db: float
    good: bool


def judge(float_model: bytes | Path, quantized: bytes | Path, held_out: Feeds, config: Config) -> Verdict:
    """The ``Verdict`` on ``quantized`` over ``held_out``, data that calibration never saw."""
    comparison = compare(float_model, quantized, held_out)
    agreement, sqnr, good = 1.0, math.inf, not comparison.problems
    for output in comparison.outputs:
        if output.agreement is not None:
            agreement = min(agreement, output.agreement)
            good &= not _contradicts(output.agreement, output.rows, config.min_agreement)
        level = output.sqnr_db if output.centred_sqnr_db is None else output.centred_sqnr_db
        if level is not None:
            sqnr = min(sqnr, level)
    return Verdict(comparison, agreement, sqnr, bool(good) and sqnr >= config.guard_sqnr)


def _contradicts(agreement: float, rows: int, promised: float) -> bool:
    """Whether so few agreeing rows of ``rows`` are improbable if the true share is ``promised`` (binomial tail)."""
    misses = rows - int(agreement * rows + 0.5)
    if agreement >= promised or misses == 0:
        return False
    p = 1.0 - promised
    if p <= 0.0:
        return True
    # P(X >= misses) = 1 - P(X <= misses - 1), summed in logarithms so that many rows do not underflow.
    below = sum(
        math.exp(
            math.lgamma(rows + 1)
            - math.lgamma(k + 1)
            - math.lgamma(rows - k + 1)
            + k * math.log(p)
            + (rows - k) * math.log1p(-p)
        )
        for k in range(misses)
    )
    return 1.0 - below < _SIGNIFICANCE


def repair(
    first: Built,
    build: Build,
    verdict_of: Callable[[Built], Verdict],
    noise_of: Callable[[Built], float],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Built, Verdict, tuple[str, ...]]:
    """The candidate with the fewest float layers that is good, its verdict, and the names of the layers given back.

    Where none is good, the best one by (agreement, SQNR). ``noise_of`` is the relative noise energy at the outputs.
    """
    verdict = verdict_of(first)
    if verdict.good or not first.plan.anchors:
        return first, verdict, ()
    ranking = _ranking(first, build, noise_of, progress)
    tried: dict[int, tuple[Built, Verdict]] = {0: (first, verdict)}

    def attempt(count: int) -> bool:
        if count not in tried:
            given_back = {n: KeptFloat("given back to float: it cost too much accuracy") for n in ranking[:count]}
            candidate = build({**first.kept_float, **given_back})
            tried[count] = (candidate, verdict_of(candidate))
        return tried[count][1].good

    limit = len(ranking)
    high = 1
    while high < limit and not attempt(high):
        high *= 2
    high = min(high, limit)
    if attempt(high):
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if attempt(middle) else (middle, high)
        best = high
    else:
        best = max(tried, key=lambda c: (tried[c][1].agreement, tried[c][1].sqnr_db))
    return (*tried[best], tuple(ranking[:best]))


def _ranking(
    first: Built, build: Build, noise_of: Callable[[Built], float], progress: Callable[[int, int], None] | None
) -> list[str]:
    """The anchors of ``first``, the noisiest one first."""
    noise: dict[str, float] = {}
    for done, name in enumerate(first.plan.anchors, start=1):
        others = {n: KeptFloat("quantized alone") for n in first.plan.anchors if n != name}
        noise[name] = noise_of(build({**first.kept_float, **others}))
        if progress is not None:
            progress(done, len(first.plan.anchors))
    return sorted(noise, key=lambda n: -noise[n])


def summary(plan: Plan, given_back: tuple[str, ...]) -> str:
    """One line for the user about what was given back."""
    shown = ", ".join(given_back[:4]) + (", ..." if len(given_back) > 4 else "")
    total = len(plan.anchors) + len(given_back)
    return f"{len(given_back)} of {total} layers stay float because they cost too much accuracy: {shown}"
