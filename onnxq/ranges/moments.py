"""What a layer's inputs look like: their mean and their second moments, in sums that stream over batches.

With ``x`` the input of one output element (a row of activations, or the patch under a convolution's kernel) and ``D``
the error of a weight, ``W - W_q``, the mean squared error of the layer's output is ``tr(D H D^T)``, ``H = E[x x^T]``.
Its mean is off by ``D E[x]``; once that is added to the layer's bias, what remains is ``tr(D C D^T)`` with the
covariance ``C = H - E[x] E[x]^T``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import NumericsError
from onnxq.files.scratch import in_file, let_go

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
NDArray = npt.NDArray[Any]

_ROWS = 64
# Matrices of more inputs are worked on in float32, some rows at a time.
LARGE_INPUTS = 1152
_ROWS_OF_LARGE = 512


# The variance of an input, by its mean square, below which float32 holds nothing but its mean.
_STILL = 2.0**-46


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over ``count`` inputs of a layer with ``g`` groups of ``n`` inputs each; a monoid under ``+``.

    | field    | shape, float64      | meaning                                                                   |
    |----------|---------------------|---------------------------------------------------------------------------|
    | `total`  | [g, n]              | sum of x                                                                  |
    | `second` | [g, n, n] or [g, n] | sum of x x^T, or of its diagonal alone where the whole would be too large |

    Raises ``NumericsError`` where shapes or counts do not fit, or moments of differing layers are added.
    """

    count: int
    total: F64
    second: F64

    def __post_init__(self) -> None:
        n = self.total.shape
        if self.count < 1:
            raise NumericsError("moments are those of at least one input")
        if len(n) != 2 or self.second.shape not in (n, (*n, n[-1])):
            raise NumericsError(f"second moments of shape {list(self.second.shape)} do not fit sums of {list(n)}")

    def __add__(self, other: Moments) -> Moments:
        if self.second.shape != other.second.shape:
            raise NumericsError(f"moments of {list(self.second.shape)} and {list(other.second.shape)} do not add up")
        return Moments(self.count + other.count, self.total + other.total, self.second + other.second)

    @property
    def full(self) -> bool:
        """Whether the whole matrix is known."""
        return self.second.ndim == 3

    @property
    def mean(self) -> F64:
        """``[g, n]`` E[x]."""
        result: F64 = self.total / self.count
        return result

    def squares(self, *, centred: bool) -> F64:
        """``[g, n]`` E[x^2], or the variance of each input."""
        raw = diagonal(self.second) if self.full else self.second
        result: F64 = raw / self.count - (np.square(self.mean) if centred else 0.0)
        return np.maximum(result, 0.0)

    def matrix(self, *, centred: bool) -> F64:
        """``[g, n, n]`` E[x x^T], or the covariance; diagonal where only that is known."""
        if not self.full:
            return self.squares(centred=centred)[:, :, None] * np.eye(self.total.shape[1])
        raw: F64 = self.second / self.count
        if centred:
            energy = np.diagonal(raw, axis1=1, axis2=2).copy()
            _add_outer(raw, -self.mean, self.mean)
            still = np.diagonal(raw, axis1=1, axis2=2) < _STILL * energy
            if still.any():  # what is left of them is rounding, which need not be positive definite
                raw[still] = 0.0
                raw.transpose(0, 2, 1)[still] = 0.0
        return raw

    @property
    def large(self) -> bool:
        """Whether there are so many inputs that copies of the whole matrix are to be avoided."""
        return self.full and self.second.shape[2] > LARGE_INPUTS

    def known(self, *, centred: bool) -> F64 | F32:
        """``squares`` where only these are known, else ``matrix``; in float32 where that is ``large``."""
        if not self.full:
            return self.squares(centred=centred)
        return self.single(centred=centred) if self.large else self.matrix(centred=centred)

    def single(self, *, centred: bool, order: npt.NDArray[np.intp] | None = None) -> F32:
        """``matrix`` in float32 and in a file, inputs in the ``order: [g, n]``.

        Neither that nor what it is made of stays in memory.
        """
        found, mean = in_file(self.second.shape, np.float32), self.mean
        for g, second in enumerate(self.second):
            at = slice(None) if order is None else order[g]
            for part in parts(self.second.shape[2]):
                which = np.arange(part.start, part.stop) if order is None else order[g, part]
                rows = second[which][:, at] / self.count
                if centred:
                    rows -= mean[g, which, None] * mean[g, at]
                found[g, part] = rows
                let_go(self.second)
                let_go(found)
        return found


def added(a: Moments, b: Moments, *, zeros: Callable[[tuple[int, ...]], F64]) -> Moments:
    """``a + b``; the matrix of a large sum is made by ``zeros``, and nothing else as large is in memory."""
    if not a.large or a.second.shape != b.second.shape:
        return a + b
    second = zeros(a.second.shape)
    for part in parts(a.second.shape[2]):
        second[:, part] = a.second[:, part] + b.second[:, part]
        for one in (a.second, b.second, second):
            let_go(one)
    return Moments(a.count + b.count, a.total + b.total, second)


class MomentSums:
    """Adds up the ``Moments`` of rows that come some at a time; the array of second moments is made by ``zeros``.

    Products are taken in float32 and added up in float64: some rows are few enough for that, once the mean of the first
    of them is taken away. (Where means are hundreds of times as large as what changes, as of pictures that are nearly
    black, float32 products of whole numbers would leave nothing of the covariance.)
    """

    def __init__(self, *, full: bool, zeros: Callable[[tuple[int, ...]], F64] = np.zeros) -> None:
        self._full, self._zeros = full, zeros
        self._sum: Moments | None = None
        self._shift: F32 | None = None
        self._done = False

    def add(self, rows: F32) -> None:
        """Take in ``rows: [g, R, n]``, R inputs of each group."""
        if self._done:
            raise NumericsError("moments that have been asked for take no more rows")
        groups, count, n = rows.shape
        if self._sum is None:
            second = self._zeros((groups, n, n) if self._full else (groups, n))
            self._sum = Moments(count, np.zeros((groups, n)), second)
        else:
            self._sum = replace(self._sum, count=self._sum.count + count)
        self._sum.total[...] += rows.sum(axis=1, dtype=np.float64)
        if self._full:
            if self._shift is None:
                self._shift = (self._sum.total / count).astype(np.float32)
            rows = rows - self._shift[:, None, :]
            across = rows.transpose(0, 2, 1)
            for part in parts(n):
                self._sum.second[:, part] += np.matmul(across[:, part], rows)
                if n > LARGE_INPUTS:
                    let_go(self._sum.second)
        else:
            self._sum.second[...] += np.einsum("grn,grn->gn", rows, rows, dtype=np.float64)

    def let_go(self) -> None:
        """Gives back the memory of sums that lie in a file."""
        if self._sum is not None:
            let_go(self._sum.second)

    def moments(self) -> Moments:
        """Those of all rows that came, at least one; nothing can be added afterwards."""
        if self._sum is None:
            raise NumericsError("moments are those of at least one input")
        if self._shift is not None:
            # Products of x are those of x - c, and c t^T + (t - count c) c^T, with t the sum of x.
            total, second, c = self._sum.total, self._sum.second, self._shift.astype(np.float64)
            rest = total - self._sum.count * c
            _add_outer(second, c, total)
            _add_outer(second, rest, c)
            self._shift = None
        self._done = True
        return self._sum


def times(left: F32, right: F32) -> F32:
    """``left @ right``, one of them ``[g, n, n]``; some of that is in memory at a time where it is large."""
    found: F32 = np.empty((*left.shape[:-1], right.shape[-1]), np.result_type(left, right))
    if left.shape[-2] == left.shape[-1]:
        for part in parts(left.shape[-2]):
            found[..., part, :] = np.matmul(left[..., part, :], right)
            let_go(left)
    else:  # rows of it too: the system reads more of a file than the part of a row that is asked for
        found[...] = 0.0
        for part in parts(right.shape[-1]):
            found += np.matmul(left[..., part], right[..., part, :])
            let_go(right)
    return found


def diagonal(matrix: NDArray) -> NDArray:
    """``[g, n]`` the diagonals of ``matrix: [g, n, n]``; nothing of one in a file stays in memory."""
    found = np.empty(matrix.shape[:2], matrix.dtype)
    for part in parts(matrix.shape[1]):
        found[:, part] = np.diagonal(matrix[:, part, part], axis1=1, axis2=2)
        let_go(matrix)
    return found


def add_to_diagonal(matrix: F32, extra: F32) -> None:
    """Adds ``extra: [g, 1]`` to the diagonals of ``matrix: [g, n, n]``, of which nothing in a file stays in memory."""
    for part in parts(matrix.shape[1]):
        np.einsum("gnn->gn", matrix[:, part, part])[...] += extra
        let_go(matrix)


def parts(inputs: int) -> Iterator[slice]:
    """The rows of a matrix of ``inputs``, all of them at once unless it is large."""
    step = inputs if inputs <= LARGE_INPUTS else _ROWS_OF_LARGE
    return (slice(start, min(start + step, inputs)) for start in range(0, inputs, step))


def _add_outer(matrix: F64, left: F64, right: F64) -> None:
    """Adds ``left right^T``, of ``[g, n]`` both, in place; the product as a whole would be another such matrix."""
    for row in range(0, matrix.shape[1], _ROWS):
        part = slice(row, row + _ROWS)
        matrix[:, part] += left[:, part, None] * right[:, None, :]
        if matrix.shape[1] > LARGE_INPUTS and row % _ROWS_OF_LARGE == 0:
            let_go(matrix)
