"""Which factors make the least noise: of an activation with one scale, and of the weights that read it.

Channel i of the tensor has ends ``h_i, l_i >= 0`` and the factor ``s_i = exp(t_i)``. Rounding ``s x`` with b bits makes
an error of ``D^2 / 12`` a number, ``D = (max s_i h_i + max s_i l_i) / (2^b - 1)``, which reaches the outputs of its
readers through ``W_i / s_i``; rounding ``W / s`` makes one of ``d_o^2 / 12`` in output channel o,
``d_o = 2 max_i |W_oi| / s_i / (2^B - 1)``, which meets ``s_i x_i``. Every row x counts relative to what it carries,
``c = |W x|^2``: a few rows with very large outputs (the first token of many transformers) say nothing of the rest, and
the normalisations that follow make rows alike. With ``a = E[1 / c]`` and ``m_i = E[x_i^2 / c]`` of each reader

    J(t) = a D^2 / 12 sum_i |W_i|^2 / s_i^2  +  sum_o d_o^2 / 12 sum_i m_i s_i^2.

With a p-norm for each maximum, J is a sum of products of powers of sums of exponentials of t: convex, and its gradient
costs two products with ``|W|^p``. Writers need no term: their own scales, one for each channel, follow the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxq.calibrate.observers import observe
from onnxq.numerics import PerAxis, QType, round_half_even
from onnxq.numerics.sampling import spread_step
from onnxq.ranges import activation_params, weight_params

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_NORM = 24.0
_STEPS = 150
_RATE = 0.1
_MOMENTUM, _SPREAD = 0.9, 0.99  # of Adam
# Output channels that stand for all in J and in trials, and multiplications that a trial may take.
_CHANNELS = 512
_WORK = 1 << 33
_FEWEST_ROWS = 64
# Factors are powers of the eighth root of 2, so that a byte tells one: at most 4 % off, which costs nothing.
_OCTAVE = 8
LARGEST = 64.0
# In the place of a step: the factor is 0.
_TAKEN = np.int8(-128)
# Share of the numbers of a channel that lie beyond its ends: searched ranges clip about as much.
_BEYOND = 1e-3
# A row that carries less than this share of the median one, or its square of the mean, counts as if it carried that.
_LEAST = 0.01
# Channels that may be taken out, at most one of so many; and what a few more of them must gain.
_NUMBERS = (1, 2, 4, 8, 16)
_ONE_OF = 16
_WORTH_MORE = 0.8


@dataclass(frozen=True)
class Read:
    """What a reader does with a site.

    ``rows: [R, channels]`` what it reads, before scaling; ``weight: [g, n, k, C]``; ``activation_bits``,
    ``weight_bits``: None for what stays float; ``block``: inputs that share a scale (0: all of an output channel);
    ``unseen: [R', channels]`` what it reads for other inputs, None where there are none. ``whole``: the read whose
    outputs tell what rows carry, where this one leaves channels out; None: itself.
    """

    rows: F32
    weight: F32
    activation_bits: int | None
    weight_bits: int | None
    block: int = 0
    unseen: F32 | None = None
    whole: Read | None = None

    @property
    def both(self) -> Read:
        """With all rows as seen."""
        if self.unseen is None:
            return self
        whole = None if self.whole is None else self.whole.both
        return replace(self, rows=np.concatenate([self.rows, self.unseen]), unseen=None, whole=whole)

    @property
    def tried(self) -> F32:
        """The rows for trials: not those that factors are fitted to, where there are others."""
        return self.rows if self.unseen is None else self.unseen

    @property
    def some(self) -> F32:
        """The weight with some of its output channels."""
        step = spread_step(self.weight.shape[3], _CHANNELS)
        return self.weight[..., step // 2 :: step]

    def carried(self, rows: F32) -> F64:
        """``[R]`` the energy of the outputs for each of ``rows``, never quite 0; places of a kernel are added up."""
        groups, inner = self.weight.shape[:2]
        energy = _energies(rows.reshape(-1, groups, inner).transpose(1, 0, 2), self.some.reshape(groups, inner, -1))
        least = max(_LEAST * float(np.median(energy)), _LEAST**2 * float(energy.mean()), np.finfo(np.float32).tiny)
        found: F64 = np.maximum(energy, least)
        return found

    @property
    def blocks(self) -> F32:
        """The weight with its blocks as groups."""
        groups, inner, places, outer = self.weight.shape
        if not self.block or inner % self.block:
            return self.weight
        return self.weight.reshape(groups * (inner // self.block), self.block, places, outer)


def best_factors(reads: Sequence[Read], *, method: str) -> tuple[F64, float]:
    """(factors ``[channels]``, noise with them relative to noise without), for a site read by ``reads``.

    The minima of J for the ends of what was seen and for the ends less a few outliers are tried on ``unseen``, with
    ``method`` for ranges; so is leaving all as it is, which gives ones and 1.0. Which of them is best being known, all
    rows say how large its factors are. Their geometric mean is about 1; ``to_steps`` loses nothing of them.
    """
    channels = reads[0].rows.shape[1]
    if not any((read.rows != 0).any() for read in reads):
        return np.ones(channels), 1.0
    before = least = trial(reads, np.ones(channels), method)
    best = None
    for share in (0.0, _BEYOND):
        noise = trial(reads, _wanted(reads, share), method)
        if noise < least:
            best, least = share, noise
    if best is None:
        return np.ones(channels), 1.0
    return _wanted([read.both for read in reads], best), least / before


def best_without(reads: Sequence[Read], *, method: str) -> tuple[F64, float]:
    """(factors ``[channels]``, noise with them), 0 for the channels that are taken out; noise as that of ``trial``.

    Those of the largest ends go first. Of 1, 2, 4, 8 and 16 of them as few are taken as make about the least noise.
    """
    ends = np.abs(_distinct(reads)).max(axis=0)
    order = np.argsort(-ends, kind="stable")
    best, least = np.ones(ends.size), trial(reads, np.ones(ends.size), method)
    for number in _NUMBERS:
        if number * _ONE_OF > ends.size:
            break
        rest = [_without(read, order[:number]) for read in reads]
        factors, _ = best_factors(rest, method=method)
        noise = trial(rest, factors, method)
        if noise < _WORTH_MORE * least:
            factors[order[:number]] = 0.0
            best, least = factors, noise
    return best, least


def _without(read: Read, channels: npt.NDArray[np.intp]) -> Read:
    """``read`` where ``channels`` are always 0, and so are the weights that would have read them."""
    rows, weight = read.rows.copy(), read.weight.copy()
    groups, inner, places, outer = weight.shape
    rows[:, channels] = 0
    weight.reshape(groups * inner, places, outer)[channels] = 0
    unseen = None if read.unseen is None else read.unseen.copy()
    if unseen is not None:
        unseen[:, channels] = 0
    return replace(read, rows=rows, weight=weight, unseen=unseen, whole=read.whole or read)


def _distinct(reads: Sequence[Read]) -> F32:
    """The rows of all ``reads``, once where several read one tensor."""
    return np.concatenate([read.rows for read in {id(read.rows): read for read in reads}.values()])


def _wanted(reads: Sequence[Read], share: float) -> F64:
    """The factors at the minimum of J for the rows of ``reads``; ends leave a ``share`` of the numbers outside."""
    rows = _distinct(reads)
    live = (rows != 0).any(axis=0)
    low, high = np.quantile(rows, (share, 1.0 - share), axis=0).astype(np.float64)
    logs = minimum(reads, np.maximum(high, 0.0), np.maximum(-low, 0.0))
    wanted = np.where(live, np.exp(logs - logs[live].mean()), 1.0).clip(1.0 / LARGEST, LARGEST)
    return from_steps(to_steps(wanted))


def to_steps(factors: F64) -> npt.NDArray[np.int8]:
    """The nearest whole numbers of eighths of an octave; a number of its own for 0."""
    taken = factors == 0
    return np.where(taken, _TAKEN, round_half_even(np.log2(np.where(taken, 1.0, factors)) * _OCTAVE)).astype(np.int8)


def from_steps(steps: npt.NDArray[np.int8]) -> F64:
    """The factors that ``steps`` eighths of an octave are."""
    return np.where(steps == _TAKEN, 0.0, np.exp2(steps.astype(np.float64) / _OCTAVE))


def minimum(reads: Sequence[Read], high: F64, low: F64) -> F64:
    """The t at which J is least: ``[channels]``; ``high`` and ``low`` as in the module's text."""
    objective = Objective(reads, high, low)
    t = np.zeros(high.size)
    mean, spread = np.zeros_like(t), np.zeros_like(t)
    best, least = t, np.inf
    for step in range(1, _STEPS + 1):
        value, gradient = objective(t)
        if value < least:
            best, least = t, value
        if value <= 0.0:
            break
        gradient /= value  # of log J: the rate need not know how large the noise is
        mean = _MOMENTUM * mean + (1 - _MOMENTUM) * gradient
        spread = _SPREAD * spread + (1 - _SPREAD) * gradient**2
        rate = _RATE * 0.5 * (1 + np.cos(np.pi * step / _STEPS))
        t = t - rate * (mean / (1 - _MOMENTUM**step)) / (np.sqrt(spread / (1 - _SPREAD**step)) + 1e-12)
    return best


class Objective:
    """J and its gradient."""

    def __init__(self, reads: Sequence[Read], high: F64, low: F64) -> None:
        self._high, self._low = high, low
        self._read: list[tuple[float, F64]] = []
        self._weights = []
        for read in reads:
            inverse = 1.0 / (read.whole or read).carried((read.whole or read).rows)
            if read.activation_bits:
                factor = inverse.mean() / (12.0 * (2**read.activation_bits - 1) ** 2)
                self._read.append((float(factor), _energy(read)))
            if read.weight_bits:
                square = inverse @ np.square(read.rows, dtype=np.float64) / inverse.size
                self._weights.append(_Weights(read, square))

    def __call__(self, t: F64) -> tuple[float, F64]:
        """J and ``dJ/dt: [channels]`` at ``t: [channels]``."""
        s = np.exp(t, dtype=np.float64)
        value, gradient = 0.0, np.zeros_like(t)
        ends = [_largest(s * self._high), _largest(s * self._low)]
        width, widths = sum(end for end, _ in ends), sum(slope for _, slope in ends)
        for factor, energy in self._read:
            through = energy / s**2
            value += factor * width**2 * through.sum()
            gradient += factor * (2 * width * widths * through.sum() - 2 * width**2 * through)
        for weights in self._weights:
            noise, slope = weights(s)
            value += noise
            gradient += slope
        return float(value), gradient


class _Weights:
    """The second term of J for one reader."""

    def __init__(self, read: Read, square: F64) -> None:
        assert read.weight_bits
        blocks = np.abs(read.blocks)
        self._places, outer = blocks.shape[2], blocks.shape[3]
        peaks = blocks[..., :: spread_step(outer, _CHANNELS)].max(axis=2).astype(np.float64)  # [g, n, C']
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


def trial(reads: Sequence[Read], factors: F64, method: str) -> float:
    """The noise of the outputs of ``reads`` with factors folded in and everything rounded, on unseen rows.

    That of every row relative to what it carries; the mean over rows, and the sum over ``reads``. Ranges are those of
    the rows that were seen: factors that suit these alone let others be clipped. Places of a kernel are taken as if
    they were added up independently; some output channels stand for all.
    """
    noise = 0.0
    for read in reads:
        full = read.some
        groups, inner, places, outer = full.shape
        most = max(_FEWEST_ROWS, _WORK // (2 * max(1, full.size)))
        step = spread_step(len(read.tried), most)
        rows = read.tried[::step]
        scaled = rows * factors.astype(np.float32)
        if read.activation_bits:
            seen = observe(read.rows * factors.astype(np.float32), tensor="")
            qtype = QType(read.activation_bits, signed=False)
            if seen is not None:
                scaled = activation_params(seen, qtype=qtype, method=method).fake_quantize(scaled)
        split = (len(rows), groups, inner)
        plain, noisy = (x.reshape(split).transpose(1, 0, 2) for x in (rows, scaled))
        weight = full / factors.astype(np.float32).reshape(groups, inner, 1, 1)
        if read.weight_bits:
            weight = _rounded(weight, replace(read, weight=full))
        flat = (groups, inner, places * outer)
        both = np.concatenate([weight.reshape(flat), full.reshape(flat)], axis=1)
        energy = _energies(np.concatenate([noisy, -plain], axis=2), both)
        whole = read.whole or read
        noise += float((energy / whole.carried(whole.tried[::step])).mean())
    return noise


def _energies(rows: F32, weight: F32) -> F64:
    """``[R]`` the energy of ``rows @ weight``, all groups added up; ``rows: [g, R, n]``, ``weight: [g, n, m]``."""
    if weight.shape[2] > weight.shape[1]:
        # What an orthogonal matrix makes of outputs has their energy, and can be chosen to have no more of them than
        # inputs.
        weight = np.asarray(np.linalg.qr(weight.transpose(0, 2, 1), mode="r")).transpose(0, 2, 1)
    made = rows @ weight
    energies: F64 = np.square(made, out=made).sum(axis=(0, 2), dtype=np.float64)
    return energies


def _rounded(weight: F32, read: Read) -> F32:
    """``weight``, of the shape of ``read.weight``, rounded to nearest with one scale an output channel, or block."""
    assert read.weight_bits
    groups, inner, places, outer = read.blocks.shape
    rows = weight.reshape(groups, inner, places, outer).transpose(0, 3, 1, 2).reshape(groups * outer, inner * places)
    rounded = weight_params(
        np.ascontiguousarray(rows), qtype=QType(read.weight_bits, signed=True), granularity=PerAxis(0), method="minmax"
    ).fake_quantize(rows)
    ordered: F32 = rounded.reshape(groups, outer, inner, places).transpose(0, 2, 3, 1)
    return ordered.reshape(weight.shape)
