"""One output of two models, compared: noise and agreement, summed over feeds.

Rules, all decided by type and shape alone:

| output                                   | SQNR | row mean removed too | agreement: share of ...                   |
|------------------------------------------|------|----------------------|-------------------------------------------|
| float, rank 2 or 3, last axis >= 2       | yes  | yes                  | rows with the same arg-max (first of ties) |
| the same of rank 3, independent scores   | yes  | yes                  | rows that decide, with the same decision  |
| float, rank >= 2, last axis 1            | yes  | no                   | values on the same side of a threshold    |
| other float (maps, vectors, scalars)     | yes  | no                   | none                                      |
| integer, bool, string                    | no   | no                   | equal elements                            |
| sequence, map, optional                  | as the array of what it holds (``runtime.contents``)                     |

Where the length of an output follows from values (``graph.lengths``), samples whose lengths differ between the models
are counted (``other_length``), and the rest is compared:

| such an output holds ...     | SQNR of                       | agreement: share of ...                               |
|------------------------------|-------------------------------|-------------------------------------------------------|
| detections                   | those that both models have   | the float model's with a counterpart (``matching``)   |
| picked rows, or integers     | rows that both models have    | the float model's rows with a counterpart             |
| a series (predicted lengths) | samples of one length that    | as in the first table; a sample is aligned otherwise  |
|                              | are aligned alike             | where its noise is over a 20th of its signal          |

The threshold of a single column is 0.5 if all values of the float model lie in [0, 1] (a probability), else 0 (a
logit). Independent scores are values in [0, 1] whose rows do not sum to 1, as detectors give for thousands of places: a
row decides for its largest entry if that is above 0.5, and counts if it decides in either model. A rank-3 output that
holds no classes on its last axis (boxes, features) gets an arg-max like any other: read it with that in mind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.kernels.lengths import Length
from onnxq.measure.matching import Matched, match_rows
from onnxq.numerics import Noise, agreement, centred, noise

Array = npt.NDArray[Any]

_DECIDES = 0.5  # the score from which on a row of independent scores is taken for its class
_SUM_TOLERANCE = 1e-3
# A sample of a series is aligned otherwise from this share of noise energy on: a step longer in one place and shorter
# in another leaves what is between them beside its counterpart.
STRAYED = 0.05
COUNTERPARTS = "counterparts"  # the rule where rows are matched


@dataclass(frozen=True)
class OutputComparison:
    """One output; figures are None where the rules above give none.

    ``elements``: compared in all. ``sqnr_db``, ``centred_sqnr_db`` (row mean removed): dB. ``max_abs_error``: in the
    output's unit. ``agreement``: share in [0, 1] of the ``rows`` judged by ``agreement_rule``. ``problem``: one line,
    or None: NaN in either model, infinity in one of them (which one is named), or shapes that differ between the models
    (such feeds are left out).
    """

    name: str
    elements: int
    sqnr_db: float | None
    centred_sqnr_db: float | None
    max_abs_error: float | None
    agreement: float | None
    agreement_rule: (
        str  # "arg-max", "arg-max above 0.5", "above 0.5", "above 0", "equal", "counterparts", "mixed" or ""
    )
    rows: int
    rank: int  # dimensions
    probability: bool  # whether all floats of the float model lie in [0, 1], and where classes are, rows sum to 1
    problem: str | None
    length: Length | None = None  # how its length follows from values; None where it does not
    samples: int = 0
    other_length: int = 0
    other_alignment: int = 0

    @property
    def same_length(self) -> float:
        """The share of samples that have the same length in both models, and the same alignment."""
        return 1.0 - (self.other_length + self.other_alignment) / max(self.samples, 1)

    @property
    def difference(self) -> str | None:
        """One line about samples of another length; None where there are none."""
        said = [(self.other_length, "another length"), (self.other_alignment, "another alignment")]
        found = [f"{count} of {self.samples} samples have {what}" for count, what in said if count]
        return f"{self.name}: {', '.join(found)}" if found else None

    @property
    def level_db(self) -> float | None:
        """The SQNR that counts, in dB: with the row mean removed where that is defined."""
        return self.sqnr_db if self.centred_sqnr_db is None else self.centred_sqnr_db


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
    """What is known of one output so far."""

    name: str
    length: Length | None = None
    raw: Noise | None = None
    centred: Noise | None = None
    max_abs: float | None = None
    elements: int = 0
    same: int = 0
    rows: int = 0
    rank: int = 0
    same_side: list[int] = field(default_factory=lambda: [0, 0])  # of 0.5, of 0
    probability: bool = True
    distribution: bool = True  # whether all rows of the float model sum to 1
    decided: list[int] = field(default_factory=lambda: [0, 0])  # rows that decide: alike, all
    rule: str = ""
    problem: str | None = None
    samples: int = 0
    other_length: int = 0
    other_shape: str | None = None  # the first
    astray: OutputSums | None = None  # samples that are aligned otherwise
    axis: int | None = None  # along which lengths were seen to differ

    def add(self, reference: Array, test: Array, *, place: Callable[[], str], matched: Matched | None = None) -> None:
        self.samples += 1
        if reference.shape != test.shape:
            self.other_length += 1
            if self.other_shape is None:
                shapes = f"{list(reference.shape)} in the float model but {list(test.shape)} in the quantized one"
                self.other_shape = f"output {self.name} has shape {shapes} for {place()}"
        for which, array in (("float", reference), ("quantized", test)):
            if self.problem is None and not _finite(array) and not _masked_alike(reference, test):
                self._flag(f"output {self.name} of the {which} model holds NaN or infinity for {place()}")
        matched = matched or self._matched(reference, test)
        if matched is not None:
            self._add_matched(matched, reference.ndim)
        elif reference.shape == test.shape:
            self._add_positions(reference, test)

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

    def _add_matched(self, matched: Matched, rank: int) -> None:
        self._follow(COUNTERPARTS)
        self.same += len(matched.reference)
        self.rows += matched.rows
        self.elements += matched.reference.size
        self.rank = rank
        if matched.reference.dtype.kind == "f":
            self.raw = (self.raw or Noise()) + noise(matched.reference, matched.test)
            self._note_values(matched.reference, matched.test)

    def _add_positions(self, reference: Array, test: Array) -> None:
        self.elements += reference.size
        self.rank = reference.ndim
        if reference.dtype.kind != "f":
            self._follow("equal")
            self.same += int(np.count_nonzero(reference == test))
            self.rows += reference.size
            return
        found = noise(reference, test)
        if self.length is Length.STRETCHED and found.error > STRAYED * found.signal:
            # Steps that are longer here and shorter there: nothing stands beside its counterpart.
            self.elements -= reference.size
            self.astray = self.astray or OutputSums(self.name)
            self.astray.samples += 1
            self.astray._add_positions(reference, test)
        else:
            self.raw = (self.raw or Noise()) + found
            self._add_floats(reference, test)

    def _note_values(self, reference: Array, test: Array) -> None:
        """Whether the float model's values are probabilities, and the largest error."""
        self.probability &= bool(((reference >= 0) & (reference <= 1)).all())
        with np.errstate(invalid="ignore"):
            error = np.abs(reference.astype(np.float64) - test.astype(np.float64))
        worst = float(error.max(initial=0.0, where=~np.isnan(error)))
        self.max_abs = max(self.max_abs or 0.0, worst)

    def _add_floats(self, reference: Array, test: Array) -> None:
        self._note_values(reference, test)
        last = reference.shape[-1] if reference.ndim >= 2 else 0
        if reference.ndim in (2, 3) and last >= 2:
            self._follow("arg-max")
            # A row with a non-finite entry has no mean; the raw noise already tells of it.
            good = np.isfinite(reference).all(axis=-1) & np.isfinite(test).all(axis=-1)
            self.centred = (self.centred or Noise()) + noise(centred(reference[good]), centred(test[good]))
            same, rows = agreement(reference, test)
            self.same, self.rows = self.same + same, self.rows + rows
            with np.errstate(invalid="ignore"):  # infinities of both signs
                sums = reference.sum(axis=-1, dtype=np.float64)
            self.distribution &= bool((np.abs(sums - 1.0) < _SUM_TOLERANCE).all())
            if self.probability and not self.distribution:
                self._decide(reference, test)
        elif last == 1:
            self._follow("threshold")
            for i, threshold in enumerate((0.5, 0.0)):
                self.same_side[i] += int(np.count_nonzero((reference > threshold) == (test > threshold)))
            self.rows += reference.size

    def _decide(self, reference: Array, test: Array) -> None:
        """Counts the rows whose largest entry is above 0.5 in either model, and those alike in that and in which."""
        above = [a.max(axis=-1) > _DECIDES for a in (reference, test)]
        alike = above[0] & above[1] & (reference.argmax(axis=-1) == test.argmax(axis=-1))
        self.decided[0] += int(np.count_nonzero(alike))
        self.decided[1] += int(np.count_nonzero(above[0] | above[1]))

    def _follow(self, rule: str) -> None:
        """Note the rule in use; an axis of dynamic length that asks for two of them gets no agreement at all."""
        self.rule = rule if self.rule in ("", rule) else "mixed"

    def _flag(self, problem: str) -> None:
        self.problem = self.problem or problem

    def result(self) -> OutputComparison:
        astray = 0 if self.astray is None else self.astray.samples
        # What is aligned nowhere is noise.
        found = self.astray.result() if self.astray is not None and self.raw is None else self._compared()
        return replace(
            found,
            length=self.length,
            samples=self.samples,
            other_length=self.other_length,
            other_alignment=astray,
        )

    def _compared(self) -> OutputComparison:
        rule, same, rows = self.rule, self.same, self.rows
        probability = self.probability and (rule != "arg-max" or self.distribution)
        if rule == "arg-max" and self.rank == 3 and self.probability and not probability:
            rule, (same, rows) = "arg-max above 0.5", self.decided
        if rule == "threshold":
            rule, same = ("above 0.5", self.same_side[0]) if self.probability else ("above 0", self.same_side[1])
        return OutputComparison(
            self.name,
            self.elements,
            None if self.raw is None else self.raw.sqnr_db,
            None if self.centred is None else self.centred.sqnr_db,
            self.max_abs,
            same / rows if rows and rule != "mixed" else None,
            rule,
            rows,
            self.rank,
            probability,
            # Of another length now and then is a disagreement; always, where values have no say in it, another model.
            self.problem or (self.other_shape if self.length is None and self.other_length == self.samples else None),
        )
