"""Quantization parameters of a weight or an activation by any range method."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxq.errors import NumericsError
from onnxq.numerics import Granularity, QType, QuantParams, params
from onnxq.ranges.extrapolated import extrapolated_range
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.method import for_dead_parts
from onnxq.ranges.registry import find_method
from onnxq.ranges.samples import F32, F64, by_granularity, of_histogram, scales_of_rows


def weight_params(
    weight: F32,
    *,
    qtype: QType,
    granularity: Granularity,
    method: str = "mse",
    importance: npt.NDArray[np.floating] | None = None,
) -> QuantParams:
    """Symmetric parameters (zero point 0) of ``weight: [..] float32``, one scale for each part of ``granularity``.

    ``importance: [..]`` of the weight's shape weighs the squared error of each element (and the statistics of the other
    methods), for example by a Hessian diagonal.

    A part that is all zero gets the scale of the largest other part (``for_dead_parts``).

    Raises ``ConfigError`` for an unknown method, ``NumericsError`` where weight or importance holds NaN or infinity,
    the importance is negative or of another shape, or the granularity does not fit the shape.
    """
    found = find_method(method)
    x = checked_weight(weight)
    shape = granularity.scale_shape(x.shape)
    w = None if importance is None else checked_importance(importance, x.shape)

    def scale_of(rows: F32, weights: F32 | None) -> F64:
        return scales_of_rows(rows, weights, lambda samples: found.weights(samples, qtype))

    scale = by_granularity(x, granularity, importance=w, scale_of=scale_of) if x.size else np.zeros(shape)
    return params(qtype, for_dead_parts(scale, qtype), granularity=granularity)


def activation_params(
    histogram: Histogram, *, qtype: QType, method: str = "mse", extrapolated: bool = False
) -> QuantParams:
    """Per-tensor parameters of an activation: asymmetric for unsigned types, symmetric for signed ones.

    0 is always represented exactly. Data that is never negative gets ``zero_point = qmin`` (kernels absorb a ReLU only
    then), data that is never positive ``qmax``. Data that is always zero, or was never seen, gets scale 1.

    With ``extrapolated`` a method that minimises an error does so for samples that are yet to come
    (``ranges.extrapolated``) rather than for those of ``histogram``.

    Raises ``ConfigError`` for an unknown method, ``NumericsError`` where the data's range is not finite.
    """
    found = find_method(method)
    return found.activations(
        extrapolated_range(histogram) if extrapolated and found.extrapolated else of_histogram(histogram), qtype
    )


def checked_weight(weight: npt.NDArray[np.floating]) -> F32:
    """``weight`` as float32. Raises ``NumericsError`` where it holds NaN or infinity."""
    x = np.asarray(weight, np.float32)
    if not np.isfinite(x).all():
        raise NumericsError(
            "the weight holds NaN or infinity; no scale can represent it", hint="export the model again"
        )
    return x


def checked_importance(importance: npt.NDArray[np.floating], shape: tuple[int, ...]) -> F32:
    """``importance`` as float32. Raises ``NumericsError`` where it is not finite, negative or not of ``shape``."""
    w = np.asarray(importance)
    if w.shape != shape:
        raise NumericsError(f"importance has shape {list(w.shape)} but the weight {list(shape)}")
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise NumericsError("the importance of an element is finite and at least 0")
    return w.astype(np.float32)
