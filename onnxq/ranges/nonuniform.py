"""Non-uniform quantizers of a weight: the optimal codebook, one on the int8 grid, and a compressor fitted to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxq.errors import NumericsError
from onnxq.numerics import Codebook, Companding, Granularity, GridCodebook
from onnxq.ranges.choose import checked_importance, checked_weight
from onnxq.ranges.companding import optimal_knots
from onnxq.ranges.kmeans import optimal_levels
from onnxq.ranges.method import usable
from onnxq.ranges.samples import F32, F64, Samples, by_granularity, scales_of_rows
from onnxq.ranges.snapped import snapped

Importance = npt.NDArray[np.floating]


def optimal_codebook(
    weight: F32, *, bits: int, granularity: Granularity, importance: Importance | None = None
) -> Codebook:
    """The ``2^bits`` levels of least squared error for each part of ``weight: [..] float32``, exactly (``kmeans``).

    ``importance: [..]`` weighs the error of each element. Raises ``NumericsError`` where the weight holds NaN or
    infinity, the importance does not fit, bits are not 1 to 8, or the granularity does not fit the shape.
    """
    size = _size(bits)
    levels = _fitted(weight, granularity, importance, (size,), lambda samples: optimal_levels(samples, levels=size))
    return Codebook(levels.astype(np.float32), granularity)


def optimal_grid_codebook(
    weight: F32, *, bits: int, granularity: Granularity, importance: Importance | None = None
) -> GridCodebook:
    """As ``optimal_codebook``, its levels moved onto an int8 grid (``snapped``), for integer kernels."""
    size = _size(bits)

    def fit(samples: Samples) -> F64:
        found = snapped(samples, optimal_levels(samples, levels=size))
        return np.concatenate([found.codes, usable(found.scale)[:, None]], axis=1)

    found = _fitted(weight, granularity, importance, (size + 1,), fit)
    return GridCodebook(found[..., :-1].astype(np.int8), found[..., -1].astype(np.float32), granularity)


def optimal_companding(
    weight: F32, *, bits: int, segments: int, granularity: Granularity, importance: Importance | None = None
) -> Companding:
    """A compressor of ``segments`` pieces before ``2^bits`` uniform codes, fitted to ``weight`` (``companding``).

    Raises as ``optimal_codebook``, and where ``segments`` does not divide ``2^bits - 1``.
    """
    size = _size(bits)
    if segments < 1 or (size - 1) % segments:
        raise NumericsError(f"{segments} segments do not divide the {size - 1} steps of {bits} bits evenly")

    def fit(samples: Samples) -> F64:
        return optimal_knots(samples, size=size, segments=segments)

    knots = _fitted(weight, granularity, importance, (segments + 1,), fit)
    return Companding(np.maximum.accumulate(knots.astype(np.float32), axis=-1), size, granularity)


def _fitted(
    weight: F32,
    granularity: Granularity,
    importance: Importance | None,
    shape: tuple[int, ...],
    fit: Callable[[Samples], F64],
) -> F64:
    x = checked_weight(weight)
    parts = granularity.scale_shape(x.shape)
    w = None if importance is None else checked_importance(importance, x.shape)
    if not x.size:
        return np.ones((*parts, *shape))
    return by_granularity(
        x, granularity, importance=w, scale_of=lambda rows, weights: scales_of_rows(rows, weights, fit)
    )


def _size(bits: int) -> int:
    if not 1 <= bits <= 8:
        raise NumericsError(f"a codebook has 1 to 8 bits, not {bits}")
    return int(2**bits)
