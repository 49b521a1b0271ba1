"""What is accepted and why not: the promise of accuracy, size and speed, with every threshold that it rests on.

Each rule is a function of measurements that others made; nothing here runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from onnxq.config import Config
from onnxq.measure.compare import Comparison, OutputComparison
from onnxq.measure.latency import LatencyReport
from onnxq.measure.outputs import COUNTERPARTS

# Above this many dB an entry that is no longer the largest of its row was as good as tied: such rows are no evidence,
# and for outputs that are features rather than scores the largest entry means nothing anyway. (Probabilities are
# scores, and most of their energy is in rows that nothing could change: there the agreement always counts.) By rank of
# the output: a sequence of vectors is features as often as scores, and features serve at 20 dB.
CLEAN_SQNR = {0: 30.0, 1: 30.0, 2: 30.0, 3: 20.0}

# Rows that may change for each decision that may: where a sample has one row, and in sequences. (With three in
# sequences the text recognition of PP-OCRv5 had 2.6 points more wrong characters than in float, with two 0.4.)
ROWS_A_DECISION = 1
ROWS_A_DECISION_IN_SEQUENCES = 2
# The same of detections, and of all that is picked by its value: what lies near the threshold comes and goes.
PICKED_ROWS_A_DECISION = 10
# Samples of another length for each decision that may change: a length adds up dozens of rounded numbers (predicted
# durations), so that with the default promise a quarter of the samples may have another one.
LENGTHS_A_DECISION = 25
# The largest share of multiply-accumulates that goes back to float to decide lengths as the float model does.
DECIDING_WORK = 0.2

# With fewer disagreements than chance explains at this level, the held-out data does not contradict the promise.
SIGNIFICANCE = 0.05

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
    FEATURES = "an output without decisions has too much noise"
    SQNR = "an output has too much noise"
    LENGTHS = "more lengths, or more of what is picked, change than were promised, beyond chance"
    SECOND_CHECK = "the second check set contradicts the promise"


@dataclass(frozen=True)
class Verdict:
    """What data says of a candidate.

    ``agreement`` is that of the primary output (the largest entry of a hidden state decides nothing); ``sqnr_db`` the
    worst over all outputs. ``shortfalls``: why it is not ``good``.
    """

    comparison: Comparison
    agreement: float
    sqnr_db: float
    good: bool
    shortfalls: tuple[Shortfall, ...] = ()

    @property
    def standing(self) -> tuple[bool, float, float]:
        """What the better of two has more of, the first difference counts."""
        return self.good, self.agreement, self.sqnr_db

    @property
    def good_but_for_lengths(self) -> bool:
        """Whether no other layers in float than those that decide lengths would make it better."""
        return self.good or self.shortfalls == (Shortfall.LENGTHS,)

    def contradicted(self, why: Shortfall = Shortfall.SECOND_CHECK) -> Verdict:
        """The same where the second check set says no; the figures stay those of the held-out samples."""
        return replace(self, good=False, shortfalls=(*self.shortfalls, why))


def accepts(comparison: Comparison, config: Config) -> Verdict:
    """The ``Verdict`` by a comparison with the float model on data that calibration never saw."""
    shortfalls = [Shortfall.BROKEN] if comparison.problems else []
    primary = comparison.primary
    agreement = 1.0 if primary.agreement is None else primary.agreement
    level = primary.level_db
    if primary.agreement is None and level is not None:
        # Maps and boxes: there is no decision to count.
        if config.min_agreement != 0.0 and not level >= CLEAN_SQNR[3]:
            shortfalls.append(Shortfall.FEATURES)
    else:
        counts = level is None or level < CLEAN_SQNR[min(primary.rank, 3)] or primary.probability
        # How many counterparts there are is a question of what decides on them.
        if (
            counts
            and primary.agreement_rule != COUNTERPARTS
            and contradicts(agreement, primary.rows, promised(primary, config))
        ):
            shortfalls.append(Shortfall.AGREEMENT)
    sqnr = min((o.level_db for o in comparison.outputs if o.level_db is not None), default=math.inf)
    if not sqnr >= config.guard_sqnr:
        shortfalls.append(Shortfall.SQNR)
    if other_lengths(comparison, config):
        shortfalls.append(Shortfall.LENGTHS)
    return Verdict(comparison, agreement, sqnr, not shortfalls, tuple(shortfalls))


def other_lengths(comparison: Comparison, config: Config) -> bool:
    """Whether outputs that are as long as values say contradict the promise: by counterparts, or by lengths alone."""
    picked = next((o for o in comparison.outputs if o.agreement_rule == COUNTERPARTS and o.agreement is not None), None)
    if picked is not None and contradicts(picked.agreement or 0.0, picked.rows, share(config, PICKED_ROWS_A_DECISION)):
        return True
    series = [o for o in comparison.outputs if o.agreement_rule != COUNTERPARTS]
    return any(contradicts(o.same_length, o.samples, share(config, LENGTHS_A_DECISION)) for o in series)


def promised(output: OutputComparison, config: Config) -> float:
    """The share of rows of ``output`` that must agree.

    Where a sample has one row, that row is the decision. In a sequence many rows decide nothing by themselves (blanks
    between characters, the inside of a word): more of them may change for one decision that may.
    """
    return share(config, ROWS_A_DECISION if output.rank <= 2 else ROWS_A_DECISION_IN_SEQUENCES)


def share(config: Config, rows: int) -> float:
    """The share that must agree of what may change ``rows`` times for each decision that may."""
    return 1.0 - rows * (1.0 - config.promised_agreement)


def contradicts(agreement: float, rows: int, promised: float) -> bool:
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
    return 1.0 - below < SIGNIFICANCE


def as_asked(verdict: Verdict, config: Config) -> Verdict:
    """``verdict`` where no layer is to fall back to float for accuracy: then only what is broken counts."""
    return verdict if config.guarded else replace(verdict, good=not verdict.comparison.problems)


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


def affordable_samples(elements: float) -> int:
    """How many samples with so many ``elements`` of activations a check may take, whatever it is for."""
    return max(1, int(AFFORDABLE_ELEMENTS / max(elements, 1.0)))
