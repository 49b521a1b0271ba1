"""Whether a promise is proven: more samples are asked until the lower end of its interval says so, or no more can be.

First those of the data that nothing was fitted to, then made ones, of which the float model says what is right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from onnxq.calibrate.feeds import Feed
from onnxq.calibrate.variants import variants
from onnxq.config import Config
from onnxq.errors import DataError, RuntimeFailure
from onnxq.measure.certainty import Certainty, Evidence, MadeEvidence
from onnxq.measure.compare import Comparison
from onnxq.search.acceptance import MADE_AT_LEAST, MADE_OF_EACH, rows_to_prove, share, speaks_against

Array = npt.NDArray[Any]
Compare = Callable[[Any], Comparison]  # feeds -> the comparison of a candidate with the float model

# Samples that others are made of are kept at hand: so many bytes of them.
KEPT_BYTES = 1 << 26


@dataclass(frozen=True, eq=False)
class Proof:
    """What more can be asked of a candidate: samples of the data that are ``unused``, and ones made of ``sources``.

    ``most``: how many of these at most.
    """

    sources: Sequence[Feed]
    unused: Feed | None
    most: int
    config: Config
    _kept: list[dict[str, Array]] = field(default_factory=list)

    def promised(self, times: int) -> float:
        """The share that must stay of what may change so many times for each decision that may."""
        return share(self.config, times)

    def of(self, first: Comparison, seen: Comparison, compare: Compare) -> tuple[Certainty, ...]:
        """The certainty of all promises.

        ``first``, ``seen``: what was found on the held-out samples and on those of the second check set.
        """
        real = Evidence.of(first.outputs)
        found = real.certainties(self.promised)
        if self.unused is not None and not _settled(found):
            real += _shown(compare, self.unused) or Evidence({})
            found = real.certainties(self.promised)
        if _settled(found):
            return found
        made, count, of = Evidence({}), 0, len(self._samples())
        stream = variants(self._samples(), seed=self.config.seed)
        most = min(self.most, MADE_OF_EACH * of)
        while count < most and not _settled(found):
            chunk = [feed for _, feed in itertools.islice(stream, self._wanted(found, most - count))]
            more = _shown(compare, chunk) if chunk else None
            if more is None:
                break
            count, made = count + len(chunk), made + more
            found = real.certainties(self.promised, MadeEvidence(made, count, of, Evidence.of(seen.outputs)))
            if all(certainty.made is None for certainty in found):
                break  # of these outputs made samples say nothing
        return found

    def _wanted(self, found: tuple[Certainty, ...], left: int) -> int:
        """How many samples to make next, of the ``left`` ones: so many as prove all if no more decisions change."""
        wanted = 0
        for certainty in found:
            if certainty.kept:
                continue
            counted = certainty.counted
            rows, samples = certainty.real.rows, certainty.real.samples
            if certainty.made is not None:
                rows, samples = certainty.made.share.rows, certainty.made.samples
            more = rows_to_prove(counted.rows - counted.same, certainty.promised) - counted.rows
            wanted = max(wanted, math.ceil(more * samples / max(rows, 1)))
        return min(max(wanted, MADE_AT_LEAST), left)

    def _samples(self) -> list[dict[str, Array]]:
        """The samples that others are made of, those of the first source first."""
        if not self._kept:
            room = KEPT_BYTES
            for feed in itertools.chain.from_iterable(self.sources):
                room -= sum(array.nbytes for array in feed.values())
                if room < 0 and len(self._kept) > 1:
                    break
                self._kept.append(dict(feed))
        return self._kept


def _shown(compare: Compare, feeds: Iterable[Mapping[str, Array]]) -> Evidence | None:
    """What ``feeds`` show; None where they cannot be read or run, of which nobody has asked anything."""
    try:
        return Evidence.of(compare(feeds).outputs)
    except (DataError, RuntimeFailure):
        return None


def _settled(found: tuple[Certainty, ...]) -> bool:
    """Whether no more samples are needed: all is proven, or something contradicted beyond chance."""
    return all(c.kept for c in found) or any(map(speaks_against, found))
