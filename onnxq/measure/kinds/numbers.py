"""Numbers that are read as they are, vectors that are compared, and numbers whose use nobody knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.measure.kinds.judge import Array, Floats, Tally, Worst
from onnxq.measure.kinds.kind import Kind, Measured, Promise, Where
from onnxq.measure.kinds.layout import Layout

# A column whose spread over samples is this small a share of its energy is a constant: its error is relative to that.
CONSTANT = 1e-10
# Of the samples, the share whose cosine may be lower than the one that counts.
TAIL = 0.05
# How many vectors there are among which neighbours are looked for: of a few, one is hardly nearer than another.
FEWEST_VECTORS, MOST_VECTORS = 8, 2048
# A nearest neighbour is sure from this lead over the second on, as a share of its lead over the median of all: there is
# no probability behind a cosine, so that a lead is measured by how far neighbours lie apart at all.
CLEAR_LEAD = 0.1


@dataclass
class Regression:
    """Error relative to the spread over samples, each column by itself."""

    layout: Layout
    rows: int = 0
    sums: list[Floats] = field(default_factory=list)  # by column: values, their squares, squared errors
    origin: Floats | None = None
    errors: Floats | None = None  # by column: the largest
    places: list[Where] = field(default_factory=list)

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            x, y = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (a, b))
            if not len(x):
                continue
            if self.origin is None:
                self.origin = x[0].copy()
                self.sums = [np.zeros(x.shape[1]) for _ in range(3)]
                self.errors = np.full(x.shape[1], -1.0)
                self.places = [where] * x.shape[1]
            if x.shape[1] != len(self.origin):
                continue  # columns that come and go are none
            away, error = x - self.origin, np.abs(x - y)
            for total, more in zip(self.sums, (away, np.square(away), np.square(error)), strict=True):
                total += more.sum(axis=0)
            self.rows += len(x)
            largest = error.max(axis=0)
            assert self.errors is not None
            for column in np.flatnonzero(~(largest <= self.errors)):
                self.errors[column], self.places[column] = largest[column], where

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        if self.origin is None or self.errors is None:
            return Measured(Kind.REGRESSION, "R2")
        value, squares, error = (s / self.rows for s in self.sums)
        spread = np.maximum(squares - np.square(value), 0.0)
        energy = spread + np.square(value + self.origin)
        constant = spread <= CONSTANT * energy
        scale = np.where(constant, energy, spread)
        with np.errstate(all="ignore"):
            kept = np.where(error > 0.0, 1.0 - error / scale, 1.0)
            relative = self.errors / np.sqrt(scale)
        kept[np.isnan(kept)] = -np.inf
        worst, at = int(np.argmin(kept)), int(np.argmax(np.where(np.isnan(relative), np.inf, relative)))
        level = float(kept[worst])
        many = len(kept) > 1
        return Measured(
            Kind.REGRESSION,
            "R2" + (f" of column {worst}" if many else ""),
            level,
            worst=float(self.errors[at]),
            worst_what="error" + (f" of column {at}" if many else ""),
            worst_at=self.places[at],
            promises=(Promise("R2", level=level),),
        )


@dataclass
class Embedding:
    """Cosine to the float model, spread, and whether each sample keeps its nearest neighbour among the others."""

    layout: Layout
    cosines: list[float] = field(default_factory=list)
    vectors: tuple[list[Floats], list[Floats]] = field(default_factory=lambda: ([], []))
    places: list[Where] = field(default_factory=list)
    worst: Worst = field(default_factory=Worst)

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            x, y = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (a, b))
            if not len(x):
                continue
            found = (unit(x) * unit(y)).sum(axis=-1)
            # Two vectors of zeros are alike.
            found[(x == 0.0).all(axis=-1) & (y == 0.0).all(axis=-1)] = 1.0
            self.cosines.extend(found.tolist())
            self.worst.note(float(found.min()), where)
            if len(self.places) < MOST_VECTORS:
                # Of many vectors of one sample mostly the mean is used.
                for kept, of in zip(self.vectors, (x, y), strict=True):
                    kept.append(unit(of.mean(axis=0)))
                self.places.append(where)

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        tail = float(np.quantile(self.cosines, TAIL, method="lower")) if self.cosines else 1.0
        tally, spread = self._neighbours(), self._spread()
        promises = [Promise("cosine", level=tail)]
        promises += [] if spread is None else [Promise("spread", level=spread)]
        return Measured(
            Kind.EMBEDDING,
            "cosine of 95 %",
            tail,
            rule="nearest neighbour",
            share=tally.share if tally.share.rows else None,
            sure=tally.sure if tally.share.rows else None,
            worst=self.worst.value,
            worst_what="cosine",
            worst_at=self.worst.at,
            promises=(*promises, Promise("nearest neighbours where float is sure", tally.sure)),
        )

    def _neighbours(self) -> Tally:
        """Whether the nearest other sample is the same, where there are enough of them."""
        tally = Tally()
        if len(self.places) < FEWEST_VECTORS or len({len(v) for v in self.vectors[0]}) > 1:
            return tally
        likeness = [np.stack(v) @ np.stack(v).T for v in self.vectors]
        for of in likeness:
            np.fill_diagonal(of, -np.inf)
        for row, (a, b) in enumerate(zip(*likeness, strict=True)):
            order = np.sort(a)[::-1][:-1]
            first, second, middle = order[0], order[1], np.median(order)
            # Samples that are as good as the same one stand for each other.
            sure = first - second > max(CLEAR_LEAD * (first - middle), 1e-6)
            same = bool(a.argmax() == b.argmax())
            tally.add(np.array([same]), np.array([True]), np.array([bool(sure)]), self.places[row])
        return tally

    def _spread(self) -> float | None:
        """1 less the error of the unit vectors over their spread about their mean; None of too few."""
        if len(self.places) < 3 or len({len(v) for v in self.vectors[0]}) > 1:
            return None
        x, y = (np.stack(v) for v in self.vectors)
        spread = float(np.square(x - x.mean(axis=0)).sum())
        if spread <= CONSTANT * len(x):
            return None
        return 1.0 - float(np.square(x - y).sum()) / spread


def unit(x: Floats) -> Floats:
    """``x: [..., D]`` with rows of length 1; those of zeros stay."""
    with np.errstate(all="ignore"):
        length = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
        return np.asarray(np.where(length > 0.0, x / np.where(length > 0.0, length, 1.0), 0.0))


@dataclass
class Features:
    """Noise alone."""

    worst: Worst = field(default_factory=Worst)

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            with np.errstate(all="ignore"):
                error = np.abs(a.astype(np.float64) - b)
            self.worst.note(-float(error.max(initial=0.0, where=~np.isnan(error))), where)

    def measured(self, level_db: float | None) -> Measured:
        return Measured(
            Kind.FEATURES,
            "SQNR",
            level_db,
            "dB",
            worst=None if self.worst.value is None else -self.worst.value,
            worst_what="error",
            worst_at=self.worst.at,
            promises=() if level_db is None else (Promise("SQNR", level=share_of_energy(level_db)),),
        )


def share_of_energy(level_db: float) -> float:
    """1 less the share of noise in the energy: 0.99 at 20 dB."""
    return 1.0 - float(10.0 ** (-level_db / 10.0))
