"""Which factors make the least noise: of an activation with one scale, and of the weights that read it.

J, the noise of both as a function of the factors, is convex (``objective``). Its minimum is tried with the ranges and
the rounding that quantizing would take, on other rows than those it was found for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from onnxq.calibrate.observers import observe
from onnxq.equalize.objective import Ends, minimum
from onnxq.equalize.reads import Read, energies, gathered, spread
from onnxq.numerics import PerAxis, QType, round_half_even
from onnxq.numerics.sampling import spread_step
from onnxq.ranges import activation_params, weight_params

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# Multiplications that a trial may take.
_WORK = 1 << 33
_FEWEST_ROWS = 64
# Factors are powers of the eighth root of 2, so that a byte tells one: at most 4 % off, which costs nothing.
_OCTAVE = 8
LARGEST = 64.0
# In the place of a step: the factor is 0.
_TAKEN = np.int8(-128)
# Share of the numbers of a channel that lie beyond its ends: searched ranges clip about as much.
_BEYOND = 1e-3
# Channels that may be taken out, at most one of so many; and what a few more of them must gain.
_NUMBERS = (1, 2, 4, 8, 16)
_ONE_OF = 16
_WORTH_MORE = 0.8


def best_factors(reads: Sequence[Read], channels: int, *, method: str) -> tuple[F64, float]:
    """(factors ``[channels]``, noise with them relative to noise without), for a site read by ``reads``.

    The minima of J for the ends of what was seen and for the ends less a few outliers are tried on ``unseen``, with
    ``method`` for ranges; so is leaving all as it is, which gives ones and 1.0. Which of them is best being known, all
    rows say how large its factors are. Their geometric mean is about 1, unless other channels lie beside them;
    ``to_steps`` loses nothing of them.
    """
    if not any((read.rows != 0).any() for read in reads):
        return np.ones(channels), 1.0
    before = least = trial(reads, np.ones(channels), method)
    best = None
    for share in (0.0, _BEYOND):
        noise = trial(reads, _wanted(reads, channels, share), method)
        if noise < least:
            best, least = share, noise
    if best is None:
        return np.ones(channels), 1.0
    return _wanted([read.both for read in reads], channels, best), least / before


def best_without(reads: Sequence[Read], *, method: str) -> tuple[F64, float]:
    """(factors ``[channels]``, noise with them), 0 for the channels that are taken out; noise as that of ``trial``.

    Those of the largest ends go first. Of 1, 2, 4, 8 and 16 of them as few are taken as make about the least noise.
    """
    ends = np.abs(reads[0].rows).max(axis=0)  # a Mul in front: all read one tensor
    order = np.argsort(-ends, kind="stable")
    best, least = np.ones(ends.size), trial(reads, np.ones(ends.size), method)
    for number in _NUMBERS:
        if number * _ONE_OF > ends.size:
            break
        rest = [_without(read, order[:number]) for read in reads]
        factors, _ = best_factors(rest, ends.size, method=method)
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


def _wanted(reads: Sequence[Read], channels: int, share: float) -> F64:
    """The factors at the minimum of J for the rows of ``reads``; ends leave a ``share`` of the numbers outside."""
    by_rows: dict[int, Ends] = {}
    live = np.zeros(channels)
    for read in reads:
        if id(read.rows) not in by_rows:
            low, high = np.quantile(read.rows, (share, 1.0 - share), axis=0).astype(np.float64)
            by_rows[id(read.rows)] = np.maximum(high, 0.0), np.maximum(-low, 0.0)
            live += gathered((read.rows != 0).any(axis=0).astype(np.float64), read.of, channels)
    ends = [by_rows[id(read.rows)] for read in reads]
    logs = np.where(live > 0, minimum(reads, ends, channels), 0.0)
    if not any(read.of is not None and (read.of < 0).any() for read in reads):
        logs[live > 0] -= logs[live > 0].mean()  # one factor for all changes nothing, where nothing lies beside them
    return from_steps(to_steps(np.exp(logs).clip(1.0 / LARGEST, LARGEST)))


def to_steps(factors: F64) -> npt.NDArray[np.int8]:
    """The nearest whole numbers of eighths of an octave; a number of its own for 0."""
    taken = factors == 0
    return np.where(taken, _TAKEN, round_half_even(np.log2(np.where(taken, 1.0, factors)) * _OCTAVE)).astype(np.int8)


def from_steps(steps: npt.NDArray[np.int8]) -> F64:
    """The factors that ``steps`` eighths of an octave are."""
    return np.where(steps == _TAKEN, 0.0, np.exp2(steps.astype(np.float64) / _OCTAVE))


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
        rows, own = read.tried[::step], spread(factors, read.of).astype(np.float32)
        scaled = rows * own
        if read.activation_bits:
            seen = observe(read.rows * own, tensor="")
            qtype = QType(read.activation_bits, signed=False)
            if seen is not None:
                scaled = activation_params(seen, qtype=qtype, method=method).fake_quantize(scaled)
        split = (len(rows), groups, inner)
        plain, noisy = (x.reshape(split).transpose(1, 0, 2) for x in (rows, scaled))
        weight = full / own.reshape(groups, inner, 1, 1)
        if read.weight_bits:
            weight = _rounded(weight, replace(read, weight=full))
        flat = (groups, inner, places * outer)
        both = np.concatenate([weight.reshape(flat), full.reshape(flat)], axis=1)
        energy = energies(np.concatenate([noisy, -plain], axis=2), both)
        whole = read.whole or read
        noise += float((energy / whole.carried(whole.tried[::step])).mean())
    return noise


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
