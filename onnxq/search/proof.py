"""Whether a promise is proven: more samples are asked until the lower end of its interval says so, or no more can be.

First those of the data that nothing was fitted to, then ones made of the held-out samples, which the float model says
what is right of.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from onnxq.calibrate.feeds import Feed
from onnxq.calibrate.variants import variants
from onnxq.config import Config
from onnxq.measure.certainty import Certainty, Evidence
from onnxq.measure.compare import Comparison
from onnxq.search.acceptance import MADE_AT_LEAST, contradicts, rows_to_prove, share

Array = npt.NDArray[Any]
Compare = Callable[[Any], Comparison]  # feeds -> the comparison of a candidate with the float model

# Samples that others are made of are kept at hand: so many bytes of them.
KEPT_BYTES = 1 << 26


@dataclass(frozen=True, eq=False)
class Proof:
    """What more can be asked of a candidate: samples of the data that are ``unused``, and made ones.

    ``held_out``: what those are made of; ``most``: how many at most.
    """

    held_out: Feed
    unused: Feed | None
    most: int
    config: Config
    _kept: list[dict[str, Array]] = field(default_factory=list)

    def promised(self, times: int) -> float:
        """The share that must stay of what may change so many times for each decision that may."""
        return share(self.config, times)

    def of(self, first: Comparison, compare: Compare) -> tuple[Certainty, ...]:
        """The certainty of all promises; ``first``: what was found on the held-out samples."""
        real = Evidence.of(first.outputs)
        found = real.certainties(self.promised)
        if self.unused is not None and not _settled(found):
            real += Evidence.of(compare(self.unused).outputs)
            found = real.certainties(self.promised)
        made, count, stream = Evidence({}), 0, variants(self._samples(), seed=self.config.seed)
        while count < self.most and not _settled(found):
            chunk = list(itertools.islice(stream, self._wanted(found, count)))
            if not chunk:
                break
            count += len(chunk)
            made += Evidence.of(compare([feed for _, feed in chunk]).outputs)
            found = real.certainties(self.promised, made, samples=count, of=len(self._samples()))
            if all(certainty.made is None for certainty in found):
                break  # of these outputs made samples say nothing
        return found

    def _wanted(self, found: tuple[Certainty, ...], count: int) -> int:
        """How many samples to make next: as many as prove all, if no more decisions change."""
        wanted = 0
        for certainty in found:
            if certainty.kept:
                continue
            counted = certainty.counted
            each = max(1.0, counted.rows / max(counted.samples, 1))
            more = rows_to_prove(counted.rows - counted.same, certainty.promised) - counted.rows
            wanted = max(wanted, int(more / each) + 1)
        return min(max(wanted, MADE_AT_LEAST), self.most - count)

    def _samples(self) -> list[dict[str, Array]]:
        """The held-out samples that others are made of."""
        if not self._kept:
            room = KEPT_BYTES
            for feed in self.held_out:
                room -= sum(array.nbytes for array in feed.values())
                if room < 0 and len(self._kept) > 1:
                    break
                self._kept.append(dict(feed))
        return self._kept


def _settled(found: tuple[Certainty, ...]) -> bool:
    """Whether no more samples are needed: all is proven, or something contradicted beyond chance."""
    return all(c.kept for c in found) or any(contradicts(c.counted, c.promised) for c in found)
