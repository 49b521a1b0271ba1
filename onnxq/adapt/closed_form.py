"""One layer adapted to the noise in its input, in closed form.

With ``x`` what the layer reads in the quantized network and ``t`` what its output ought to be, the layer of least mean
squared error is the linear regression of ``t`` on ``x``. Few samples know little about many inputs, hence ridge
regression towards the weight that the layer has (Hoerl and Kennard, Technometrics 1970), with the ridge that samples
held out like best. The local form of Chudakov et al., Iterative Adaptation to Quantization Noise (IWANN 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.ranges.moments import Moments
from onnxq.ranges.samples import F64

F32 = npt.NDArray[np.float32]

# Ridges that are tried, shares of the mean energy of an input; infinity leaves the weight as it is. Layers of many
# inputs never have the samples for the small ones, and each try solves as many equations.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
_MANY_INPUTS = 2048
_COARSE = (1e-1, 1.0)


@dataclass(frozen=True)
class Pairs:
    """Sums over rows of ``x: [g, R, n]`` and ``t: [g, R, C]``: all that regression needs."""

    count: int
    x: F64  # [g, n]
    t: F64  # [g, C]
    xx: F64  # [g, n, n]
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
        return Moments(self.count, self.x, self.xx)

    def centred(self, mean: bool) -> tuple[F64, F64, F64]:
        """``E[x x^T]``, ``E[x t^T]`` and ``E[t^2]``, or the covariances."""
        xx, xt, tt = self.xx / self.count, self.xt / self.count, self.tt / self.count
        if not mean:
            return xx, xt, tt
        x, t = self.x / self.count, self.t / self.count
        return xx - x[:, :, None] * x[:, None, :], xt - x[:, :, None] * t[:, None, :], tt - np.square(t)


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
    result: F64 = (
        np.einsum("gcn,gcn->gc", np.matmul(weight, xx), weight) - 2 * np.einsum("gcn,gnc->gc", weight, xt) + tt
    )
    return result


def refitted(weight: F64, fit: Pairs, check: Pairs | None, *, centred: bool) -> tuple[F64, float]:
    """``weight: [g, C, n]`` adapted, and the ridge chosen (infinity: none helped).

    ``check`` are pairs of samples that ``fit`` does not hold: of ``RIDGES`` the one is taken whose fit has the least
    error there, and then fitted to all pairs. Without ``check`` the weight stays.
    """
    if check is None:
        return weight, np.inf
    best, least = np.inf, float(error(weight, check, centred=centred).sum())
    for ridge in RIDGES if weight.shape[2] < _MANY_INPUTS else _COARSE:
        found = float(error(_ridge(weight, fit, ridge, centred=centred), check, centred=centred).sum())
        if found < least:
            best, least = ridge, found
    return (weight if np.isinf(best) else _ridge(weight, fit + check, best, centred=centred)), best


@np.errstate(over="ignore", invalid="ignore")
def _ridge(weight: F64, seen: Pairs, ridge: float, *, centred: bool) -> F64:
    xx, xt, _ = seen.centred(centred)
    n = xx.shape[1]
    energy = np.diagonal(xx, axis1=1, axis2=2).mean(axis=1)
    extra = ridge * np.where(energy > 0, energy, 1.0)[:, None, None]
    # W + (E[x t^T] - E[x x^T] W^T)^T (E[x x^T] + extra)^-1: what the weight itself explains needs no regression.
    missing = xt - np.matmul(xx, weight.transpose(0, 2, 1))
    step: F64 = np.linalg.solve(xx + extra * np.eye(n), missing).transpose(0, 2, 1)
    return weight + step
