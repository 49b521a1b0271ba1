"""Scores of classes: one decision for each sample, for each row of a sequence, or for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.measure.kinds.judge import Array, Tally, Worst
from onnxq.measure.kinds.kind import Kind, Measured, Promise, Where
from onnxq.measure.kinds.layout import Layout
from onnxq.measure.kinds.sure import first_two, is_sure
from onnxq.numerics import Share

# How many of all may change for each decision that may. Users who compare with the float model see near ties change
# too, so that those count in full but for one: whether a single one changes is chance. At the edges of areas one pixel
# more or less is no other area, and odds of 3 to 2 cost at most a fifth of a decision (``sure``).
NEAR_TIES = {Kind.CLASSES: 1, Kind.TOKENS: 1, Kind.PIXELS: 5}
SPARE = 1
ROUNDED_NUMBERS = ("equal numbers", "numbers within one")
ROUNDED = 10  # rounded numbers that may be one more or less, for each decision: as of what is picked


@dataclass
class Classes:
    """Counts rows whose largest score is in the same place: ``classes``, ``tokens`` and ``pixels`` of many classes."""

    kind: Kind
    layout: Layout
    tally: Tally = field(default_factory=Tally)
    leads: Worst = field(default_factory=Worst)
    overlap: dict[int, list[int]] = field(default_factory=dict)  # by class: pixels in both models, in either

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            rows, others = (x.reshape(-1, x.shape[-1]) for x in (a, b))
            choice, first, second = first_two(rows)
            chosen = others.argmax(axis=-1)
            same = choice == chosen
            sure = is_sure(first, second, probabilities=self.layout.distribution)
            if self.kind is Kind.PIXELS:
                self._overlap(choice, chosen)
            if len(rows) == 1 and self.kind is Kind.CLASSES:
                self._one(others[0], int(choice[0]), where)
            self.tally.add(same, np.ones_like(same), sure, where)

    def _one(self, scores: Array, choice: int, at: Where) -> None:
        """What the float model's choice leads by in the quantized one; below 0 where it is not its choice."""
        others = np.delete(scores, choice)
        self.leads.note(float(scores[choice]) - float(others.max()), at)

    def _overlap(self, choice: Array, chosen: Array) -> None:
        for c in np.union1d(choice, chosen):
            a, b = choice == c, chosen == c
            counts = self.overlap.setdefault(int(c), [0, 0])
            counts[0] += int(np.count_nonzero(a & b))
            counts[1] += int(np.count_nonzero(a | b))

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        what = {Kind.CLASSES: "same class", Kind.TOKENS: "same class by row"}.get(self.kind, "mean IoU of classes")
        value, unit = 100.0 * self.tally.share.value, "%"
        if self.kind is Kind.PIXELS:
            value, unit = float(np.mean([a / b for a, b in self.overlap.values()] or [1.0])), ""
        alone = self.leads.value is not None
        worst = self.leads if alone else self.tally.worst
        return decided(
            Measured(
                self.kind,
                what,
                value,
                unit,
                rule="arg-max",
                worst=worst.value,
                worst_what="lead of float's class" if alone else "share of the same",
                worst_at=worst.at,
            ),
            self.tally,
            NEAR_TIES[self.kind],
        )


def decided(found: Measured, tally: Tally, near_ties: int, *, surest: Share | None = None) -> Measured:
    """``found`` with counted decisions: those of which float is sure are promised, and of all some more may change.

    ``surest``: the former, where those are not of the same threshold or axis as all that ``tally`` counts.
    """
    sure, strata = (tally.sure, tally.strata) if surest is None else (surest, None)
    spare = min(SPARE, _unsure_misses(tally))
    return replace(
        found,
        share=tally.share,
        sure=sure,
        promises=(
            *found.promises,
            Promise("decisions", tally.share, near_ties, spare=spare, strata=strata),
            Promise("decisions where float is sure", sure, sure=True),
        ),
    )


def _unsure_misses(tally: Tally) -> int:
    """How many near ties changed."""
    return (tally.share.rows - tally.share.same) - (tally.sure.rows - tally.sure.same)


@dataclass
class NextToken:
    """What a language model says next: divergence of the distributions, and the same first token."""

    layout: Layout
    tally: Tally = field(default_factory=Tally)
    divergence: float = 0.0
    rows: int = 0
    worst: Worst = field(default_factory=Worst)

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            rows, others = (x.reshape(-1, x.shape[-1]) for x in (a, b))
            choice, first, second = first_two(rows)
            same = choice == others.argmax(axis=-1)
            self.tally.add(same, np.ones_like(same), is_sure(first, second, probabilities=False), where)
            found = 0.0
            for row in range(0, len(rows), _ROWS):
                found += float(_divergence(rows[row : row + _ROWS], others[row : row + _ROWS]).sum())
            self.divergence += found
            self.rows += len(rows)
            self.worst.note(-found / max(len(rows), 1), where)

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        mean = self.divergence / max(self.rows, 1)
        return Measured(
            Kind.NEXT_TOKEN,
            "KL divergence",
            mean,
            "nats",
            rule="arg-max",
            share=self.tally.share,
            sure=self.tally.sure,
            worst=None if self.worst.value is None else -self.worst.value,
            worst_what="KL divergence",
            worst_at=self.worst.at,
            promises=(
                # Near ties among tokens are what a divergence measures: they are not counted a second time.
                Promise("first tokens where float is sure", self.tally.sure, sure=True),
                Promise("exp(-KL divergence)", level=float(np.exp(-mean))),
            ),
        )


_ROWS = 256  # whose distributions are held at a time


def _divergence(reference: Array, test: Array) -> Array:
    """By row, the Kullback-Leibler divergence of softmax of ``test`` from that of ``reference``, in nats."""
    a, b = (_log_softmax(x) for x in (reference, test))
    with np.errstate(all="ignore"):
        terms = np.exp(a) * (a - b)
    terms[np.exp(a) == 0.0] = 0.0  # what is masked in both says nothing
    return np.asarray(terms.sum(axis=-1))


def _log_softmax(x: Array) -> Array:
    moved = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return np.asarray(moved - np.log(np.exp(moved).sum(axis=-1, keepdims=True)))


@dataclass
class Equal:
    """Counts equal entries of what is not float: ``ids``. Rounded numbers that are off by one are near ties."""

    layout: Layout
    tally: Tally = field(default_factory=Tally)

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            self.tally.note(int(np.count_nonzero(a == b)), a.size, where)
            if self.layout.rounded:
                near = np.abs(a.astype(np.float64) - b) <= 1.0
                self.tally.sure += Share.of(int(np.count_nonzero(near)), a.size)

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        share = self.tally.share
        return Measured(
            Kind.IDS,
            "equal",
            100.0 * share.value,
            "%",
            rule="equal",
            share=share,
            worst=self.tally.worst.value,
            worst_what="share of equal ones",
            worst_at=self.tally.worst.at,
            promises=self._promises(share),
        )

    def _promises(self, share: Share) -> tuple[Promise, ...]:
        if not self.layout.rounded:
            return (Promise("equal ones", share),)
        return Promise(ROUNDED_NUMBERS[0], share, ROUNDED), Promise(ROUNDED_NUMBERS[1], self.tally.sure)
