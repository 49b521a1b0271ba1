"""What a float model answers to a few feeds, kept, and the noise of other models against it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.files.memory import give_back_holes
from onnxq.files.scratch import Scratch, discard
from onnxq.measure.kinds.seen import Seen
from onnxq.numerics import Noise, centred, noise
from onnxq.runtime.session import PACKED, open_to_look, run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

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


class Answers:
    """What a float model answers to feeds, each of which is run once, however often it comes.

    Feeds are known by their contents: data that is another one in every pass is run in every pass. Answers that are no
    arrays of numbers are not kept.
    """

    def __init__(self, model: bytes | Path, scratch: Scratch | None = None) -> None:
        self.model = model
        self._file = (scratch or Scratch()).file()
        self._session: InferenceSession | None = None
        self._names: list[str] = []
        self._places: dict[bytes, list[int]] = {}
        self._kept: list[npt.NDArray[Any]] = []

    @property
    def names(self) -> list[str]:
        """The names of the outputs."""
        if not self._names:
            self._names = [output.name for output in self._open().get_outputs()]
        return self._names

    def of(self, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The outputs for ``feed``."""
        key = _digest(feed)
        if key is not None and key in self._places:
            store = self._kept if self._file is None else self._file
            return [store[index] for index in self._places[key]]
        found = run(self._open(), feed)
        if key is not None and all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in found):
            self._places[key] = [self._keep(array) for array in found]
        return found

    def close(self) -> None:
        """Gives the session's memory back; what is not known yet opens another one."""
        self._session = None
        give_back_holes()

    def _open(self) -> InferenceSession:
        if self._session is None:
            self._session = open_to_look(self.model)
        return self._session

    def _keep(self, array: npt.NDArray[Any]) -> int:
        if self._file is not None:
            return self._file.append(array)
        self._kept.append(array)
        return len(self._kept) - 1


def _digest(feed: Mapping[str, npt.NDArray[Any]]) -> bytes | None:
    """What tells ``feed`` from others; None where it holds what is no numbers."""
    found = hashlib.blake2b()
    for name in sorted(feed):
        array = np.asarray(feed[name])
        if array.dtype.kind not in "fiub":
            return None
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.digest()


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

    def noises_once(self, model: bytes | Path) -> tuple[float, ...]:
        """The relative noise energy of each float output of ``model``, handed over for this alone."""
        try:
            sums: dict[int, Noise] = {}
            for index, reference, test in self._pairs(model):
                sums[index] = sums.get(index, Noise()) + noise(reference, test)
            return tuple(10.0 ** (-sums[index].sqnr_db / 10.0) for index in sorted(sums))
        finally:
            discard(model)

    def _pairs(self, model: bytes | Path) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
        """By output and feed, what the float model answers and what ``model`` does, wide rows less their means."""
        session = open_to_look(model, config=PACKED)
        for feed, references in zip(self.feeds, self.outputs, strict=True):
            for index, (reference, test) in enumerate(zip(references, run(session, feed), strict=True)):
                if np.issubdtype(reference.dtype, np.floating) and reference.size:
                    if reference.shape != test.shape:
                        test = np.zeros_like(reference)  # of another length: as far off as nothing at all
                    wide = reference.ndim > 1 and reference.shape[-1] > 1
                    yield (index, centred(reference), centred(test)) if wide else (index, reference, test)


def seen_of(answers: Answers, feeds: Feeds) -> Seen:
    """What ``answers`` say to the first of ``feeds``, as many as tell what outputs are for."""
    seen = Seen()
    for feed in feeds:
        seen.add(answers.names, answers.of(feed), feed)
        if seen.enough:
            break
    return seen


def references(float_model: bytes | Path | Answers, feeds: Feeds) -> References:
    """The ``References`` of ``float_model`` on ``feeds``, which should be few."""
    answers = float_model if isinstance(float_model, Answers) else Answers(float_model)
    kept = tuple(feeds)
    try:
        return References(kept, tuple(answers.of(feed) for feed in kept))
    finally:
        answers.close()
