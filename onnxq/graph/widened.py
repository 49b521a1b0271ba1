"""Constants computed with in float32 and stored in another float type, as the file that they are from stores them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

# The float types that a model may be of, beside float32, and those of them that take less space.
NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
OTHER = (*NARROW, ir.DataType.DOUBLE)
FLOATS = (ir.DataType.FLOAT, *OTHER)
# Bytes from which on it matters in which type a constant is stored: below that, saying so takes as many.
LARGE = 1024

# Key of ``model.meta``: the half-precision type that most large float constants of its file are of. What has become of
# them may be rounded to it: that is no more noise than they came with.
STORED_IN = "onnxq.stored_in"
# Key of ``value.meta``: the constant is float32 in the file, and is not rounded.
OWN_FLOAT32 = "onnxq.own_float32"
# The largest error, relative to the largest number, of what is rounded to a half-precision type: of bfloat16, 2^-9.
_MOST_ROUNDING = 2.0**-8

# Bytes below which a tensor is converted once and kept.
_SMALL = 1 << 20
_FLOAT32 = np.finfo(np.float32)


class Widened(ir.LazyTensor):
    """``source`` in float32; what is large is converted anew whenever it is read, so that memory holds it once."""

    def __init__(self, source: ir.TensorProtocol, *, name: str) -> None:
        super().__init__(
            lambda: ir.Tensor(to_float32(source.numpy()), name=name),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(source.shape.numpy()),
            cache=source.nbytes < _SMALL,
            name=name,
        )
        self.source = source


def to_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """``array`` in float32. What is finite stays finite, and what is not 0 does not become 0.

    Masks of double are filled with the least number that there is, and divisors are kept off 0 by one that float32
    does not have.
    """
    if array.dtype != np.float64:
        return array.astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        result = np.asarray(array.astype(np.float32))
    largest, least = (np.copysign(end, array).astype(np.float32) for end in (_FLOAT32.max, _FLOAT32.tiny))
    result = np.where(np.isinf(result) & np.isfinite(array), largest, result)
    return np.where((result == 0) & (array != 0), least, result)


def narrowed(tensor: ir.TensorProtocol, kind: ir.DataType | None) -> ir.TensorProtocol | None:
    """``tensor``, of float32, as it is to be stored in half precision, or None where it stays.

    As its file stores it, or rounded to ``kind`` where that is not None and nothing overflows.
    """
    if isinstance(tensor, Widened):
        return tensor.source if tensor.source.dtype in NARROW else None
    if kind is None:
        return None
    array = tensor.numpy()
    with np.errstate(over="ignore", under="ignore"):
        half = array.astype(np.float16 if kind == ir.DataType.FLOAT16 else ml_dtypes.bfloat16)
        error = np.abs(half.astype(np.float32) - array).max(initial=0.0)
    # Written so that NaN, from infinity too, is no.
    return ir.Tensor(half, dtype=kind) if error <= _MOST_ROUNDING * np.abs(array).max(initial=0.0) else None
