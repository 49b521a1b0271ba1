"""What is accepted and why not: the promise of accuracy, size and speed, with every threshold that it rests on.

Each rule is a function of measurements that others made; nothing here runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from onnxq.config import Config
from onnxq.measure.certainty import Certainty
from onnxq.measure.compare import Comparison
from onnxq.measure.kinds import Promise
from onnxq.measure.kinds.classes import ROUNDED_NUMBERS
from onnxq.measure.latency import LatencyReport
from onnxq.measure.metric import MetricComparison
from onnxq.measure.outputs import COUNTERPARTS
from onnxq.numerics.share import Share, incomplete_beta, lower_end

# Samples of another length for each decision that may change: a length adds up dozens of rounded numbers (predicted
# durations), so that with the default promise a quarter of the samples may have another one.
LENGTHS_A_DECISION = 25
# The largest share of multiply-accumulates that goes back to float to decide lengths as the float model does.
DECIDING_WORK = 0.2

# With fewer disagreements than chance explains at this level, the held-out data does not contradict the promise.
SIGNIFICANCE = 0.05
# Decisions may all stay as they are; numbers that 8 bits made are always off by something, and 27 dB are within reach
# of most networks. No promise asks for less noise than that.
LEAST_LOSS = 0.002
# What 1 less a power of ten is off by in floating point.
ROUNDING = 1e-12

# Below so many samples none is held out: the judgement would rest on one or two of them.
FEW_SAMPLES = 8
# Samples that adaptation needs for each batch of a model whose batch is fixed: to fit to, and an eighth to judge by.
BATCHES_TO_ADAPT = 4
# The most held-out feeds that a judgement runs.
JUDGED_FEEDS = 64
# The fewest and the most feeds that rank layers: each costs a run for every layer, and where one has many activations
# it says much by itself; between, as many as this many elements of activations allow.
RANKED_FEEDS = (2, 8)
RANKED_ELEMENTS = 1 << 26
# The second check set: at most so many calibration samples, and of large models only what this many elements of
# activations allow, as far as histograms counted them, for each costs a run of both models; and where maps are so large
# that histograms count a small part of them, what so many elements in all allow.
SECOND_CHECK_SAMPLES = 256
SECOND_CHECK_ELEMENTS = 1 << 24
# The most samples of the data that nothing was fitted to, beyond those held out; and of made ones: so many, no more
# than ``AFFORDABLE_ELEMENTS`` or half of the calibration samples allow; at least so many at once, and so many of each
# sample, for a few that hang together stand for few.
UNUSED_SAMPLES = 512
MADE_SAMPLES = 1024
MADE_AT_LEAST = 64
MADE_OF_EACH = 8
AFFORDABLE_ELEMENTS = 1 << 29

# A smaller share of layers that fall back to float is no reason to look for another way.
FEW_FALLBACKS = 0.05
# The share of the gain in speed that ``keep_accuracy = "fast"`` gives away at most.
FAST_SHARE = 0.05
# Held-out feeds that are timed, and the seconds for which two ways to be good are timed against each other.
TIMED_FEEDS = 4
TIMED_SECONDS = 2.0
# Samples of which the one of middle size decides where integers pay.
SIZED_FEEDS = 9


class Shortfall(Enum):
    """Why a candidate is not accepted; the value is the text."""

    BROKEN = "its outputs are not finite or have other shapes"
    AGREEMENT = "more decisions change than were promised, beyond chance"
    LEVEL = "an output is not as close to the float model as was promised"
    SQNR = "an output has too much noise"
    LENGTHS = "more lengths, or more of what is picked, change than were promised, beyond chance"
    SECOND_CHECK = "the second check set contradicts the promise"
    METRIC = "the metric loses more than max_drop"


@dataclass(frozen=True)
class Verdict:
    """What data says of a candidate.

    ``agreement``: the lowest share of decisions that stay, over all outputs that decide; ``sqnr_db``: the worst too.
    ``shortfalls``: why it is not ``good``. ``metric``: what the user's own measure says, where there is one; then that
    decides. ``certainties``: how sure what was counted is, where that was asked.
    """

    comparison: Comparison
    agreement: float
    sqnr_db: float
    good: bool
    shortfalls: tuple[Shortfall, ...] = ()
    metric: MetricComparison | None = None
    certainties: tuple[Certainty, ...] = ()

    @property
    def standing(self) -> tuple[bool, float, float]:
        """What the better of two has more of, the first difference counts."""
        return self.good, self.agreement if self.metric is None else self.metric.after, self.sqnr_db

    @property
    def weakest(self) -> Share | None:
        """What was counted of the output whose decisions change most; None where no output decides."""
        counted = [o.share for o in self.comparison.outputs if o.share is not None and o.share.rows]
        return min(counted, default=None, key=lambda share: share.value)

    @property
    def good_but_for_lengths(self) -> bool:
        """Whether no other layers in float than those that decide lengths would make it better."""
        return self.good or self.shortfalls == (Shortfall.LENGTHS,)

    def weighed(self, certainties: tuple[Certainty, ...]) -> Verdict:
        """The same where it is known how sure it is; what contradicts a promise is a shortfall."""
        found = replace(self, certainties=certainties)
        return found.contradicted() if any(speaks_against(certainty) for certainty in certainties) else found

    def contradicted(self, why: Shortfall = Shortfall.SECOND_CHECK) -> Verdict:
        """The same where the second check set says no; the figures stay those of the held-out samples."""
        return replace(self, good=False, shortfalls=(*self.shortfalls, why))

    @property
    def proven(self) -> bool:
        """Whether it is good and the intervals of all that was counted say so."""
        if self.metric is not None:
            return self.good and self.metric.proven
        return self.good and bool(self.certainties) and all(certainty.kept for certainty in self.certainties)

    def measured(self, metric: MetricComparison) -> Verdict:
        """The same where ``metric`` decides; what is broken stays so."""
        broken = (Shortfall.BROKEN,) if Shortfall.BROKEN in self.shortfalls else ()
        shortfalls = broken if metric.good else (*broken, Shortfall.METRIC)
        return replace(self, good=not shortfalls, shortfalls=shortfalls, metric=metric)


def accepts(comparison: Comparison, config: Config) -> Verdict:
    """The ``Verdict`` by a comparison with the float model on data that calibration never saw.

    Every output is judged by what its kind promises, and the worst counts.
    """
    shortfalls = [Shortfall.BROKEN] if comparison.problems else []
    broken = [p for o in comparison.outputs for p in o.promises if not keeps(p, config)]
    # What decides on how many counterparts there are decides on the numbers too that lengths are sums of.
    summed = any(o.length is not None for o in comparison.outputs)
    lengths = [p for p in broken if p.what == COUNTERPARTS or (summed and p.what in ROUNDED_NUMBERS)]
    if any(p.share is not None and p not in lengths for p in broken):
        shortfalls.append(Shortfall.AGREEMENT)
    if any(p.level is not None for p in broken):
        shortfalls.append(Shortfall.LEVEL)
    sqnr = min((o.level_db for o in comparison.outputs if o.level_db is not None), default=math.inf)
    if not sqnr >= config.guard_sqnr:
        shortfalls.append(Shortfall.SQNR)
    series = [o for o in comparison.outputs if o.agreement_rule != COUNTERPARTS]
    if lengths or any(contradicts(o.lengths, share(config, LENGTHS_A_DECISION)) for o in series):
        shortfalls.append(Shortfall.LENGTHS)
    shares = [o.agreement for o in comparison.outputs if o.agreement is not None]
    return Verdict(comparison, min(shares, default=1.0), sqnr, not shortfalls, tuple(shortfalls))


def keeps(promise: Promise, config: Config) -> bool:
    """Whether nothing speaks against ``promise``: a share not beyond chance, a level not at all.

    Where no agreement is asked for, nothing is promised.
    """
    least = share(config, promise.times)
    if promise.share is not None:
        return not contradicts(promise.share, least, spare=promise.spare)
    least = min(least, 1.0 - LEAST_LOSS * promise.times)
    return config.min_agreement == 0.0 or promise.level is None or promise.level >= least - ROUNDING


def share(config: Config, rows: int) -> float:
    """The share that must agree of what may change ``rows`` times for each decision that may."""
    return 1.0 - rows * (1.0 - config.promised_agreement)


def contradicts(found: Share, promised: float, *, spare: int = 0) -> bool:
    """Whether so many that changed, less ``spare``, are improbable if the true share is ``promised``.

    By the binomial tail; what is counted within one sample hangs together, so that it counts as fewer
    (``Share.design_effect``).
    """
    p, misses = 1.0 - promised, found.rows - found.same
    if not misses or found.value >= promised:
        return False
    if p <= 0.0:  # where all are promised, all it is
        return True
    misses -= spare
    if misses <= 0:
        return False
    effect = found.design_effect
    # P(X >= misses) of so many independent ones, as the incomplete beta function, which takes parts of them too.
    return incomplete_beta(misses / effect, (found.rows - misses) / effect + 1.0, p) < SIGNIFICANCE


def speaks_against(certainty: Certainty) -> bool:
    """Whether what was counted contradicts the promise."""
    return contradicts(certainty.counted, certainty.promised, spare=certainty.spare)


def rows_to_prove(misses: int, promised: float) -> int:
    """How many decisions prove ``promised`` if so many changed; as sure as with one that changed if none did."""
    misses = max(misses, 1)
    low, high = misses, 2 * misses
    while high < MADE_SAMPLES << 8 and lower_end(high - misses, high) < promised:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if lower_end(middle - misses, middle) >= promised else (middle, high)
    return high


def as_asked(verdict: Verdict, config: Config) -> Verdict:
    """``verdict`` where no layer is to fall back to float for accuracy: then only what is broken counts.

    What the user measures counts always.
    """
    return (
        verdict
        if config.guarded or verdict.metric is not None
        else replace(verdict, good=not verdict.comparison.problems)
    )


# -- of two candidates ------------------------------------------------------------------------------------------------


def less_noise(second: Verdict, first: Verdict) -> bool:
    """Whether ``second`` loses less than ``first``, by the SQNR; not where they are equal."""
    return second.sqnr_db > first.sqnr_db


def promising(second: Verdict, first: Verdict) -> bool:
    """Whether ``second``, which was made since ``first`` is not good, is the one to start from."""
    return second.good or less_noise(second, first)


def good_enough(verdict: Verdict, fallbacks: int, layers: int) -> bool:
    """Whether no other way is looked for, since few of ``layers`` had to fall back to float."""
    return verdict.good and fallbacks <= FEW_FALLBACKS * layers


def faster(ratio_high: float) -> bool:
    """Whether the second of two is faster beyond doubt; ``ratio_high``: the upper end of the ratio of their times."""
    return ratio_high < 1.0


def faster_with_all(ratio_high: float, lowest: Iterable[float]) -> bool:
    """``faster`` over all numbers of threads together, and slower beyond doubt with none of them (``lowest`` ends)."""
    return faster(ratio_high) and all(low <= 1.0 for low in lowest)


# -- never larger, never slower ---------------------------------------------------------------------------------------


def smaller_file(quantized_bytes: int, float_bytes: int) -> bool:
    """Whether storing weights as integers was worth it."""
    return quantized_bytes < float_bytes


def slower(latency: LatencyReport | None) -> bool:
    """Whether the second model was timed and is noticeably slower than the first, beyond doubt."""
    return latency is not None and latency.slower


def most_given(config: Config) -> float:
    """The share of the time between integers and float that may be given away for accuracy."""
    return FAST_SHARE if config.keep_accuracy == "fast" else 1.0


# -- how much data a judgement takes ----------------------------------------------------------------------------------


def ranked_feeds(elements: float) -> int:
    """How many feeds rank the layers of a model with so many ``elements`` of activations for each."""
    fewest, most = RANKED_FEEDS
    return int(min(most, max(fewest, RANKED_ELEMENTS // max(1.0, elements))))


def second_check_samples(elements: float) -> int:
    """How many calibration samples a model with so many ``elements`` of activations for each can be judged on too."""
    return int(min(SECOND_CHECK_SAMPLES, max(1.0, SECOND_CHECK_ELEMENTS / max(elements, 1.0))))


def made_samples(elements: float, calibrated: int) -> int:
    """How many made samples a model with so many ``elements`` of activations is judged on too at most.

    Each costs a run of both models, about half of what observing a calibration sample does.
    """
    return min(MADE_SAMPLES, max(affordable_samples(elements), calibrated // 2))


def affordable_samples(elements: float) -> int:
    """How many samples with so many ``elements`` of activations a check may take, whatever it is for."""
    return max(1, int(AFFORDABLE_ELEMENTS / max(elements, 1.0)))
