"""How far a quantized tensor is from the float one: SQNR, agreement, and sums that stream over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

# A perfect copy has infinite SQNR; tables and JSON want a number.
MAX_SQNR_DB = 200.0


@dataclass(frozen=True)
class Noise:
    """Energies of a signal and of its error, summed in float64; a monoid: ``Noise() + a + b`` in any grouping.

    Non-finite values that both tensors share position by position (masks of minus infinity) are left out; a
    non-finite value in only one of them makes the error infinite.
    """

    signal: float = 0.0
    error: float = 0.0
    count: int = 0

    def __add__(self, other: Noise) -> Noise:
        return Noise(self.signal + other.signal, self.error + other.error, self.count + other.count)

    @property
    def sqnr_db(self) -> float:
        """``10 log10(signal / error)`` in dB, within ``[-MAX_SQNR_DB, MAX_SQNR_DB]``."""
        return sqnr_db_of(self.signal, self.error)


def sqnr_db_of(signal: float, error: float) -> float:
    """Signal-to-quantization-noise ratio in dB of two energies, clipped to ``MAX_SQNR_DB`` either way."""
    if error <= 0.0:
        return MAX_SQNR_DB
    if signal <= 0.0 or not np.isfinite(error):
        return -MAX_SQNR_DB
    return float(np.clip(10.0 * np.log10(signal / error), -MAX_SQNR_DB, MAX_SQNR_DB))


def noise(reference: Array, test: Array) -> Noise:
    """The ``Noise`` of ``test`` against ``reference``, arrays of one shape and any numeric dtype."""
    r = np.asarray(reference).astype(np.float64).ravel()
    t = np.asarray(test).astype(np.float64).ravel()
    finite = np.isfinite(r) & np.isfinite(t)
    if not finite.all():
        if not np.array_equal(r[~finite], t[~finite], equal_nan=True):
            return Noise(float(np.square(r[np.isfinite(r)]).sum()), float("inf"), r.size)
        r, t = r[finite], t[finite]
    return Noise(float(r @ r), float(np.square(r - t).sum()), r.size)


def sqnr_db(reference: Array, test: Array) -> float:
    """SQNR of ``test`` against ``reference`` in dB."""
    return noise(reference, test).sqnr_db


def centred(logits: Array) -> npt.NDArray[np.float64]:
    """``logits: [..., C]`` less the mean of each row: softmax ignores a row's offset, so SQNR of logits must too."""
    x: npt.NDArray[np.float64] = np.array(logits, dtype=np.float64)
    x -= x.mean(axis=-1, keepdims=True)
    return x


def agreement(reference: Array, test: Array) -> tuple[int, int]:
    """(rows whose largest entry is at the same index, rows) of two ``[..., C]`` arrays."""
    same = np.argmax(reference, axis=-1) == np.argmax(test, axis=-1)
    return int(np.count_nonzero(same)), int(np.size(same))
