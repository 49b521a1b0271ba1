"""Rounding weights together: what one code gets wrong, the next ones make up for.

``W: [g, C, n]`` are rounded to the values of a ``Grid``, ``H = E[x x^T]`` (or the covariance, where the bias takes care
of means) are the second moments of the inputs. What counts is ``tr(E H E^T)``, ``E = W - W_q``: it is the mean squared
error of the layer's output.

*Successive rounding.* With ``H = R^T R``, R lower triangular, the error of one channel is a sum over i of

    (R_ii e_i + sum_{j < i} R_ij e_j)^2,

so that codes decided one after the other, each nearest to ``w_i + sum_{j < i} (R_ij / R_ii) e_j``, make every term as
small as its own rounding allows: Babai's nearest plane (Combinatorica 1986, section 3). Frantar et al., GPTQ (ICLR
2023, section 3.3) reach the same codes by updating the weights still to come with rows of a Cholesky factor of
``H^-1``; here nothing is inverted. Inputs of great energy go first, while the most others can still make up for them.

*Coordinate descent* then revisits each code with all others fixed: ``nearest(w_i - e_i + (E H)_i / H_ii)``; no step
raises the error (Behdin et al., QuantEase, 2023, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.files.scratch import let_go
from onnxq.numerics import round_half_even
from onnxq.ranges.cholesky import reversed_cholesky
from onnxq.ranges.moments import Moments, add_to_diagonal, diagonal, times
from onnxq.ranges.reach import in_reach, within_reach
from onnxq.ranges.samples import F64, Index, channel_parts

# Columns worked off before what they changed is multiplied out for the rest: one matrix product instead of many rows.
_BLOCK = 64
# A share of the mean energy, added to every input: an input that was hardly seen must not carry the others' errors. Few
# rows say little about many inputs, hence the second part, a share that grows with inputs per row.
DAMPING = 0.01
_PER_ROW = 0.1
# Passes of coordinate descent: what those after the first add falls with the number of levels, 0.5 dB at 2 bits, 0.04
# at 4, 0.02 at 8.
_PASSES = 4
_MANY_LEVELS = 100

# Groups of channels that are rounded anew one after the other, how often, and the damping of what outputs cost.
_GROUPS = 32
_SWEEPS = 3
_OUTPUT_DAMPING = 0.1

F32 = npt.NDArray[np.float32]
Levels = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64] | npt.NDArray[np.float32]  # worked on in float64


@dataclass(frozen=True, eq=False)
class Blocks:
    """What changes from block to block of ``size`` inputs: ``multiples``, not 0, and integer ``zeros``; [g, C, nb]."""

    size: int
    multiples: F64
    zeros: F64


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that weights may take: ``scale[c] * multiple[c, b] * (level - zero[c, b])``, b the input's block.

    ``scale: [g, C]`` above 0; ``levels: [K]`` integers, ascending, consecutive where there are zeros; without
    ``blocks`` the multiple is 1 and the zero 0.
    """

    scale: F64
    levels: F64
    blocks: Blocks | None = None

    def nearest(self, weight: Floats) -> Levels:
        """``level - zero`` of the values nearest to ``weight: [g, C, n]``."""
        found = np.empty(weight.shape, np.int16)
        for part in channel_parts(weight.shape):
            piece = self.part(part, _in_order(weight))
            across = weight[:, part].transpose(0, 2, 1).astype(np.float64, copy=False)
            found[:, part] = piece.nearest(across, slice(None)).transpose(0, 2, 1)
        return found

    def multiples(self, inputs: int) -> F64:
        """``[g, C, inputs]`` the multiple of each weight."""
        if self.blocks is None:
            return np.ones((*self.scale.shape, 1))
        return np.repeat(self.blocks.multiples, self.blocks.size, axis=2)[:, :, :inputs]

    def part(self, channels: slice, inputs: Index) -> Piece:
        """Some ``channels``, their inputs in the order ``inputs: [g, n]``."""
        scale = self.scale[:, None, channels]
        if self.blocks is None:
            return Piece(self.levels, scale, None)
        where = (inputs // self.blocks.size)[:, :, None]
        multiples, zeros = (x[:, channels].transpose(0, 2, 1) for x in (self.blocks.multiples, self.blocks.zeros))
        unit = np.take_along_axis(multiples, where, axis=1) * scale
        return Piece(self.levels, unit, np.take_along_axis(zeros, where, axis=1) if zeros.any() else None)


@dataclass(frozen=True, eq=False)
class Piece:
    """Some channels of a ``Grid``, last: ``unit``, what a level is worth, and its ``zeros``; [g, n, C] or [g, 1, C]."""

    levels: F64
    unit: F64
    zeros: F64 | None

    def nearest(self, values: F64, rows: slice) -> F64:
        """``level - zero`` of the values nearest to ``values: [g, some n, C]``, which stand in ``rows``."""
        ratio = values / self.units(rows)
        zero = 0.0 if self.zeros is None else self.zeros[:, rows]
        if self.levels[-1] - self.levels[0] == self.levels.size - 1:
            result: F64 = np.clip(round_half_even(ratio), self.levels[0] - zero, self.levels[-1] - zero)
            return result
        return self.levels[np.searchsorted((self.levels[1:] + self.levels[:-1]) / 2, ratio)]

    def units(self, rows: slice) -> F64:
        """``unit`` of some ``rows``, to be broadcast."""
        return self.unit if self.unit.shape[1] == 1 else self.unit[:, rows]


@dataclass(frozen=True, eq=False)
class Metric:
    """What errors of a layer's weights cost, ready for rounding.

    ``order: [g, n]``: the inputs by falling energy; in that order ``h: [g, n, n]``, the second moments with damping,
    and ``ratios``, the rows of R by their diagonal. Both are products of errors, which are small beside the weights:
    float32 will do for them, while weights and codes are float64.
    """

    order: Index
    h: F32
    ratios: F32

    @classmethod
    def of(cls, second: F64, rows: int) -> Metric:
        """That of ``second: [g, n, n]``, taken over ``rows`` inputs."""
        n, second = second.shape[1], in_reach(second)
        energy = np.diagonal(second, axis1=1, axis2=2)
        order = np.argsort(-energy, axis=1, kind="stable")
        h = second[np.arange(len(second))[:, None, None], order[:, :, None], order[:, None, :]]
        h[:, np.arange(n), np.arange(n)] += _damping(energy, rows)[:, None]
        # The Cholesky factor from the other end: flipped H = L L^T makes H = R^T R, R = flipped L^T, lower triangular.
        factor = np.linalg.cholesky(h[:, ::-1, ::-1])[:, ::-1, ::-1].transpose(0, 2, 1)
        factor /= np.diagonal(factor, axis1=1, axis2=2)[:, :, None].copy()
        return cls(order, h.astype(np.float32), factor.astype(np.float32))

    @classmethod
    def of_moments(cls, moments: Moments, *, centred: bool) -> Metric:
        """That of inputs with ``moments``, all of them; in float32 where that is large, without copies of it."""
        energy = moments.squares(centred=centred)
        if not moments.large or not within_reach(energy):
            return cls.of(moments.matrix(centred=centred), moments.count)
        order = np.argsort(-energy, axis=1, kind="stable")
        h = moments.single(centred=centred, order=order)
        add_to_diagonal(h, _damping(energy, moments.count)[:, None].astype(np.float32))
        return cls(order, h, reversed_cholesky(h))

    def rounded(self, weight: Floats, grid: Grid) -> Levels:
        """``weight: [g, C, n]`` rounded together; by this metric no channel is worse than rounded to nearest."""
        result = np.empty(weight.shape, np.int16)
        order = self.order[:, :, None]
        for part in channel_parts(weight.shape):
            piece = grid.part(part, self.order)
            # Channels last: what is decided one after the other are rows that lie together.
            w = np.take_along_axis(weight[:, part].transpose(0, 2, 1), order, axis=1).astype(np.float64, copy=False)
            plain = piece.nearest(w, slice(None))
            found, error = _descended(w, self.h, piece, _successive(w, self.ratios, piece))
            better = error <= _error(self.h, w - plain * piece.unit)
            levels = np.where(better[:, None, :], found, plain).astype(np.int16)
            np.put_along_axis(result[:, part].transpose(0, 2, 1), order, levels, axis=1)
        return result


def _damping(energy: F64, rows: int) -> F64:
    """``[g]`` what is added to ``energy: [g, n]`` of inputs that ``rows`` showed."""
    mean = energy.mean(axis=1)
    # Where a layer's inputs are all 0, any damping will do.
    result: F64 = (DAMPING + _PER_ROW * energy.shape[1] / max(rows, 1)) * np.where(mean > 0, mean, 1.0)
    return result


def compensated(weight: Floats, second: F64, rows: int, grid: Grid) -> Levels:
    """What ``grid.nearest`` gives, with less error at the output; by ``second``, damped, no channel is worse than that.

    ``second: [g, n, n]`` was taken over ``rows`` inputs.
    """
    return Metric.of(second, rows).rounded(weight, grid)


def coupled(weight: F64, metric: Metric, grid: Grid, outputs: F64, levels: Levels, *, seed: int = 0) -> Levels:
    """``levels``, as ``metric`` rounded them, so that channels make up for each other's errors as well.

    ``outputs: [g, C, C]`` says what errors of the outputs cost. What counts is ``tr(G E H E^T)``, the mean squared
    error at the network's output for a Hessian in Kronecker form (Martens and Grosse, Optimizing Neural Networks with
    Kronecker-factored Approximate Curvature, ICML 2015, section 3; for rounding: Tseng et al., Model-Preserving
    Adaptive Rounding, 2025). Groups of channels in turn are rounded anew towards what is best for them while the others
    stay, ``W_a + G_aa^-1 G_ab E_b``, and kept if the sum falls.
    """
    channels, n = weight.shape[1:]
    if channels == 1:
        return levels
    random = np.random.default_rng(seed)
    result: Levels = levels.copy()
    unit = grid.scale[:, :, None] * grid.multiples(n)
    for g in range(weight.shape[0]):
        cost = _damped_outputs(outputs[g])
        own = Metric(metric.order[g : g + 1], metric.h[g : g + 1], metric.ratios[g : g + 1])
        order, h = metric.order[g], metric.h[g]
        error = (weight[g] - result[g] * unit[g])[:, order]
        target = weight[g][:, order]
        back = np.argsort(order)
        for _ in range(_SWEEPS):
            for chosen in np.array_split(random.permutation(channels), min(_GROUPS, channels)):
                block = cost[np.ix_(chosen, chosen)]
                pull = cost[chosen] @ error
                shift = np.linalg.solve(block, pull) - error[chosen]
                part = _channels(grid, g, chosen)
                found = own.rounded((target[chosen] + shift)[None][:, :, back], part)
                changed = target[chosen] - (found[0] * unit[g, chosen])[:, order]
                moved = changed - error[chosen]
                seen = moved @ h
                if np.einsum("ij,ij->", block @ seen, moved) + 2.0 * np.einsum("ij,ij->", pull, seen) < 0.0:
                    error[chosen] = changed
                    result[g, chosen] = found[0]
    return result


def _damped_outputs(outputs: F64) -> F64:
    """``outputs`` as costs of mean 1, a share of them on the diagonal: what was seen of them is a sample."""
    mean = np.trace(outputs) / len(outputs)
    cost = outputs / mean if mean > 0 else np.zeros_like(outputs)
    return (1.0 - _OUTPUT_DAMPING) * cost + _OUTPUT_DAMPING * np.eye(len(outputs))


def _channels(grid: Grid, group: int, chosen: Index) -> Grid:
    blocks = grid.blocks
    if blocks is not None:
        blocks = Blocks(blocks.size, *(x[group : group + 1, chosen] for x in (blocks.multiples, blocks.zeros)))
    return Grid(grid.scale[group : group + 1, chosen], grid.levels, blocks)


def _in_order(weight: Floats) -> Index:
    return np.broadcast_to(np.arange(weight.shape[2]), (weight.shape[0], weight.shape[2]))


def _error(h: F32, lost: F64) -> F64:
    """``[g, C]`` what ``lost: [g, n, C]`` of the weights cost."""
    return np.asarray(np.einsum("gnc,gnc->gc", lost, times(h, lost.astype(np.float32))))


def _successive(w: F64, ratios: F32, piece: Piece) -> F64:
    """Levels of ``w: [g, n, C]`` decided from the first input to the last; ``ratios: [g, n, n]``, R's rows by R_ii."""
    levels, e = np.empty_like(w), np.zeros(w.shape, np.float32)
    for rows in _blocks(w, ratios):
        goal = w[:, rows] + np.matmul(ratios[:, rows, : rows.start], e[:, : rows.start])
        levels[:, rows], e[:, rows] = _decided(goal, w[:, rows], ratios[:, rows, rows], piece, rows.start)
    return levels


def _descended(w: F64, h: F32, piece: Piece, levels: F64) -> tuple[F64, F64]:
    """``levels`` of ``w: [g, n, C]`` after passes of coordinate descent, and the error of each channel, ``[g, C]``."""
    levels = levels.copy()
    own: F32 = diagonal(h)[:, :, None]
    slope = times(h, (w - levels * piece.unit).astype(np.float32)).astype(np.float64)
    for _ in range(_PASSES if piece.levels.size < _MANY_LEVELS else 1):
        change = np.zeros(w.shape, np.float32)
        for rows in _blocks(w, h):
            before = levels[:, rows] * piece.units(rows)
            pull = slope[:, rows] + np.matmul(h[:, rows, : rows.start], change[:, : rows.start])
            ratios: F32 = h[:, rows, rows] / own[:, rows]
            goal = before + pull / own[:, rows]
            levels[:, rows], change[:, rows] = _decided(goal, before, ratios, piece, rows.start)
        if not change.any():
            break
        slope += times(h, change)
    return levels, np.einsum("gnc,gnc->gc", w - levels * piece.unit, slope)


def _decided(goal: F64, origin: F64, ratios: F32, piece: Piece, start: int) -> tuple[F64, F32]:
    """The levels of the inputs from ``start`` on, one after the other, and the ``origin`` less their values.

    Each is nearest to its ``goal: [g, b, C]`` and what those before it leave to it, ``ratios: [g, b, b]`` of theirs.
    """
    levels, left = np.empty_like(goal), np.empty(goal.shape, np.float32)
    for i in range(goal.shape[1]):
        one, at = slice(i, i + 1), slice(start + i, start + i + 1)
        levels[:, one] = piece.nearest(goal[:, one] + np.matmul(ratios[:, one, :i], left[:, :i]), at)
        left[:, one] = origin[:, one] - levels[:, one] * piece.units(at)
    return levels, left


def _blocks(w: F64, matrix: F32) -> Iterator[slice]:
    """The inputs of ``[g, n, C]``, ``_BLOCK`` at a time; what each read of a ``matrix`` in a file is given back."""
    for start in range(0, w.shape[1], _BLOCK):
        yield slice(start, min(start + _BLOCK, w.shape[1]))
        let_go(matrix)
