"""Layers as products of matrices: what their weights are multiplied with, and the weights as matrices.

``y[g] = x[g] W[g]^T`` with ``x[g]: [R, n]``, one row for each output position (a row of the activation, or the patch
under a convolution's kernel), and ``W[g]: [C, n]``, one row for each output channel of group g. The groups of a
recurrent layer are its directions, its channels are rows of gates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.numerics import spread_step

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """The geometry of a linear node. ``kernel`` and what follows is empty for Gemm and MatMul.

    ``weight_shape`` is that of the tensor in the graph; ``transposed`` whether its rows are output channels already
    (Conv, Gemm with transB).
    """

    weight_shape: tuple[int, ...]
    transposed: bool
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"

    @property
    def channels(self) -> int:
        """Output channels, of all groups."""
        return self.weight_shape[0] if self.transposed else self.weight_shape[1]

    @property
    def inputs(self) -> int:
        """n: inputs of one output element."""
        return math.prod(self.weight_shape[1:]) if self.transposed else self.weight_shape[0]

    def matrix(self, weight: Array) -> Array:
        """``weight`` (or anything of its shape) as ``[g, C, n]``."""
        rows = weight if self.transposed else weight.T
        return rows.reshape(self.groups, rows.shape[0] // self.groups, -1)

    def tensor(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The opposite of ``matrix``."""
        rows = matrix.reshape(matrix.shape[0] * matrix.shape[1], -1)
        return np.ascontiguousarray(rows.reshape(self.weight_shape) if self.transposed else rows.T)

    def rows(self, x: Array, *, limit: int | None = None) -> Array:
        """``[g, R, n]`` what the layer multiplies of the activation ``x`` at each output position, or at ``limit``."""
        return self.sampler(x.shape, limit=limit)(x)

    def sampler(self, shape: tuple[int, ...], *, limit: int | None = None) -> Callable[[Array], Array]:
        """``rows`` for activations of ``shape``: where to look is worked out once."""
        if not self.kernel:
            chosen = _spread(math.prod(shape[:-1]), limit)
            return lambda x: x.reshape(-1, x.shape[-1])[chosen][None]
        rank, size, pads = len(self.kernel), shape[2:], self._pads(shape[2:])
        sample, *where = self._positions(shape, limit)
        # Only what is asked for is touched: padding whole maps for a few positions would cost more than the model.
        index, inside = [], np.ones((), bool)
        for i in range(rank):
            spread = [-1, *(self.kernel[i] if j == i else 1 for j in range(rank))]
            at = where[i][:, None] * self.strides[i] - pads[i] + np.arange(self.kernel[i]) * self.dilations[i]
            inside = inside & ((at >= 0) & (at < size[i])).reshape(spread)
            index.append(at.clip(0, size[i] - 1).reshape(spread))
        places: tuple[Any, ...] = (sample.reshape(-1, *[1] * rank), slice(None), *index)
        outside = np.nonzero(~np.broadcast_to(inside, (sample.size, *self.kernel)))

        def look(x: Array) -> Array:
            patches: Array = x[places]  # [R, kernel.., C]
            patches[outside] = 0.0
            rows = np.moveaxis(patches, -1, 1).reshape(sample.size, self.groups, -1)
            return np.ascontiguousarray(rows.transpose(1, 0, 2))

        return look

    def output_sampler(self, shape: tuple[int, ...], *, limit: int | None = None) -> Callable[[Array], Array]:
        """Takes from an output the ``[g, R, C]`` values that belong to the ``rows`` of activations of ``shape``."""
        if not self.kernel:
            chosen = _spread(math.prod(shape[:-1]), limit)
            return lambda y: y.reshape(-1, y.shape[-1])[chosen][None]
        sample, *where = self._positions(shape, limit)
        places: tuple[Any, ...] = (sample, slice(None), *where)
        return lambda y: np.ascontiguousarray(y[places].reshape(sample.size, self.groups, -1).transpose(1, 0, 2))

    def _positions(self, shape: tuple[int, ...], limit: int | None) -> list[npt.NDArray[np.intp]]:
        """The sample and the place in the output of each row."""
        rank, size, pads = len(self.kernel), shape[2:], self._pads(shape[2:])
        geometry = zip(size, self.kernel, self.strides, self.dilations, strict=True)
        positions = [
            (n + pads[i] + pads[i + rank] - (k - 1) * d - 1) // s + 1 for i, (n, k, s, d) in enumerate(geometry)
        ]
        return list(np.unravel_index(_spread(shape[0] * math.prod(positions), limit), (shape[0], *positions)))

    def _pads(self, size: tuple[int, ...]) -> tuple[int, ...]:
        if self.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            return self.pads
        geometry = zip(size, self.strides, self.kernel, self.dilations, strict=True)
        total = [max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n) for n, s, k, d in geometry]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        return (*less, *more) if self.auto_pad == "SAME_UPPER" else (*more, *less)


@dataclass(frozen=True)
class Recurrence:
    """One of the two weights of a recurrent layer, ``[directions, rows of gates, n]``.

    ``states``: whether it is multiplied with states, which are seen as what the layer writes, ``[T, directions, N, n]``
    (all of them but the last are read again). Else with inputs, ``[T, N, n]``.
    """

    weight_shape: tuple[int, ...]
    states: bool

    @property
    def groups(self) -> int:
        return self.weight_shape[0]

    @property
    def inputs(self) -> int:
        """n: inputs of one row of gates."""
        return self.weight_shape[2]

    def matrix(self, weight: Array) -> Array:
        """``weight`` as ``[g, C, n]``, which it is."""
        return weight

    def tensor(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The opposite of ``matrix``."""
        return matrix

    def sampler(self, shape: tuple[int, ...], *, limit: int | None = None) -> Callable[[Array], Array]:
        """Takes ``[g, R, n]`` from inputs or states of ``shape``, ``limit`` of them at most."""
        rows = math.prod(shape[:-1]) // (self.groups if self.states else 1)
        chosen = _spread(rows, limit)
        if not self.states:
            return lambda x: np.broadcast_to(
                x.reshape(-1, x.shape[-1])[chosen], (self.groups, len(chosen), self.inputs)
            )
        return lambda y: np.moveaxis(y, 1, 0).reshape(self.groups, -1, self.inputs)[:, chosen]


Product = Geometry | Recurrence


def _spread(count: int, limit: int | None) -> npt.NDArray[np.intp]:
    """Indices below ``count``: all of them, or ``limit`` at most."""
    return np.arange(0, count, 1 if limit is None or count <= limit else spread_step(count, limit))
