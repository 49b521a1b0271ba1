"""What every kind's measure is: it adds up samples of two models and says what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from onnxq.measure.kinds.kind import Measured, Where
from onnxq.numerics import Share, Strata

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Key = TypeVar("Key")


class Judge(Protocol):
    """Adds up one output of two models over samples, judged as one kind."""

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        """Takes ``[samples, ..., channels]`` of both models, arrays of one shape; ``at``: which samples these are."""

    def measured(self, level_db: float | None) -> Measured:
        """What was found; ``level_db``: the SQNR of the whole output."""


@dataclass
class Worst:
    """The sample with the lowest figure so far."""

    value: float | None = None
    at: Where | None = None

    def note(self, value: float, at: Where) -> None:
        """Keeps it if it is the worst; what is not a number is worse than any number."""
        if self.value is None or not value >= self.value:
            if self.value is not None and np.isnan(self.value):
                return
            self.value, self.at = value, at


@dataclass
class Tally:
    """Decisions counted sample by sample: all of them, and those of which the float model is sure.

    ``near``: the others, which are near ties; ``sureness``: of all decisions, those of which it is sure.
    """

    share: Share = field(default_factory=Share)
    sure: Share = field(default_factory=Share)
    worst: Worst = field(default_factory=Worst)
    near: Share = field(default_factory=Share)
    sureness: Share = field(default_factory=Share)

    @property
    def strata(self) -> Strata | None:
        """The two parts of what was counted; None where they were not told apart."""
        return Strata(self.sure, self.near, self.sureness) if self.sureness.rows else None

    def add(self, same: Array, counts: Array, sure: Array, at: Where) -> None:
        """One sample: which decisions are the ``same``, which count at all, of which float is ``sure``; all bool."""
        rows, kept = np.count_nonzero(counts), np.count_nonzero(same & counts)
        counted = sure & counts
        decided = Share.of(int(np.count_nonzero(same & counted)), int(np.count_nonzero(counted)))
        self.note(int(kept), int(rows), at)
        self.sure += decided
        self.near += Share.of(int(kept) - decided.same, int(rows) - decided.rows)
        self.sureness += Share.of(decided.rows, int(rows))

    def note(self, kept: int, rows: int, at: Where) -> None:
        """One sample of which ``kept`` of ``rows`` decisions are the same."""
        if rows:
            self.share += Share.of(kept, rows)
            self.worst.note(kept / rows, at)


def strictest(tallies: Mapping[Key, Tally]) -> tuple[Key, Tally, Share]:
    """Of ``tallies`` the first in which most changes, with its key, and the worst share of what float is sure of.

    Both are promised, each where it is worst.
    """
    key = min(tallies, key=lambda k: tallies[k].share.value)
    return key, tallies[key], min((t.sure for t in tallies.values()), key=lambda sure: sure.value)
