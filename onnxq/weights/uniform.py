"""Integers of a few bits with one scale for each channel: ``int2`` to ``int6`` and ``int8``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.config.formats import FormatName
from onnxq.numerics import INT4, PerAxis, QType
from onnxq.ranges.choose import weight_params
from onnxq.ranges.fit import Fit, Fitted
from onnxq.ranges.layer import layer_steps
from onnxq.ranges.moments import Moments
from onnxq.ranges.rounding import Grid
from onnxq.ranges.samples import F64
from onnxq.weights.format import GridFormat, WeightFormat
from onnxq.weights.representation import Levels, Plain, Representation, all_levels

# Weights of a block where MatMulNBits computes and no other number was asked for.
USUAL_BLOCK = 32


@dataclass(frozen=True)
class Uniform(GridFormat):
    """``w = s_c q``: B bits, ``|q| <= 2^(B-1) - 1``; from 8 bits on q is of the type that is computed with.

    n inputs a channel: ``B + 40 / n`` bits a weight, 40 for the scale and the zero point of the channel.
    """

    @property
    def uniform(self) -> bool:
        return True

    @property
    def suffix(self) -> str:
        return f"w{self.bits}"

    @property
    def in_kernel(self) -> FormatName | None:
        return FormatName("int", self.bits, USUAL_BLOCK) if self.bits == INT4.bits else None

    def grid(self, weight: F64, moments: Moments | None, *, qtype: QType, how: Fit) -> Grid:
        codes = self.code_type(qtype)
        if moments is not None:
            steps = layer_steps(
                weight, moments, qtype=codes, method=how.method, objective=how.objective, restore=how.restore
            )
            return uniform_grid(steps, codes)
        groups, channels, n = weight.shape
        rows = weight.reshape(-1, n).astype(np.float32)
        found = weight_params(rows, qtype=codes, granularity=PerAxis(0), method=how.method)
        return uniform_grid(found.scale.astype(np.float64).reshape(groups, channels), codes)

    def representation(self, found: Fitted) -> Representation:
        return Levels(self.bits, all_levels(self.bits)) if self.packed else Plain()


def for_rows(stored: WeightFormat) -> WeightFormat:
    """What is stored in place of ``stored`` of weights that are no linear layer's: there a row is the block."""
    return Uniform(FormatName("int", stored.bits)) if stored.block else stored


def uniform_grid(step: F64, qtype: QType) -> Grid:
    """The codes of ``qtype`` times ``step: [g, C]``."""
    return Grid(step, np.arange(qtype.qmin, qtype.qmax + 1, dtype=np.float64))
