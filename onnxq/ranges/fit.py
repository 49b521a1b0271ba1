"""A weight in integers of any format: grid, codes and scale of all its channels."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.config.formats import WeightFormat
from onnxq.numerics import PerAxis, QType
from onnxq.ranges.choose import weight_params
from onnxq.ranges.grids import block_grid, codebook_grid, uniform_grid
from onnxq.ranges.layer import MANY_BITS, MATRIX_INPUTS, layer_steps, with_gain
from onnxq.ranges.moments import Moments
from onnxq.ranges.rounding import Floats, Grid, Metric, coupled
from onnxq.ranges.samples import F64, channel_parts

# The most inputs of a layer whose weights are rounded together.
COMPENSATED_INPUTS = 4608


class Fitted(NamedTuple):
    """``codes: [g, C, n] int16``, within the type that is computed with, and ``scale: [g, C]`` that reads them."""

    codes: npt.NDArray[np.int16]
    scale: F64


def code_type(stored: WeightFormat, computed: QType) -> QType:
    """The type of the uniform codes of ``stored``: ``computed`` itself where they are not packed."""
    return QType(stored.bits, signed=True, narrow=True) if stored.packed else computed


def compensated_inputs(rounding: str, bits: int) -> int:
    """Inputs of a layer up to which weights of ``bits`` are rounded together, so that all second moments are wanted.

    From 7 bits on ``auto`` does so where it takes no time to speak of: memory grows with the square of the inputs, time
    with their cube, and what the activations lose is more than what a large layer could gain.
    """
    if rounding == "nearest":
        return 0
    return MATRIX_INPUTS if rounding == "auto" and bits >= MANY_BITS else COMPENSATED_INPUTS


def fitted(
    weight: Floats,
    moments: Moments | None,
    *,
    stored: WeightFormat,
    qtype: QType,
    method: str,
    objective: str,
    restore: str,
    rounding: str,
    least: F64,
    outputs: F64 | None = None,
) -> Fitted:
    """``weight: [g, C, n]`` in the format ``stored``; channels that nothing couples are worked on some at a time.

    ``qtype`` is the type that the kernels compute with. ``moments`` are those of the inputs (None: unknown, all inputs
    count the same); ``least`` the smallest scale that
    leaves room for biases, a scalar or ``[g, C]``; the rest is as in ``layer_steps`` and ``Config``. ``outputs``, where
    it is known what errors of the outputs cost, ``[g, C, C]``: then channels are rounded together too (``coupled``).

    Raises ``ConfigError`` for an unknown method, ``NumericsError`` where the weight holds NaN or infinity.
    """
    centred = "mean" in restore
    together = moments is not None and moments.full and rounding != "nearest"
    if together and objective == "auto" and stored.bits < MANY_BITS:
        # The step that is best for rounding to nearest takes most of the time and is not best for rounding together:
        # on eight networks it is 0.1 dB worse at 4 bits and 0.15 at 3.
        objective = "diagonal"
    metric, second = None, None
    if moments is not None and (together or "gain" in restore):
        seen = moments.matrix(centred=centred) if moments.full else moments.squares(centred=centred)
        metric = Metric.of(seen, moments.count) if together else None
        second = seen.astype(np.float32) if "gain" in restore else None
        del seen  # the largest there is
    least = np.broadcast_to(least, weight.shape[:2])
    codes, scales = np.empty(weight.shape, np.int16), np.empty(weight.shape[:2])
    for part in (slice(None),) if stored.codebook or outputs is not None else channel_parts(weight.shape):
        w = weight[:, part].astype(np.float64, copy=False)
        grid = _grid(w, moments, stored, qtype, method, objective, restore)
        grid = replace(grid, scale=np.maximum(grid.scale, least[:, part]).astype(np.float32).astype(np.float64))
        if metric is None:
            levels = grid.nearest(w)
        else:
            levels = metric.rounded(w, grid)
            if outputs is not None:
                levels = coupled(w, metric, grid, outputs, levels)
        found = levels * grid.multiples(weight.shape[2])
        codes[:, part], scales[:, part] = found, grid.scale
        if second is not None:
            scales[:, part] = np.maximum(with_gain(w, found, grid.scale, second), least[:, part])
    return Fitted(codes, scales)


def _grid(
    weight: F64, moments: Moments | None, stored: WeightFormat, qtype: QType, method: str, objective: str, restore: str
) -> Grid:
    importance = None
    if moments is not None:
        squares = moments.squares(centred="mean" in restore)
        importance = np.broadcast_to(squares[:, None, :], weight.shape)
    if stored.codebook:
        return codebook_grid(weight, importance, bits=stored.bits, computed=qtype)
    if stored.block:
        return block_grid(
            weight, importance, qtype=code_type(stored, qtype), computed=qtype, size=stored.block, method=method
        )
    codes = code_type(stored, qtype)
    if moments is None:
        groups, channels, n = weight.shape
        rows = weight.reshape(-1, n).astype(np.float32)
        step = weight_params(rows, qtype=codes, granularity=PerAxis(0), method=method).scale.astype(np.float64)
        return uniform_grid(step.reshape(groups, channels), codes)
    step = layer_steps(weight, moments, qtype=codes, method=method, objective=objective, restore=restore)
    return uniform_grid(step, codes)
