"""Cholesky factors of large matrices in float32, block by block in the place of the result.

A matrix that lies in a file is in memory only as far as a block needs it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxq.files.scratch import in_file, let_go
from onnxq.ranges.moments import LARGE_INPUTS, parts

F32 = npt.NDArray[np.float32]

# Rows that are worked off before the next ones: their square is factored in float64, the rest are float32 products.
_BLOCK = 256
# Rows that are multiplied at once.
_AT_ONCE = 512


def reversed_cholesky(h: F32) -> F32:
    """``[g, n, n]`` the rows of R by their diagonal, ``h = R^T R``, R lower triangular; ``h: [g, n, n]`` stays.

    Raises ``LinAlgError`` where ``h`` is not positive definite.
    """
    factor = _copied(h)
    for matrix in factor:
        _factored(matrix)
        for rows in parts(len(matrix)):
            matrix[rows] /= np.diagonal(matrix)[rows, None].copy()
            let_go(matrix)
    return factor


def _copied(h: F32) -> F32:
    if h.shape[-1] <= LARGE_INPUTS:
        small: F32 = h.copy()
        return small
    copy: F32 = in_file(h.shape, np.float32)
    for rows in parts(h.shape[-1]):
        copy[:, rows] = h[:, rows]
        let_go(h)
        let_go(copy)
    return copy


def solved(h: F32, right: F32) -> F32:
    """``[g, n, m]`` the solution x of ``h x = right``; ``h: [g, n, n]`` is used up, ``right: [g, n, m]`` too.

    Raises ``LinAlgError`` where ``h`` is not positive definite.
    """
    for matrix, x in zip(h, right, strict=True):
        _factored(matrix)
        n = len(matrix)
        blocks = [slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
        for block in reversed(blocks):  # R^T y = right
            _take_away(x[block], matrix, block, x, slice(None))
            x[block] = np.linalg.solve(matrix[block, block].T, x[block])
            let_go(matrix)
        for block in blocks:  # R x = y
            x[block] -= matrix[block, : block.start] @ x[: block.start]
            x[block] = np.linalg.solve(matrix[block, block], x[block])
            let_go(matrix)
    return right


def _factored(matrix: F32) -> None:
    """Puts R in the place of ``matrix: [n, n]``, ``matrix = R^T R``, R lower triangular.

    Rows are worked out from the last to the first: with a block b of inputs and all inputs e behind it,
    ``R_b^T R_b = H_bb - R_eb^T R_eb``, and left of it ``R_b^T R_bl = H_bl - R_eb^T R_el``.
    """
    n = len(matrix)
    for start in reversed(range(0, n, _BLOCK)):
        block = slice(start, min(start + _BLOCK, n))
        rows = matrix[block, : block.stop]
        _take_away(rows, matrix, block, matrix, slice(block.stop))
        own = rows[:, block].astype(np.float64)
        root = np.linalg.cholesky(own[::-1, ::-1])[::-1, ::-1].T
        rows[:, : block.start] = np.linalg.inv(root.T).astype(np.float32) @ rows[:, : block.start]
        rows[:, block] = root
        matrix[block, block.stop :] = 0.0
        let_go(matrix)


def _take_away(target: F32, matrix: F32, block: slice, right: F32, columns: slice) -> None:
    """Takes the product of what lies below a ``block``, turned, and these rows of ``right`` from ``target``.

    Some rows at a time: of a file the system reads whole pages and their neighbours.
    """
    for start in range(block.stop, len(matrix), _AT_ONCE):
        rows = slice(start, min(start + _AT_ONCE, len(matrix)))
        target -= matrix[rows, block].T @ right[rows, columns]
        let_go(matrix)
