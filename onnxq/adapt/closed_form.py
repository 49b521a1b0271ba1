"""One layer adapted to the noise in its input, in closed form.

With ``x`` what the layer reads in the quantized network and ``t`` what its output ought to be, the layer of least mean
squared error is the linear regression of ``t`` on ``x``. Few samples know little about many inputs, hence ridge
regression towards the weight that the layer has (Hoerl and Kennard, Technometrics 1970), with the ridge that samples
held out like best. The local form of Chudakov et al., Iterative Adaptation to Quantization Noise (IWANN 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.files.scratch import let_go
from onnxq.ranges.cholesky import solved
from onnxq.ranges.moments import LARGE_INPUTS, Moments, add_to_diagonal, diagonal, parts, times
from onnxq.ranges.samples import F64

F32 = npt.NDArray[np.float32]

# Ridges that are tried, shares of the mean energy of an input; infinity leaves the weight as it is. Layers of many
# inputs never have the samples for the small ones, and each try solves as many equations.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
_MANY_INPUTS = 2048
_COARSE = (1e-1, 1.0)
# Rows of a large matrix that are added to at once.
_AT_ONCE = 512


@dataclass(frozen=True)
class Pairs:
    """Sums over rows of ``x: [g, R, n]`` and ``t: [g, R, C]``: all that regression needs."""

    count: int
    x: F64  # [g, n]
    t: F64  # [g, C]
    xx: F64 | F32  # [g, n, n]; float32 where there are many inputs
    xt: F64  # [g, n, C]
    tt: F64  # [g, C]

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(
            self.count + other.count,
            self.x + other.x,
            self.t + other.t,
            self.xx + other.xx,
            self.xt + other.xt,
            self.tt + other.tt,
        )

    @property
    def moments(self) -> Moments:
        """Those of x."""
        return Moments(self.count, self.x, self.xx)  # type: ignore[arg-type]

    @property
    def large(self) -> bool:
        """Whether copies of ``xx`` are to be avoided."""
        return self.moments.large

    def centred(self, mean: bool) -> tuple[F64 | F32, F64, F64]:
        """``E[x x^T]``, ``E[x t^T]`` and ``E[t^2]``, or the covariances."""
        xx = self.moments.known(centred=mean) if self.large else self.xx / self.count
        xt, tt = self.xt / self.count, self.tt / self.count
        if not mean:
            return xx, xt, tt
        x, t = self.x / self.count, self.t / self.count
        if not self.large:
            xx = xx - x[:, :, None] * x[:, None, :]
        for part in parts(x.shape[1]):
            xt[:, part] -= x[:, part, None] * t[:, None, :]
        return xx, xt, tt - np.square(t)


class PairSums:
    """Adds up the ``Pairs`` of rows that come some at a time; a large ``xx`` is made by ``zeros``."""

    def __init__(self, zeros: Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]] = np.zeros) -> None:
        self._zeros = zeros
        self.found: Pairs | None = None

    def add(self, x: F32, t: F32) -> None:
        """Takes in ``x: [g, R, n]`` and ``t: [g, R, C]``."""
        if x.shape[2] <= LARGE_INPUTS:
            seen = pairs(x, t)
            self.found = seen if self.found is None else self.found + seen
            return
        groups, count, n = x.shape
        if self.found is None:
            sums = (np.zeros((groups, n)), np.zeros((groups, t.shape[2])))
            xx = self._zeros((groups, n, n), np.float32)
            self.found = Pairs(0, *sums, xx, np.zeros((groups, n, t.shape[2])), np.zeros((groups, t.shape[2])))
        seen, across = self.found, x.transpose(0, 2, 1)
        for start in range(0, n, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            seen.xx[:, part] += np.matmul(across[:, part], x)
            let_go(seen.xx)
        seen.x[...] += x.sum(axis=1, dtype=np.float64)
        seen.t[...] += t.sum(axis=1, dtype=np.float64)
        seen.xt[...] += np.matmul(across, t)
        seen.tt[...] += np.einsum("grc,grc->gc", t, t, dtype=np.float64)
        self.found = replace(seen, count=seen.count + count)


def together(fit: Pairs, check: Pairs | None) -> Pairs:
    """The sum of both; a large one takes the place of ``fit``."""
    if check is None:
        return fit
    if not fit.large:
        return fit + check
    for start in range(0, fit.xx.shape[1], _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        fit.xx[:, part] += check.xx[:, part]
        let_go(fit.xx)
        let_go(check.xx)
    rest = (getattr(fit, name) + getattr(check, name) for name in ("xt", "tt"))
    return Pairs(fit.count + check.count, fit.x + check.x, fit.t + check.t, fit.xx, *rest)


def pairs(x: F32, t: F32) -> Pairs:
    """The ``Pairs`` of some rows; products in float32, for a batch holds few enough, sums in float64."""
    across = x.transpose(0, 2, 1)
    return Pairs(
        x.shape[1],
        x.sum(axis=1, dtype=np.float64),
        t.sum(axis=1, dtype=np.float64),
        np.matmul(across, x).astype(np.float64),
        np.matmul(across, t).astype(np.float64),
        np.einsum("grc,grc->gc", t, t, dtype=np.float64),
    )


@np.errstate(over="ignore", invalid="ignore")  # weights near the end of the type: such a fit is no better
def error(weight: F64, seen: Pairs, *, centred: bool) -> F64:
    """``[g, C]`` the mean squared error of ``x weight^T`` (and the best bias, where ``centred``) as ``t``."""
    xx, xt, tt = seen.centred(centred)
    seen_by = times(weight.astype(xx.dtype, copy=False), xx)  # type: ignore[arg-type]
    result: F64 = np.einsum("gcn,gcn->gc", seen_by, weight) - 2 * np.einsum("gcn,gnc->gc", weight, xt) + tt
    return result


def refitted(weight: F64, fit: Pairs, check: Pairs | None, *, centred: bool) -> tuple[F64, float, Pairs]:
    """``weight: [g, C, n]`` adapted, the ridge chosen (infinity: none helped), and all pairs.

    ``check`` are pairs of samples that ``fit`` does not hold: of ``RIDGES`` the one is taken whose fit has the least
    error there, and then fitted to all pairs. Without ``check`` the weight stays.
    """
    if check is None:
        return weight, np.inf, fit
    best, least = np.inf, float(error(weight, check, centred=centred).sum())
    for ridge in RIDGES if weight.shape[2] < _MANY_INPUTS else _COARSE:
        found = float(error(_ridge(weight, fit, ridge, centred=centred), check, centred=centred).sum())
        if found < least:
            best, least = ridge, found
    every = together(fit, check)
    return (weight if np.isinf(best) else _ridge(weight, every, best, centred=centred)), best, every


@np.errstate(over="ignore", invalid="ignore")
def _ridge(weight: F64, seen: Pairs, ridge: float, *, centred: bool) -> F64:
    xx, xt, _ = seen.centred(centred)
    n = xx.shape[1]
    energy = diagonal(xx).mean(axis=1)
    extra = ridge * np.where(energy > 0, energy, 1.0)[:, None, None]
    # W + (E[x t^T] - E[x x^T] W^T)^T (E[x x^T] + extra)^-1: what the weight itself explains needs no regression.
    if seen.large:
        single = xx.astype(np.float32, copy=False)
        xt -= times(single, weight.transpose(0, 2, 1).astype(np.float32))
        missing = xt.astype(np.float32)
        del xt
        add_to_diagonal(single, extra[:, :, 0].astype(np.float32))
        found: F64 = weight + solved(single, missing).transpose(0, 2, 1)
        return found
    missing = xt - np.matmul(xx, weight.transpose(0, 2, 1))
    step: F64 = np.linalg.solve(xx + extra * np.eye(n), missing).transpose(0, 2, 1)
    return weight + step
