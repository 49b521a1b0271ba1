"""A weight in integers on any grid: codes and scale of all its channels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from onnxq.numerics import QType
from onnxq.ranges.layer import MANY_BITS, MATRIX_INPUTS, with_gain
from onnxq.ranges.moments import Moments
from onnxq.ranges.reach import in_reach, within_reach
from onnxq.ranges.rounding import Blocks, Floats, Grid, Levels, Metric, coupled
from onnxq.ranges.samples import F64, channel_parts

# The most inputs of a layer whose weights are rounded together.
COMPENSATED_INPUTS = 4608


@dataclass(frozen=True)
class Fit:
    """How weights are fitted: ``weight_range``, ``objective``, ``restore`` and ``rounding`` of ``Config``."""

    method: str
    objective: str
    restore: str
    rounding: str

    @property
    def centred(self) -> bool:
        """Whether a bias takes care of the means of outputs."""
        return "mean" in self.restore


class Grids(Protocol):
    """What says which values a weight may take: a weight format.

    ``bits`` a weight; ``shared``: whether channels have more in common than the type of their codes, so that none can
    be looked at without the others.
    """

    @property
    def bits(self) -> int: ...

    @property
    def shared(self) -> bool: ...

    def grid(self, weight: F64, moments: Moments | None, *, qtype: QType, how: Fit) -> Grid:
        """The grid of the channels ``weight: [g, C, n]``; the arguments are those of ``fitted``."""
        ...


class Fitted(NamedTuple):
    """``codes: [g, C, n] int16``, within the type that is computed with, and ``scale: [g, C]`` that reads them.

    Codes are ``levels: [K]``, times the multiples of ``blocks`` where there are some.
    """

    codes: npt.NDArray[np.int16]
    scale: F64
    levels: F64
    blocks: Blocks | None


def compensated_inputs(rounding: str, bits: int) -> int:
    """Inputs of a layer up to which weights of ``bits`` are rounded together, so that all second moments are wanted.

    From 7 bits on ``auto`` does so where it takes no time to speak of: memory grows with the square of the inputs, time
    with their cube, and what the activations lose is more than what a large layer could gain.
    """
    if rounding == "nearest":
        return 0
    return MATRIX_INPUTS if rounding == "auto" and bits >= MANY_BITS else COMPENSATED_INPUTS


def importance_of(weight: F64, moments: Moments | None, *, centred: bool) -> F64 | None:
    """``[g, C, n]`` what errors of ``weight: [g, C, n]`` cost by the mean squares of its inputs; None: all the same."""
    if moments is None:
        return None
    return np.broadcast_to(moments.squares(centred=centred)[:, None, :], weight.shape)


def fitted(
    weight: Floats,
    moments: Moments | None,
    grids: Grids,
    *,
    qtype: QType,
    how: Fit,
    least: F64,
    outputs: F64 | None = None,
) -> Fitted:
    """``weight: [g, C, n]`` on the grid of ``grids``; channels that nothing couples are worked on some at a time.

    ``qtype`` is the type that the kernels compute with. ``moments`` are those of the inputs (None: unknown, all inputs
    count the same); ``least`` the smallest scale that leaves room for biases, a scalar or ``[g, C]``. ``outputs``,
    where it is known what errors of the outputs cost, ``[g, C, C]``: then channels are rounded together too
    (``coupled``).

    Raises ``ConfigError`` for an unknown method, ``NumericsError`` where the weight holds NaN or infinity.
    """
    together = moments is not None and moments.full and how.rounding != "nearest"
    if together and how.objective == "auto" and grids.bits < MANY_BITS:
        # The step that is best for rounding to nearest takes most of the time and is not best for rounding together:
        # on eight networks it is 0.1 dB worse at 4 bits and 0.15 at 3.
        how = replace(how, objective="diagonal")
    metric = Metric.of_moments(moments, centred=how.centred) if moments is not None and together else None
    least = np.broadcast_to(least, weight.shape[:2])
    codes, scales, parts = np.empty(weight.shape, np.int16), np.empty(weight.shape[:2]), []
    channels = [slice(None)] if grids.shared or outputs is not None else list(channel_parts(weight.shape))
    for part in channels:
        w = weight[:, part].astype(np.float64, copy=False)
        grid = grids.grid(w, moments, qtype=qtype, how=how)
        grid = replace(grid, scale=np.maximum(grid.scale, least[:, part]).astype(np.float32).astype(np.float64))
        codes[:, part] = _rounded(w, grid, metric, outputs) * grid.multiples(weight.shape[2])
        scales[:, part] = grid.scale
        parts.append(grid)
    del metric  # as large as what comes next
    if moments is not None and "gain" in how.restore:
        second = _known(moments, centred=how.centred)
        for part in channels:
            w, found = weight[:, part].astype(np.float64, copy=False), codes[:, part].astype(np.float64)
            scales[:, part] = np.maximum(with_gain(w, found, scales[:, part], second), least[:, part])
    return Fitted(codes, scales, parts[0].levels, _joined([g.blocks for g in parts if g.blocks is not None]))


def _known(moments: Moments, *, centred: bool) -> npt.NDArray[np.float32]:
    """The second moments, or the squares where only these are known, in float32."""
    if moments.full and moments.large and within_reach(moments.squares(centred=centred)):
        return moments.single(centred=centred)
    found = moments.matrix(centred=centred) if moments.full else moments.squares(centred=centred)
    return in_reach(found).astype(np.float32)


def _rounded(weight: F64, grid: Grid, metric: Metric | None, outputs: F64 | None) -> Levels:
    """The levels of ``weight: [g, C, n]``: together where there is a ``metric``, channels too where ``outputs`` are."""
    if metric is None:
        return grid.nearest(weight)
    levels = metric.rounded(weight, grid)
    return levels if outputs is None else coupled(weight, metric, grid, outputs, levels)


def _joined(parts: list[Blocks]) -> Blocks | None:
    """The blocks of all channels from those of some at a time."""
    if not parts:
        return None
    multiples, zeros = (np.concatenate(x, axis=1) for x in zip(*((b.multiples, b.zeros) for b in parts), strict=True))
    return Blocks(parts[0].size, multiples, zeros)
