"""Keeps the promise of accuracy: where held-out data shows that too much was lost, the noisiest layers return to float.

Layers are ranked by the noise that each makes at the model's outputs when it alone is quantized. Noise of small,
independent sources adds up, so the top of that list is where giving up speed buys most accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

from onnxq.build.builder import Built
from onnxq.config import Config
from onnxq.measure.compare import Comparison, OutputComparison, compare
from onnxq.plan import KeptFloat, Plan, ReasonCode, Storage

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]
Build = Callable[[Mapping[str, KeptFloat]], Built]
End: TypeAlias = "tuple[Built, Verdict, tuple[str, ...]]"  # of repairing: what is left of it, names of what went back

# Above this many dB an entry that is no longer the largest of its row was as good as tied: such rows are no evidence,
# and for outputs that are features rather than scores the largest entry means nothing anyway. (Probabilities are
# scores, and most of their energy is in rows that nothing could change: there the agreement always counts.) By rank of
# the output: a sequence of vectors is features as often as scores, and features serve at 20 dB.
CLEAN_SQNR = {0: 30.0, 1: 30.0, 2: 30.0, 3: 20.0}

# With fewer disagreements than chance explains at this level, the held-out data does not contradict the promise.
_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """What held-out data says of a candidate.

    ``agreement`` is that of the primary output (the largest entry of a hidden state decides nothing); ``sqnr_db`` the
    worst over all outputs.
    """

    comparison: Comparison
    agreement: float
    sqnr_db: float
    good: bool


def judge(float_model: bytes | Path, quantized: bytes | Path, held_out: Feeds, config: Config) -> Verdict:
    """The ``Verdict`` on ``quantized`` over ``held_out``, data that calibration never saw."""
    comparison = compare(float_model, quantized, held_out, few=True)
    sqnr, good = math.inf, not comparison.problems
    primary = comparison.primary
    agreement = 1.0 if primary.agreement is None else primary.agreement
    level = primary.level_db
    if primary.agreement is None and level is not None:
        # Maps and boxes: there is no decision to count.
        good &= config.min_agreement == 0.0 or level >= CLEAN_SQNR[3]
    elif level is None or level < CLEAN_SQNR[min(primary.rank, 3)] or primary.probability:
        good &= not _contradicts(agreement, primary.rows, promised(primary, config))
    for output in comparison.outputs:
        if output.level_db is not None:
            sqnr = min(sqnr, output.level_db)
    return Verdict(comparison, agreement, sqnr, bool(good) and sqnr >= config.guard_sqnr)


def promised(output: OutputComparison, config: Config) -> float:
    """The share of rows of ``output`` that must agree.

    Where a sample has one row, that row is the decision. In a sequence many rows decide nothing by themselves (blanks
    between characters, the inside of a word): two of them may change for one decision that may. (With three the text
    recognition of PP-OCRv5 had 2.6 points more wrong characters than in float, with two 0.4.)
    """
    rows_a_decision = 1 if output.rank <= 2 else 2
    return 1.0 - rows_a_decision * (1.0 - config.min_agreement)


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
    verdict: Verdict,
    build: Build,
    verdict_of: Callable[[Built], Verdict],
    noise_alone: Callable[[Mapping[str, KeptFloat]], float],
    *,
    goes_with: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> End:
    """The candidate with the fewest float layers that is good, its verdict, and the names of the layers given back.

    ``verdict`` is that of ``first``. A layer given back first keeps its weights as int8, since it is mostly activations
    that 8 bits are too few for; if that is good for no number of layers, they get their float weights back too, and
    then the nodes that compute in float with stored weights. Where nothing is good, the best one by (agreement, SQNR).
    ``noise_alone`` gives the relative noise energy at the outputs of a draft with the given nodes kept float. A layer
    that only serves another one goes with that: ``goes_with``, by its name, that of the other.
    """
    goes_with = goes_with or {}
    layers = [name for name in first.plan.layers if name not in goes_with]
    stored = list(dict.fromkeys(w.node for w in first.plan.weights if w.node not in first.plan.layers))
    if verdict.good or not (layers or stored):
        return first, verdict, ()
    ranking = _ranking(first, layers, noise_alone, progress)
    tried: dict[tuple[int, Storage | None], tuple[Built, Verdict]] = {(0, Storage.PACKED): (first, verdict)}

    def attempt(count: int, weight: Storage | None) -> bool:
        if (count, weight) not in tried:
            given = set(ranking[:count])
            given.update(layer for layer, served in goes_with.items() if served in given)
            back = KeptFloat.of(ReasonCode.ACCURACY, weight)
            candidate = build({**first.kept_float, **dict.fromkeys(sorted(given), back)})
            tried[count, weight] = (candidate, verdict_of(candidate))
        return tried[count, weight][1].good

    def fewest(least: int, weight: Storage | None) -> int | None:
        return _fewest(least, len(ranking), lambda count: attempt(count, weight))

    weight: Storage | None = Storage.PACKED
    count = fewest(0, weight)
    if count is None:
        weight = None
        count = fewest(0, weight)
    if count is None and stored:
        ranking += _ranking(first, stored, noise_alone, progress, among=(*first.plan.layers, *stored))
        count = fewest(len(layers), None)
    if count is None:
        count, weight = max(tried, key=lambda key: (tried[key][1].agreement, tried[key][1].sqnr_db))
    return (*tried[count, weight], tuple(ranking[:count]))


def _fewest(least: int, limit: int, good: Callable[[int], bool]) -> int | None:
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


def _ranking(
    first: Built,
    layers: Sequence[str],
    noise_alone: Callable[[Mapping[str, KeptFloat]], float],
    progress: Callable[[int, int], None] | None,
    among: Sequence[str] | None = None,
) -> list[str]:
    """The ``layers`` of ``first``, the noisiest one first: each in turn is all that is rounded ``among`` all layers."""
    noise: dict[str, float] = {}
    for done, name in enumerate(layers, start=1):
        others = {n: KeptFloat.of(ReasonCode.QUANTIZED_ALONE) for n in among or first.plan.layers if n != name}
        noise[name] = noise_alone({**first.kept_float, **others})
        if progress is not None:
            progress(done, len(layers))
    return sorted(noise, key=lambda n: -noise[n])


def summary(plan: Plan, given_back: tuple[str, ...]) -> str:
    """One line for the user about what was given back."""
    shown = ", ".join(given_back[:4]) + (", ..." if len(given_back) > 4 else "")
    total = len(plan.layers) + len(given_back)
    return f"{len(given_back)} of {total} layers stay float because they cost too much accuracy: {shown}"
