"""Scale and zero point of a tensor, and the only code in onnxq that rounds.

The arithmetic is ONNX's QuantizeLinear and DequantizeLinear as onnxruntime's CPU kernels compute them, bit for bit:
float32 division, rounding half to even, the zero point added *after* rounding (adding it before differs on ties when
the zero point is odd), saturation last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from onnxq.errors import NumericsError
from onnxq.numerics.granularity import Granularity, PerAxis, PerBlock, PerTensor
from onnxq.numerics.qtype import INT32, QType

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.integer]
AnyQuantized = TypeVar("AnyQuantized", bound="Quantized")


@dataclass(frozen=True, eq=False)
class QuantParams:
    """How a real tensor maps to integer codes: ``real = scale * (q - zero_point)``.

    | field         | shape                              | dtype             | constraint                        |
    |---------------|------------------------------------|-------------------|-----------------------------------|
    | `scale`       | ``granularity.scale_shape(shape)`` | float32           | finite and > 0; of blocks not 0   |
    | `zero_point`  | that of ``scale``                  | ``qtype.storage`` | within ``[qtype.qmin, qtype.qmax]`` |

    Raises ``NumericsError`` where a constraint is broken.
    """

    qtype: QType
    scale: F32
    zero_point: Ints
    granularity: Granularity = field(default=PerTensor())

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale)
        zero = np.asarray(self.zero_point)
        if scale.dtype != np.float32:
            raise NumericsError(f"scale must be float32, not {scale.dtype}")
        if scale.shape != zero.shape:
            raise NumericsError(f"scale has shape {list(scale.shape)} but zero_point {list(zero.shape)}")
        if isinstance(self.granularity, PerTensor) and scale.shape != ():
            raise NumericsError(f"a per-tensor scale is a scalar, not of shape {list(scale.shape)}")
        # A block's scale may be negative: that turns its codes round, so that the odd one is on the other side.
        if not (
            np.isfinite(scale).all() and (scale != 0 if isinstance(self.granularity, PerBlock) else scale > 0).all()
        ):
            raise NumericsError("scale must be finite and positive")
        if zero.dtype != self.qtype.storage:
            raise NumericsError(f"zero_point must be {self.qtype.storage}, not {zero.dtype}")
        if zero.size and not (zero.min() >= self.qtype.qmin and zero.max() <= self.qtype.qmax):
            raise NumericsError(f"zero_point must lie in [{self.qtype.qmin}, {self.qtype.qmax}]")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero)

    @property
    def symmetric(self) -> bool:
        """Whether all zero points are 0."""
        return not self.zero_point.any()

    def quantize(self, x: npt.NDArray[np.floating]) -> Ints:
        """Codes of ``x: [...] float``, same shape, dtype ``qtype.storage``; equal to QuantizeLinear bit for bit."""
        scale, zero = self._expanded(x.shape)
        # What overflows to infinity saturates below, as in onnxruntime; it deserves no warning.
        with np.errstate(over="ignore"):
            rounded = np.rint(np.asarray(x, np.float32) / scale)
        if self.qtype.bits > 16:  # float32 holds integers exactly only to 2**24
            rounded = rounded.astype(np.float64)
        codes = np.clip(rounded + zero, self.qtype.qmin, self.qtype.qmax)
        integers: Ints = codes.astype(self.qtype.storage)
        return integers

    def dequantize(self, q: Ints) -> F32:
        """Real values of ``q``, float32; equal to DequantizeLinear bit for bit."""
        scale, zero = self._expanded(q.shape)
        difference = q.astype(np.int32) - zero.astype(np.int32)
        with np.errstate(over="ignore"):  # infinity, as the operator has it
            return difference.astype(np.float32) * scale

    def fake_quantize(self, x: npt.NDArray[np.floating]) -> F32:
        """``dequantize(quantize(x))``."""
        return self.dequantize(self.quantize(x))

    def bounds(self) -> tuple[F32, F32]:
        """The real values of the lowest and the highest code, each of the scale's shape."""
        zero = self.zero_point.astype(np.int64)
        low = ((self.qtype.qmin - zero) * self.scale.astype(np.float64)).astype(np.float32)
        high = ((self.qtype.qmax - zero) * self.scale.astype(np.float64)).astype(np.float32)
        return low, high

    def _expanded(self, shape: tuple[int, ...]) -> tuple[F32, npt.NDArray[np.float32]]:
        expected = self.granularity.scale_shape(shape)
        if self.scale.shape != expected:
            raise NumericsError(
                f"{self.granularity} parameters of shape {list(self.scale.shape)} do not fit "
                f"a tensor of shape {list(shape)}"
            )
        scale = self.granularity.expand(self.scale, shape)
        zero = self.granularity.expand(self.zero_point, shape)
        return scale.astype(np.float32, copy=False), zero.astype(np.float32)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, QuantParams)
            and (self.qtype, self.granularity) == (other.qtype, other.granularity)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        return hash((self.qtype, self.granularity, self.scale.tobytes(), self.zero_point.tobytes()))


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized tensor: ``codes: [..] qtype.storage`` and the parameters that give them their real values.

    The codes need not be ``params.quantize`` of anything: the step that a tensor was rounded with and the scale that
    its codes are read with may differ (see ``ranges.layer``).

    Raises ``NumericsError`` where the codes are of another type or the parameters of another shape.
    """

    codes: Ints
    params: QuantParams

    def __post_init__(self) -> None:
        if self.codes.dtype != self.params.qtype.storage:
            raise NumericsError(f"codes must be {self.params.qtype.storage}, not {self.codes.dtype}")
        self.params._expanded(self.codes.shape)

    def dequantize(self) -> F32:
        """The real values, float32."""
        return self.params.dequantize(self.codes)

    def kept(self: AnyQuantized, keep: Callable[[Ints], Ints]) -> AnyQuantized:
        """The same, its codes where ``keep`` puts them."""
        return replace(self, codes=keep(self.codes))


def params(
    qtype: QType,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike = 0,
    *,
    granularity: Granularity | None = None,
) -> QuantParams:
    """``QuantParams`` from any numbers: scale cast to float32, zero point to the storage type and the scale's shape."""
    s = np.asarray(scale, np.float32)
    z = np.broadcast_to(np.asarray(zero_point), s.shape).astype(qtype.storage)
    return QuantParams(qtype, s, z, PerTensor() if granularity is None else granularity)


def from_range(qtype: QType, low: float, high: float) -> QuantParams:
    """Per-tensor asymmetric parameters whose codes cover ``[low, high]``, widened to contain 0 so that 0 is exact.

    ``scale = (high - low) / (qmax - qmin)``; ``zero_point = qmin - low / scale``, rounded and clipped (Jacob et al.,
    CVPR 2018, section 2.1). An empty range gives scale 1, for a tensor that is always zero.

    Raises ``NumericsError`` where an end is not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NumericsError(f"a range must be finite, not [{low}, {high}]")
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if high == low:
        return params(qtype, 1.0, qtype.qmin if not qtype.signed else 0)
    scale = max((high - low) / (qtype.qmax - qtype.qmin), SMALLEST_SCALE)
    zero = int(np.clip(np.rint(qtype.qmin - low / scale), qtype.qmin, qtype.qmax))
    return params(qtype, scale, zero)


# The smallest normal float32: a denormal scale would be flushed to zero by some runtimes.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def bias_params(input_params: QuantParams, weight_params: QuantParams) -> QuantParams:
    """Parameters of the int32 bias that an integer kernel adds to its accumulator: ``scale = x_scale * w_scale``.

    The product is taken in float32, as onnxruntime computes it when it checks the bias. One scale for each output
    channel where the weight has one (``PerAxis(0)``), else a scalar; the zero point is 0.
    """
    scale = np.float32(input_params.scale) * weight_params.scale
    granularity = PerTensor() if weight_params.scale.ndim == 0 else PerAxis(0)
    return params(INT32, np.maximum(scale, np.float32(SMALLEST_SCALE)), granularity=granularity)


def round_half_even(x: npt.ArrayLike, *, out: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    """The nearest integers of ``x`` as float64, ties to even: the one rounding rule, for code that counts levels.

    ``out``: where to put them, which may be ``x`` itself.
    """
    return np.rint(np.asarray(x, np.float64), out=out)
