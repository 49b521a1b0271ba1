"""Joins samples to feeds of the batch size that the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from onnxq.calibrate.casting import Array
from onnxq.calibrate.layout import Layout
from onnxq.calibrate.sources import Piece


def groups(
    pieces: Iterable[Piece], layout: Layout, *, padding: Mapping[str, int]
) -> Iterator[tuple[dict[str, Array], list[int]]]:
    """Feeds of ``layout.rows`` samples, each with the numbers of its samples; one group in memory at a time.

    Only neighbours of equal shape (inputs in ``padding`` are lengthened instead), equal in every input without batch
    axis, share a feed; another one begins a new feed. A sample with as many rows of its own is a feed by itself. Where
    the model's batch axis is fixed, an incomplete feed is dropped: repeating samples to fill it would bias statistics.
    """
    held: list[Piece] = []
    numbers: list[int] = []
    rows = 0
    kind: object = None
    for number, piece in enumerate(pieces):
        for part in _parts(piece, layout):
            same = _kind(part, layout, padding) if layout.rows > 1 else None
            if held and (same != kind or rows + part.rows > layout.rows):
                if rows == layout.rows or not layout.fixed:
                    yield _join(held, layout, padding), numbers
                held, numbers, rows = [], [], 0
            held.append(part)
            if not numbers or numbers[-1] != number:
                numbers.append(number)
            rows += part.rows
            kind = same
            if rows >= layout.rows:
                yield _join(held, layout, padding), numbers
                held, numbers, rows = [], [], 0
    if held and not layout.fixed:
        yield _join(held, layout, padding), numbers


def _parts(piece: Piece, layout: Layout) -> Iterator[Piece]:
    """``piece``, cut into single rows where its number of rows is not what the model takes."""
    if not layout.fixed or piece.rows in (1, layout.rows):
        yield piece
        return
    for row in range(piece.rows):
        yield Piece({n: row_of(a, row, layout.axes.get(n)) for n, a in piece.arrays.items()}, 1)


def row_of(array: Array, row: int, axis: int | None) -> Array:
    """One ``row`` of ``array`` along its batch ``axis``, which stays with length 1; without one the array itself."""
    return array if axis is None else array[(slice(None),) * axis + (slice(row, row + 1),)]


def _kind(piece: Piece, layout: Layout, padding: Mapping[str, int]) -> object:
    """What must be equal for two samples to share a feed."""
    return tuple(
        (name, array.ndim if name in padding else (*array.shape[:axis], *array.shape[axis + 1 :]))
        if (axis := layout.axes.get(name)) is not None
        else (name, array.shape, array.tobytes())
        for name, array in piece.arrays.items()
    )


def _join(held: list[Piece], layout: Layout, padding: Mapping[str, int]) -> dict[str, Array]:
    if len(held) == 1:
        return {name: np.ascontiguousarray(a) if a.ndim else a for name, a in held[0].arrays.items()}
    joined: dict[str, Array] = {}
    for name, first in held[0].arrays.items():
        if name not in layout.batched:
            joined[name] = np.ascontiguousarray(first) if first.ndim else first
            continue
        parts = [piece.arrays[name] for piece in held]
        if name in padding and first.ndim > 1:
            longest = max(a.shape[-1] for a in parts)
            parts = [
                np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, longest - a.shape[-1])], constant_values=padding[name])
                for a in parts
            ]
        joined[name] = np.concatenate(parts, axis=layout.axes[name])
    return joined


def in_words(samples: Sequence[object], where: str, row: int | None) -> str:
    """Which of a feed's ``samples`` its ``row`` is, in the data called ``where``; without a row, all of them."""
    if row is not None and row < len(samples) > 1:
        return f"sample {samples[row]} of {where}"
    alone = len(set(samples)) == 1
    which = f"sample {samples[0]}" if alone else f"one of the samples {samples[0]} to {samples[-1]}"
    return f"{which} of {where}" if row is None else f"row {row} of {which} of {where}"
