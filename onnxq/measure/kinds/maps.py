"""Matrices whose largest entries are read: attention, alignment, likeness of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.measure.kinds.classes import decided
from onnxq.measure.kinds.judge import Array, Tally, strictest
from onnxq.measure.kinds.kind import Kind, Measured, Where
from onnxq.measure.kinds.layout import Layout
from onnxq.measure.kinds.sure import first_two, is_sure

NEAR_TIES = 1
# Which part of a map an application reads is not known: blocks of this size stand for all of them.
BLOCK = 16
# A lead of so many units in the last place of the largest entry of its row may come out of rounding in float32 alone:
# sums of a row are off by a few of them in any order of adding up.
ULPS = 8.0
_EPSILON = float(np.finfo(np.float32).eps)


@dataclass
class Maps:
    """Counts the rows, the columns, and the rows and columns of blocks with the largest entry in the same place.

    Entries that lead by less than float noise are no decisions. The worst of the three counts.
    """

    layout: Layout
    tallies: dict[str, Tally] = field(default_factory=lambda: {n: Tally() for n in ("rows", "columns", "blocks")})

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            if a.ndim < 2:
                continue
            maps, others = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
            both = (maps, others), (maps.swapaxes(1, 2), others.swapaxes(1, 2))
            for name, (x, y) in zip(("rows", "columns"), both, strict=True):
                self._count(name, [(x, y)], where)
            self._count("blocks", [pair for x, y in both for pair in _blocks(x, y)], where)

    def _count(self, name: str, pairs: Sequence[tuple[Array, Array]], at: Where) -> None:
        found = [decisions(x, y, probabilities=self.layout.bounded) for x, y in pairs if x.size and x.shape[-1] > 1]
        if found:
            same, counts, sure = (np.concatenate([f[i].ravel() for f in found]) for i in range(3))
            self.tallies[name].add(same, counts, sure, at)

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        tallies = {n: t for n, t in self.tallies.items() if t.share.rows} or self.tallies
        name, tally, surest = strictest(tallies)
        found = Measured(
            Kind.MAP,
            f"largest of {'rows and columns of blocks' if name == 'blocks' else name}",
            100.0 * tally.share.value,
            "%",
            rule="arg-max",
            worst=tally.worst.value,
            worst_what="share of the same",
            worst_at=tally.worst.at,
        )
        return decided(found, tally, NEAR_TIES, surest=surest)


def decisions(x: Array, y: Array, *, probabilities: bool) -> tuple[Array, Array, Array]:
    """Of rows: whether the largest is in the same place, whether it decides at all, whether that is sure.

    ``x``, ``y``: ``[..., C]`` of float and quantized, of two entries or more.
    """
    place, first, second = first_two(x)
    with np.errstate(all="ignore"):
        largest = np.maximum(np.abs(x).max(axis=-1).astype(np.float64), np.finfo(np.float32).tiny)
        counts = first - second > ULPS * _EPSILON * largest
    return place == y.argmax(axis=-1), counts, is_sure(first, second, probabilities=probabilities)


def _blocks(x: Array, y: Array) -> list[tuple[Array, Array]]:
    """Pieces of ``[maps, rows, columns]`` whose rows lie within a block; none where a block is as wide as the map."""
    columns = x.shape[-1]
    if columns <= BLOCK:
        return []
    whole = columns - columns % BLOCK
    pieces = [v[:, :, :whole].reshape(*v.shape[:2], -1, BLOCK) for v in (x, y)] if whole else []
    rest = [v[:, :, whole:] for v in (x, y)] if columns - whole > 1 else []
    return [(of[0], of[1]) for of in (pieces, rest) if of]
