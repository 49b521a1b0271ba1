"""One output of two models, compared: noise, and what its kind is judged by, summed over feeds.

| output                                   | SQNR | row mean removed too | judged as                                  |
|------------------------------------------|------|----------------------|--------------------------------------------|
| float, rank 2 or 3, last axis >= 2       | yes  | yes                  | its kind (``kinds``)                        |
| other float                              | yes  | no                   | its kind                                   |
| integer, bool, string                    | no   | no                   | ``ids``: equal elements                    |
| sequence, map, optional                  | as the array of what it holds (``runtime.contents``)                     |

Where the length of an output follows from values (``graph.lengths``), samples whose lengths differ between the models
are counted (``other_length``), and the rest is compared:

| such an output holds ...     | SQNR of                       | share of ...                                          |
|------------------------------|-------------------------------|-------------------------------------------------------|
| detections                   | those that both models have   | the float model's with a counterpart (``matching``)   |
| picked rows, or integers     | rows that both models have    | the float model's rows with a counterpart             |
| a series (predicted lengths) | samples of one length that    | as its kind says; a sample is aligned otherwise       |
|                              | are aligned alike             | where its noise is over a 20th of its signal          |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.kernels.lengths import Length
from onnxq.measure.compared import OutputComparison
from onnxq.measure.kinds import Kind, KindGuess, Measured, Promise, judges_of
from onnxq.measure.kinds.judge import Judge, Tally
from onnxq.measure.kinds.kind import Where
from onnxq.measure.matching import Matched, match_rows
from onnxq.numerics import Noise, centred, noise

Array = npt.NDArray[Any]

# A sample of a series is aligned otherwise from this share of noise energy on: a step longer in one place and shorter
# in another leaves what is between them beside its counterpart.
STRAYED = 0.05
COUNTERPARTS = "counterparts"  # the rule where rows are matched
# Picked rows that may change for each decision that may: what lies near the threshold comes and goes.
PICKED_ROWS_A_DECISION = 10


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _masked_alike(reference: Array, test: Array) -> bool:
    """Whether both hold the same infinities at the same places, as scores behind a mask do, and no NaN."""
    if reference.shape != test.shape:
        return False
    unbounded = np.isinf(reference)
    alike = np.array_equal(reference[unbounded], test[unbounded])
    return alike and bool(np.isfinite(reference[~unbounded]).all() and np.isfinite(test[~unbounded]).all())


@dataclass
class OutputSums:
    """What is known of one output so far, judged as ``guess`` says."""

    name: str
    guess: KindGuess
    length: Length | None = None
    raw: Noise | None = None
    centred: Noise | None = None
    max_abs: float | None = None
    elements: int = 0
    judges: list[Judge] = field(default_factory=list)
    counterparts: Tally | None = None
    problem: str | None = None
    samples: int = 0
    other_length: int = 0
    other_shape: str | None = None  # the first
    astray: OutputSums | None = None  # samples that are aligned otherwise
    axis: int | None = None  # along which lengths were seen to differ

    def add(
        self, reference: Array, test: Array, *, feed: int, place: Callable[[], str], matched: Matched | None = None
    ) -> None:
        """Takes what both models answer to ``feed``, which is called ``place``."""
        self.samples += 1
        if reference.shape != test.shape:
            self.other_length += 1
            if self.other_shape is None:
                shapes = f"{list(reference.shape)} in the float model but {list(test.shape)} in the quantized one"
                self.other_shape = f"output {self.name} has shape {shapes} for {place()}"
        for which, array in (("float", reference), ("quantized", test)):
            if self.problem is None and not _finite(array) and not _masked_alike(reference, test):
                self.problem = f"output {self.name} of the {which} model holds NaN or infinity for {place()}"
        matched = matched or self._matched(reference, test)
        if matched is not None:
            self._add_matched(matched, feed)
        elif reference.shape == test.shape:
            self._add_positions(reference, test, feed)

    def _matched(self, reference: Array, test: Array) -> Matched | None:
        """Counterparts of rows where those are what is compared; None where positions are."""
        if self.length is None or (self.length is Length.STRETCHED and reference.dtype.kind == "f"):
            return None
        apart = [i for i, (a, b) in enumerate(zip(reference.shape, test.shape, strict=False)) if a != b]
        if reference.ndim != test.ndim or not reference.ndim or len(apart) > 1:
            return None
        self.axis = apart[0] if apart else self.axis
        along = int(reference.ndim > 1 and reference.shape[0] == 1) if self.axis is None else self.axis
        return match_rows(reference, test, along)

    def _add_matched(self, matched: Matched, feed: int) -> None:
        self.counterparts = self.counterparts or Tally()
        self.counterparts.note(len(matched.reference), matched.rows, Where(feed))
        self.elements += matched.reference.size
        if matched.reference.dtype.kind == "f":
            self.raw = (self.raw or Noise()) + noise(matched.reference, matched.test)
            self._note_error(matched.reference, matched.test)

    def _add_positions(self, reference: Array, test: Array, feed: int) -> None:
        self.elements += reference.size
        if reference.dtype.kind == "f":
            found = noise(reference, test)
            if self.length is Length.STRETCHED and found.error > STRAYED * found.signal:
                # Steps that are longer here and shorter there: nothing stands beside its counterpart.
                self.elements -= reference.size
                self.astray = self.astray or OutputSums(self.name, self.guess)
                self.astray.samples += 1
                self.astray._add_positions(reference, test, feed)
                return
            self.raw = (self.raw or Noise()) + found
            self._add_floats(reference, test)
        self._judge(reference, test, feed)

    def _judge(self, reference: Array, test: Array, feed: int) -> None:
        layout = self.guess.layout
        a, b = layout.samples(reference), layout.samples(test)
        if not a.size:
            return
        self.judges = self.judges or judges_of(self.guess, a.shape[-1])
        at = [Where(*layout.where(feed, row, len(a))) for row in range(len(a))]
        with np.errstate(all="ignore"):  # what is not finite is told elsewhere
            for judge in self.judges:
                judge.add(a, b, at)

    def _note_error(self, reference: Array, test: Array) -> None:
        with np.errstate(invalid="ignore"):
            error = np.abs(reference.astype(np.float64) - test.astype(np.float64))
        worst = float(error.max(initial=0.0, where=~np.isnan(error)))
        self.max_abs = max(self.max_abs or 0.0, worst)

    def _add_floats(self, reference: Array, test: Array) -> None:
        self._note_error(reference, test)
        if reference.ndim in (2, 3) and reference.shape[-1] >= 2:
            # A row with a non-finite entry has no mean; the raw noise already tells of it.
            good = np.isfinite(reference).all(axis=-1) & np.isfinite(test).all(axis=-1)
            self.centred = (self.centred or Noise()) + noise(centred(reference[good]), centred(test[good]))

    def result(self, place: Callable[[Where], str]) -> OutputComparison:
        """What was found; ``place``: what a sample is called."""
        astray = 0 if self.astray is None else self.astray.samples
        # What is aligned nowhere is noise.
        nowhere = self.astray if self.raw is None else None
        found = self._compared(place) if nowhere is None else nowhere.result(place)
        return replace(
            found,
            length=self.length,
            samples=self.samples,
            other_length=self.other_length,
            other_alignment=astray,
        )

    def _compared(self, place: Callable[[Where], str]) -> OutputComparison:
        raw, middle = (None if n is None else n.sqnr_db for n in (self.raw, self.centred))
        found = self._measured(raw if middle is None else middle)
        parts = [m.level_db for m in found if m.level_db is not None]
        strictest = max(found, key=lambda m: m.lost, default=Measured(Kind.FEATURES))
        return OutputComparison(
            self.name,
            self.elements,
            raw,
            middle,
            self.max_abs,
            # Of another length now and then is a disagreement; always, where values have no say in it, another model.
            self.problem or (self.other_shape if self.length is None and self.other_length == self.samples else None),
            kind=self.guess.name,
            kind_reason=self.guess.reason,
            what=strictest.what,
            measure=strictest.value,
            unit=strictest.unit,
            agreement_rule=strictest.rule,
            share=strictest.share,
            sure=strictest.sure,
            worst=strictest.worst,
            worst_what=strictest.worst_what,
            worst_place="" if strictest.worst_at is None else place(strictest.worst_at),
            detail=strictest.detail,
            promises=tuple(p for m in found for p in m.promises),
            parts_db=min(parts, default=None),
        )

    def _measured(self, level_db: float | None) -> list[Measured]:
        """What each kind that fits says."""
        found = [judge.measured(level_db) for judge in self.judges]
        if self.counterparts is not None:
            kind = Kind.DETECTIONS if self.length is Length.DETECTED else Kind.PICKED
            found.append(counterparts(kind, self.counterparts))
        return found


def counterparts(kind: Kind, tally: Tally) -> Measured:
    """What is found where rows are matched."""
    return Measured(
        kind,
        "with a counterpart",
        100.0 * tally.share.value,
        "%",
        rule=COUNTERPARTS,
        share=tally.share,
        worst=tally.worst.value,
        worst_what="share with a counterpart",
        worst_at=tally.worst.at,
        promises=(Promise(COUNTERPARTS, tally.share, PICKED_ROWS_A_DECISION),),
    )
