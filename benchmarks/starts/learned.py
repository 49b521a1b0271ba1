"""Learned quantizers in numpy, forward and backward: LSQ, LSQ+ and companding, each with its straight-through rule.

    LSQ     Esser et al., Learned Step Size Quantization, ICLR 2020, section 2.1, equations 3 and 4 (weights; data >= 0)
    LSQ+    Bhalgat et al., LSQ+, CVPR workshops 2020, section 3.1 (activations with an offset)
    companding: knots of ``onnxq.numerics.Companding``; a level is linear in the knots, so its gradient is exact, and
            the weight passes straight through where it lies within the levels

``forward`` returns the quantized array and what ``backward`` needs; ``backward`` the gradients of its parameters and,
for weights, of the array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.numerics import QType, round_half_even
from onnxq.numerics.codebook import hat_functions

Array = np.ndarray


@dataclass
class LsqWeights:
    """A step for each row of ``W: [C, n]``; ``parameters: [C, 1]``."""

    qtype: QType
    parameters: Array

    def forward(self, w: Array) -> tuple[Array, Any]:
        """(s clip(round(w / s)), saved)."""
        s = np.maximum(self.parameters, 1e-12)
        v = w / s
        q = np.clip(round_half_even(v), self.qtype.qmin, self.qtype.qmax)
        return s * q, (v, q)

    def backward(self, upstream: Array, saved: Any) -> tuple[Array, Array]:
        """(gradient of s, gradient of w)."""
        v, q = saved
        inside = (v >= self.qtype.qmin) & (v <= self.qtype.qmax)
        # d(s q)/ds: round(v) - v inside, the end code outside.
        slope = np.where(inside, q - v, q)
        return (upstream * slope).sum(axis=1, keepdims=True), upstream * inside


@dataclass
class CompandedWeights:
    """Knots for each row of ``W: [C, n]``; ``parameters: [C, M + 1]`` ascending."""

    size: int
    parameters: Array

    def forward(self, w: Array) -> tuple[Array, Any]:
        """(nearest level, saved)."""
        hats = hat_functions(self.size, self.parameters.shape[1] - 1)
        levels = np.maximum.accumulate(self.parameters, axis=1) @ hats.T
        borders = (levels[:, 1:] + levels[:, :-1]) / 2
        codes = np.zeros(w.shape, np.intp)
        for k in range(self.size - 1):
            codes += w > borders[:, k : k + 1]
        inside = (w >= levels[:, :1]) & (w <= levels[:, -1:])
        return np.take_along_axis(levels, codes, axis=1), (hats, codes, inside)

    def backward(self, upstream: Array, saved: Any) -> tuple[Array, Array]:
        """(gradient of the knots, gradient of w)."""
        hats, codes, inside = saved
        rows = np.arange(codes.shape[0])[:, None]
        by_level = np.zeros((codes.shape[0], self.size))
        np.add.at(by_level, (rows, codes), upstream)
        return by_level @ hats, upstream * inside


@dataclass
class LsqActivations:
    """One step and one offset for all of ``x``; ``parameters: [2]``. With ``offset_learned`` False this is LSQ."""

    qtype: QType
    parameters: Array
    offset_learned: bool

    def forward(self, x: Array) -> tuple[Array, Any]:
        """(s clip(round((x - b) / s)) + b, saved)."""
        s, b = max(float(self.parameters[0]), 1e-12), float(self.parameters[1])
        v = (x - b) / s
        q = np.clip(round_half_even(v), self.qtype.qmin, self.qtype.qmax)
        return s * q + b, (v, q)

    def backward(self, upstream: Array, saved: Any) -> Array:
        """Gradient of (s, b): with x fixed, db is 0 inside (the offset cancels) and 1 outside."""
        v, q = saved
        inside = (v >= self.qtype.qmin) & (v <= self.qtype.qmax)
        ds = float((upstream * np.where(inside, q - v, q)).sum())
        db = float((upstream * ~inside).sum()) if self.offset_learned else 0.0
        return np.asarray([ds, db])
