"""What a float model answers to a few feeds, kept, and the noise of other models against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.files.scratch import discard
from onnxq.numerics import Noise, centred, noise
from onnxq.runtime.session import open_session, open_to_look, run

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]

# Noise of a sample by which two models are as good as equal, of the mean square of the output.
_NEXT_TO_NOTHING = 1e-12


class Lost(NamedTuple):
    """``noise``: relative noise energy, the worst of the float outputs, row means removed from wide ones.

    ``typical``: the mean over samples of the logarithm of their noise. A few samples with large errors can hold most of
    the energy; what the others say is here.
    """

    noise: float
    typical: float


@dataclass(frozen=True)
class References:
    """What the float model answers to a few feeds, kept to compare many drafts with."""

    feeds: tuple[Mapping[str, npt.NDArray[Any]], ...]
    outputs: tuple[list[npt.NDArray[Any]], ...]

    def measured(self, model: bytes | Path) -> Lost:
        """What ``model`` loses on the feeds."""
        sums: dict[int, Noise] = {}
        logs: dict[int, list[npt.NDArray[np.float64]]] = {}
        for index, reference, test in self._pairs(model):
            sums[index] = sums.get(index, Noise()) + noise(reference, test)
            rows = np.square(test.astype(np.float64) - reference).reshape(len(reference) if reference.ndim else 1, -1)
            least = _NEXT_TO_NOTHING * float(np.square(reference, dtype=np.float64).mean()) + np.finfo(np.float64).tiny
            logs.setdefault(index, []).append(np.log(rows.mean(axis=1) + least))
        typical = [float(np.concatenate(parts).mean()) for parts in logs.values()]
        worst = max((10.0 ** (-s.sqnr_db / 10.0) for s in sums.values()), default=0.0)
        return Lost(worst, sum(typical) / max(len(typical), 1))

    def measured_once(self, model: bytes | Path) -> Lost:
        """``measured`` for a model handed over for this alone: its files, if it has any, are removed."""
        try:
            return self.measured(model)
        finally:
            discard(model)

    def noise(self, model: bytes | Path) -> float:
        """The relative noise energy of ``model``."""
        return self.measured(model).noise

    def noise_once(self, model: bytes | Path) -> float:
        """``noise`` of a model handed over for this alone."""
        return self.measured_once(model).noise

    def _pairs(self, model: bytes | Path) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
        """By output and feed, what the float model answers and what ``model`` does, wide rows less their means."""
        session = open_session(model)
        for feed, references in zip(self.feeds, self.outputs, strict=True):
            for index, (reference, test) in enumerate(zip(references, run(session, feed), strict=True)):
                if np.issubdtype(reference.dtype, np.floating) and reference.size:
                    if reference.shape != test.shape:
                        test = np.zeros_like(reference)  # of another length: as far off as nothing at all
                    wide = reference.ndim > 1 and reference.shape[-1] > 1
                    yield (index, centred(reference), centred(test)) if wide else (index, reference, test)


def references(float_model: bytes | Path, feeds: Feeds) -> References:
    """The ``References`` of ``float_model`` on ``feeds``, which should be few."""
    session = open_to_look(float_model)
    kept = tuple(feeds)
    return References(kept, tuple(run(session, feed) for feed in kept))
