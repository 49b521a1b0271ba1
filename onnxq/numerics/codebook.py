"""Non-uniform quantizers: any ascending levels (a codebook), and levels that a piecewise-linear curve bends.

A codebook maps a value to its nearest level. Companding says the same with fewer numbers: a monotone *compressor* c
bends the axis, a uniform quantizer rounds there, the inverse bends back:

    code = clip(rint(c(x)), 0, K - 1),   real = c^-1(code).

Here the knots of c^-1 lie at ``M + 1`` equally spaced codes that are integers, so that between two neighbouring codes
c is a straight line, its borders ``c^-1(code + 1/2)`` lie halfway between levels, and rounding in the bent axis *is*
rounding to the nearest level. One segment is a uniform quantizer with scale and offset; ``K - 1`` segments reach any
codebook. (Yamamoto, Learnable Companding Quantization, CVPR 2021, section 3, has equally spaced knots on the other axis
and a fixed symmetric range; the knots here are what training moves, and need no softmax to stay in order.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxq.errors import NumericsError
from onnxq.numerics.granularity import Granularity, PerTensor
from onnxq.numerics.params import params
from onnxq.numerics.qtype import INT8_NARROW

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Codebook:
    """A quantizer with any levels: ``real = levels[part, code]``, the level nearest to the value.

    | field    | shape                                    | dtype   | constraint                               |
    |----------|------------------------------------------|---------|------------------------------------------|
    | `levels` | ``(*granularity.scale_shape(shape), K)`` | float32 | finite, ascending along K, 1 <= K <= 256 |

    Of two levels equally near the lower one is taken. Bits: ``log2(K)`` rounded up a weight, ``32 K`` for each part.

    Raises ``NumericsError`` where a constraint is broken.
    """

    levels: F32
    granularity: Granularity = field(default=PerTensor())

    def __post_init__(self) -> None:
        levels = np.asarray(self.levels)
        if levels.dtype != np.float32:
            raise NumericsError(f"levels must be float32, not {levels.dtype}")
        if levels.ndim < 1 or not 1 <= levels.shape[-1] <= 256:
            raise NumericsError(f"a codebook has 1 to 256 levels, not {levels.shape[-1] if levels.ndim else 0}")
        if isinstance(self.granularity, PerTensor) and levels.ndim != 1:
            raise NumericsError(f"a per-tensor codebook is one row of levels, not of shape {list(levels.shape)}")
        if not np.isfinite(levels).all() or (np.diff(levels, axis=-1) < 0).any():
            raise NumericsError("levels must be finite and ascending")
        object.__setattr__(self, "levels", levels)

    @property
    def size(self) -> int:
        """K, the number of levels."""
        return int(self.levels.shape[-1])

    def quantize(self, x: npt.NDArray[np.floating]) -> Codes:
        """Codes of ``x: [..]``, same shape: for each element, how many midpoints between levels lie below it."""
        values = np.asarray(x, np.float32)
        levels = self._expanded(values.shape).astype(np.float64)
        codes = np.zeros(values.shape, np.uint8)
        for k in range(self.size - 1):
            codes += values > (levels[..., k] + levels[..., k + 1]) / 2
        return codes

    def dequantize(self, codes: Codes) -> F32:
        """The levels of ``codes``, float32."""
        levels = np.broadcast_to(self._expanded(codes.shape), (*codes.shape, self.size))
        result: F32 = np.take_along_axis(levels, codes[..., None].astype(np.intp), axis=-1)[..., 0]
        return result

    def fake_quantize(self, x: npt.NDArray[np.floating]) -> F32:
        """``dequantize(quantize(x))``."""
        return self.dequantize(self.quantize(x))

    def _expanded(self, shape: tuple[int, ...]) -> F32:
        """``levels`` broadcastable to ``(*shape, K)``."""
        expected = self.granularity.scale_shape(shape)
        if self.levels.shape[:-1] != expected:
            raise NumericsError(
                f"a {self.granularity} codebook of shape {list(self.levels.shape)} does not fit a tensor of shape "
                f"{list(shape)}"
            )
        rows = [self.granularity.expand(self.levels[..., k], shape) for k in range(self.size)]
        return np.stack(rows, axis=-1).astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Companding:
    """A compressor whose inverse is linear between ``knots``, before a uniform quantizer with ``size`` codes.

    | field   | shape                                        | dtype   | constraint                              |
    |---------|----------------------------------------------|---------|-----------------------------------------|
    | `knots` | ``(*granularity.scale_shape(shape), M + 1)`` | float32 | finite, ascending; M divides ``size - 1`` |

    ``knots[.., j]`` is the real value of code ``j (size - 1) / M``. Bits: ``log2(size)`` rounded up a weight, ``32 (M +
    1)`` for each part.

    Raises ``NumericsError`` where a constraint is broken.
    """

    knots: F32
    size: int
    granularity: Granularity = field(default=PerTensor())

    def __post_init__(self) -> None:
        segments = np.asarray(self.knots).shape[-1] - 1
        if not 2 <= self.size <= 256 or segments < 1 or (self.size - 1) % segments:
            raise NumericsError(f"{segments} segments do not divide {self.size} codes evenly: {self.size} - 1 steps")
        self.codebook()

    def codebook(self) -> Codebook:
        """The levels that the codes stand for."""
        knots = np.asarray(self.knots)
        levels = knots.astype(np.float64) @ hat_functions(self.size, knots.shape[-1] - 1).T
        return Codebook(levels.astype(knots.dtype), self.granularity)

    def compress(self, x: npt.NDArray[np.floating]) -> F64:
        """``c(x)`` for a per-tensor compressor: real codes, of which ``quantize`` takes the nearest integers."""
        if not isinstance(self.granularity, PerTensor):
            raise NumericsError("the curve of one part at a time: take a per-tensor compressor")
        at = np.linspace(0.0, self.size - 1.0, self.knots.shape[-1])
        result: F64 = np.interp(np.asarray(x, np.float64), self.knots.astype(np.float64), at)
        return result

    def quantize(self, x: npt.NDArray[np.floating]) -> Codes:
        """Codes of ``x: [..]``, same shape."""
        return self.codebook().quantize(x)

    def dequantize(self, codes: Codes) -> F32:
        """Real values of ``codes``, float32."""
        return self.codebook().dequantize(codes)

    def fake_quantize(self, x: npt.NDArray[np.floating]) -> F32:
        """``dequantize(quantize(x))``."""
        return self.codebook().fake_quantize(x)


@dataclass(frozen=True, eq=False)
class GridCodebook:
    """A codebook whose levels lie on an 8-bit grid: ``real = scale[part] * codes[part, code]``.

    An integer kernel computes with the grid's codes, so that such a codebook costs nothing when the model runs.

    | field   | shape                                    | dtype   | constraint                |
    |---------|------------------------------------------|---------|---------------------------|
    | `codes` | ``(*granularity.scale_shape(shape), K)`` | int8    | ascending, -127 to 127    |
    | `scale` | ``granularity.scale_shape(shape)``       | float32 | finite and above 0        |

    Raises ``NumericsError`` where a constraint is broken.
    """

    codes: npt.NDArray[np.int8]
    scale: F32
    granularity: Granularity = field(default=PerTensor())

    def __post_init__(self) -> None:
        if self.codes.dtype != np.int8 or self.codes.shape[:-1] != self.scale.shape or (self.codes == -128).any():
            raise NumericsError("a grid codebook has int8 codes from -127 on, one row of them for each scale")
        params(INT8_NARROW, self.scale, granularity=self.granularity)  # says what is wrong with a scale
        self.codebook()

    def codebook(self) -> Codebook:
        """The same levels as real numbers."""
        return Codebook(self.codes.astype(np.float32) * self.scale[..., None], self.granularity)


def hat_functions(size: int, segments: int) -> F64:
    """``[size, segments + 1]`` H with ``levels = H knots``: how far each code is from the knots beside it."""
    at = np.arange(size) * segments / (size - 1)
    result: F64 = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(segments + 1)))
    return result
