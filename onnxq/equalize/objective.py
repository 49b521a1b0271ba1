"""J, the noise that factors leave as a convex function of their logarithms, and its minimum.

Channel i of the tensor has ends ``h_i, l_i >= 0`` and the factor ``s_i = exp(t_i)``. Rounding ``s x`` with b bits makes
an error of ``D^2 / 12`` a number, ``D = (max s_i h_i + max s_i l_i) / (2^b - 1)``, which reaches the outputs of its
readers through ``W_i / s_i``; rounding ``W / s`` makes one of ``d_o^2 / 12`` in output channel o,
``d_o = 2 max_i |W_oi| / s_i / (2^B - 1)``, which meets ``s_i x_i``. Every row x counts relative to what it carries,
``c = |W x|^2``: a few rows with very large outputs (the first token of many transformers) say nothing of the rest, and
the normalisations that follow make rows alike. With ``a = E[1 / c]`` and ``m_i = E[x_i^2 / c]`` of each reader

    J(t) = a D^2 / 12 sum_i |W_i|^2 / s_i^2  +  sum_o d_o^2 / 12 sum_i m_i s_i^2.

A tensor that several layers read counts once for each of them. What is read may be the site's channels in another
order, several times, or beside others that have no factor (``Read.of``), and ends are those of what is read.

With a p-norm for each maximum, J is a sum of products of powers of sums of exponentials of t: convex, and its gradient
costs two products with ``|W|^p``. Writers need no term: their own scales, one for each channel, follow the factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxq.equalize.reads import CHANNELS, Indices, Read, gathered, spread
from onnxq.numerics.sampling import spread_step

F64 = npt.NDArray[np.float64]

_NORM = 24.0
_STEPS = 150
_RATE = 0.1
_MOMENTUM, _SPREAD = 0.9, 0.99  # of Adam


# Ends of what a reader reads: ``high`` and ``low`` as in the module's text, ``[n]`` each.
Ends = tuple[F64, F64]


def minimum(reads: Sequence[Read], ends: Sequence[Ends], channels: int) -> F64:
    """The t at which J is least: ``[channels]``; ``ends`` of each of ``reads``."""
    objective = Objective(reads, ends)
    t = np.zeros(channels)
    mean, square = np.zeros_like(t), np.zeros_like(t)
    best, least = t, np.inf
    for step in range(1, _STEPS + 1):
        value, gradient = objective(t)
        if value < least:
            best, least = t, value
        if value <= 0.0:
            break
        gradient /= value  # of log J: the rate need not know how large the noise is
        mean = _MOMENTUM * mean + (1 - _MOMENTUM) * gradient
        square = _SPREAD * square + (1 - _SPREAD) * gradient**2
        rate = _RATE * 0.5 * (1 + np.cos(np.pi * step / _STEPS))
        t = t - rate * (mean / (1 - _MOMENTUM**step)) / (np.sqrt(square / (1 - _SPREAD**step)) + 1e-12)
    return best


class Objective:
    """J and its gradient."""

    def __init__(self, reads: Sequence[Read], ends: Sequence[Ends]) -> None:
        self._read: list[tuple[float, F64, Ends, Indices | None]] = []
        self._weights: list[tuple[_Weights, Indices | None]] = []
        for read, own in zip(reads, ends, strict=True):
            whole = read.whole or read
            inverse = 1.0 / whole.carried(whole.rows)
            if read.activation_bits:
                factor = inverse.mean() / (12.0 * (2**read.activation_bits - 1) ** 2)
                self._read.append((float(factor), _energy(read), own, read.of))
            if read.weight_bits:
                square = inverse @ np.square(read.rows, dtype=np.float64) / inverse.size
                self._weights.append((_Weights(read, square), read.of))

    def __call__(self, t: F64) -> tuple[float, F64]:
        """J and ``dJ/dt: [channels]`` at ``t: [channels]``."""
        factors = np.exp(t, dtype=np.float64)
        value, gradient = 0.0, np.zeros_like(t)
        for factor, energy, (high, low), of in self._read:
            s = spread(factors, of)
            ends = [_largest(s * high), _largest(s * low)]
            width, widths = sum(end for end, _ in ends), sum(slope for _, slope in ends)
            through = energy / s**2
            value += factor * width**2 * through.sum()
            slope = factor * (2 * width * widths * through.sum() - 2 * width**2 * through)
            gradient += gathered(slope, of, t.size)
        for weights, of in self._weights:
            noise, slope = weights(spread(factors, of))
            value += noise
            gradient += gathered(slope, of, t.size)
        return float(value), gradient


class _Weights:
    """The second term of J for one reader."""

    def __init__(self, read: Read, square: F64) -> None:
        assert read.weight_bits
        blocks = np.abs(read.blocks)
        self._places, outer = blocks.shape[2], blocks.shape[3]
        peaks = blocks[..., :: spread_step(outer, CHANNELS)].max(axis=2).astype(np.float64)  # [g, n, C']
        self._top = peaks.max(axis=1, keepdims=True)
        self._powers = (peaks / np.where(self._top > 0, self._top, 1.0)) ** _NORM
        self._factor = (2.0 / (2**read.weight_bits - 1)) ** 2 / 12.0 * outer / peaks.shape[2]
        self._square = square

    def __call__(self, s: F64) -> tuple[float, F64]:
        groups, inner, _ = self._powers.shape
        inverse = (s**-_NORM).reshape(groups, 1, inner)
        sums = np.maximum(inverse @ self._powers, 1e-300)  # [g, 1, C']
        steps = self._factor * np.square(self._top * sums ** (1.0 / _NORM))
        energy = (self._places * self._square * s**2).reshape(groups, inner)
        total, noise = energy.sum(axis=1, keepdims=True), steps.sum(axis=(1, 2))[:, None]
        pull = inverse[:, 0] * (self._powers @ (steps / sums).transpose(0, 2, 1))[:, :, 0]
        return float((total * noise).sum()), (2 * energy * noise - 2 * total * pull).reshape(-1)


def _largest(x: F64) -> tuple[float, F64]:
    """A smooth maximum of ``x >= 0`` and its gradient by the logarithm of x."""
    top = float(x.max())
    if top <= 0.0:
        return 0.0, np.zeros_like(x)
    powers = (x / top) ** _NORM
    total = powers.sum()
    value = top * float(total ** (1.0 / _NORM))
    return value, value * powers / total


def _energy(read: Read) -> F64:
    """The square of what reads each channel: ``[channels]``."""
    energy: F64 = np.square(read.weight, dtype=np.float64).sum(axis=(2, 3))
    return energy.reshape(-1)
