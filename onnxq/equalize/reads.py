"""What the readers of a tensor do with it: the rows that they were seen to read, and the weights these meet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxq.numerics.sampling import spread_step

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# Output channels that stand for all where noise is computed.
CHANNELS = 512
# A row that carries less than this share of the median one, or its square of the mean, counts as if it carried that.
_LEAST = 0.01
# Elements of a weight from which on its energies are worked out by the products of its rows.
_LARGE = 1 << 19


@dataclass(frozen=True)
class Read:
    """What a reader does with a site.

    ``rows: [R, channels]`` what it reads, before scaling; ``weight: [g, n, k, C]``; ``activation_bits``,
    ``weight_bits``: None for what stays float; ``block``: inputs that share a scale (0: all of an output channel);
    ``unseen: [R', channels]`` what it reads for other inputs, None where there are none. ``whole``: the read whose
    outputs tell what rows carry, where this one leaves channels out; None: itself. ``of``: by what it reads, the
    channel of the site, -1 for what is none; None: they are the same.
    """

    rows: F32
    weight: F32
    activation_bits: int | None
    weight_bits: int | None
    block: int = 0
    unseen: F32 | None = None
    whole: Read | None = None
    of: Indices | None = None

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
        step = spread_step(self.weight.shape[3], CHANNELS)
        return self.weight[..., step // 2 :: step]

    def carried(self, rows: F32) -> F64:
        """``[R]`` the energy of the outputs for each of ``rows``, never quite 0; places of a kernel are added up."""
        groups, inner = self.weight.shape[:2]
        energy = energies(rows.reshape(-1, groups, inner).transpose(1, 0, 2), self.some.reshape(groups, inner, -1))
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


def spread(factors: F64, of: Indices | None) -> F64:
    """``[n]``: for what has the channels ``of``, its factor; 1 for what belongs to none (-1)."""
    return factors if of is None else np.append(factors, 1.0)[of]


def gathered(parts: F64, of: Indices | None, channels: int) -> F64:
    """``[channels]``: the sum of ``parts: [n]`` by channel; the other way round than ``spread``."""
    if of is None:
        return parts
    known = of >= 0
    found: F64 = np.bincount(of[known], weights=parts[known], minlength=channels).astype(np.float64)
    return found


def energies(rows: F32, weight: F32) -> F64:
    """``[R]`` the energy of ``rows @ weight``, all groups added up; ``rows: [g, R, n]``, ``weight: [g, n, m]``."""
    found: F64
    if weight.size > _LARGE and weight.shape[2] > 2 * weight.shape[1]:
        # By the products of its rows: LAPACK takes ten times as long for a large matrix.
        across = weight.astype(np.float64)
        squares = np.matmul(rows, np.matmul(across, across.transpose(0, 2, 1)).astype(np.float32))
        found = np.maximum(np.einsum("grn,grn->r", squares, rows, dtype=np.float64), 0.0)
        return found
    if weight.shape[2] > weight.shape[1]:
        # What an orthogonal matrix makes of outputs has their energy, and can be chosen to have no more of them than
        # inputs.
        weight = np.asarray(np.linalg.qr(weight.transpose(0, 2, 1), mode="r")).transpose(0, 2, 1)
    made = rows @ weight
    found = np.square(made, out=made).sum(axis=(0, 2), dtype=np.float64)
    return found
