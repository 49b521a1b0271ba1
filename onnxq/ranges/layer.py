"""Steps and scales of a layer's weight by what its error does to the layer's output.

The error that matters is not that of the weight. Clipping shrinks a whole channel in one direction, and that does not
average out over the inputs as rounding does. Hence two choices beside the range method:

| objective  | the step minimises ...                                         | needs                            |
|------------|----------------------------------------------------------------|----------------------------------|
| `tensor`   | the squared error of the weight                                | nothing                          |
| `diagonal` | that of the output, inputs taken as uncorrelated: exact        | the mean square of each input    |
| `output`   | that of the output: exact line search (``optimum_output``)     | all second moments               |
| `auto`     | as `output` below 7 bits or for few inputs, else as `diagonal` |                                  |

| restore     | after rounding ...                                                              | costs a run      |
|-------------|---------------------------------------------------------------------------------|------------------|
| `mean`      | the mean of each output channel is put right by its bias                        | nothing: a bias  |
| `gain`      | the codes are read with the scale at which the output neither shrinks nor grows | nothing: a scale |

Restoring the mean is the empirical bias correction of Finkelstein et al., Fighting Quantization Bias with Bias (CVPR
workshops 2019), and Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019),
section 4.2. Restoring the gain: Banner et al., Post training 4-bit quantization (NeurIPS 2019), section 5, match norms
of weights; here the output's regression on the float output gets the slope 1: ``scale = (w^T C w) / (w^T C q)``. (Least
squares would take ``(q^T C w) / (q^T C q)``, smaller by the squared correlation: best for one layer alone, but its
shrinking adds up over layers while noise averages out.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnxq.numerics import QType, round_half_even
from onnxq.ranges.choose import checked_weight
from onnxq.ranges.method import for_dead_parts, usable
from onnxq.ranges.moments import Moments
from onnxq.ranges.optimum_output import optimal_output_steps
from onnxq.ranges.registry import find_method
from onnxq.ranges.samples import F64, scales_of_rows

# Inputs of a layer up to which all second moments are kept: memory grows with their square, time with their cube.
MATRIX_INPUTS = 1152
# With this many bits or more, what activations lose hides what the matrix would gain, save where it costs nothing: in
# depthwise convolutions.
_MANY_BITS = 7
_FEW_INPUTS = 64

# Below this correlation of the quantized output with the float one, their ratio is noise rather than a gain.
_LEAST_CORRELATION = 0.5


def wants_matrix(objective: str, inputs: int, qtype: QType) -> bool:
    """Whether ``objective`` asks for all second moments of a layer with so many ``inputs`` and weights of ``qtype``."""
    if objective == "auto":
        return inputs <= (MATRIX_INPUTS if qtype.bits < _MANY_BITS else _FEW_INPUTS)
    return objective == "output" and inputs <= MATRIX_INPUTS


class LayerScales(NamedTuple):
    """``step: [g, C]`` rounds the weight, ``scale: [g, C]`` reads its codes."""

    step: F64
    scale: F64


def layer_scales(
    weight: F64,
    moments: Moments,
    *,
    qtype: QType,
    method: str,
    objective: str,
    restore: str,
) -> LayerScales:
    """The ``LayerScales`` of ``weight: [g, C, n]``, whose inputs have ``moments`` (of ``[g, n]``).

    ``objective`` applies to the method ``mse``; the others have no say in what they minimise. Channels of zeros are
    treated as in ``weight_params``.

    Raises ``ConfigError`` for an unknown method, ``NumericsError`` where the weight holds NaN or infinity.
    """
    found = find_method(method)
    groups, channels, n = weight.shape
    centred = "mean" in restore
    importance = None
    if found.name == "mse" and objective != "tensor":
        importance = np.repeat(moments.squares(centred=centred), channels, axis=0).astype(np.float32)
    rows = checked_weight(weight.reshape(-1, n))
    step = scales_of_rows(rows, importance, lambda samples: found.weights(samples, qtype)).reshape(groups, channels)
    step = np.where(step > 0, usable(step), 0.0)
    if found.name == "mse" and moments.full and wants_matrix(objective, n, qtype):
        step = optimal_output_steps(
            weight,
            moments.matrix(centred=centred),
            qmin=qtype.qmin,
            qmax=qtype.qmax,
            start=step,
            any_scale="gain" in restore,
        )
    scale = with_gain(weight, step, moments, qtype, centred=centred) if "gain" in restore else step
    return LayerScales(for_dead_parts(step, qtype), for_dead_parts(scale, qtype))


def with_gain(weight: F64, step: F64, moments: Moments, qtype: QType, *, centred: bool) -> F64:
    """``[g, C]`` the scale that restores the output's gain for codes rounded with ``step``."""
    safe = np.where(step > 0, step, 1.0)[:, :, None]
    codes = np.clip(round_half_even(weight / safe), qtype.qmin, qtype.qmax)
    if moments.full:
        second = moments.matrix(centred=centred)
        seen_w, seen_q = np.matmul(weight, second), np.matmul(codes, second)
    else:
        squares = moments.squares(centred=centred)[:, None, :]
        seen_w, seen_q = weight * squares, codes * squares
    ww, wq, qq = ((a * b).sum(axis=2) for a, b in ((seen_w, weight), (seen_w, codes), (seen_q, codes)))
    sound = (wq > 0) & (np.square(wq) >= _LEAST_CORRELATION**2 * ww * qq)
    return np.where(sound, np.divide(ww, wq, out=np.ones_like(ww), where=sound), step)


def mean_shift(weight: F64, quantized: F64, moments: Moments) -> F64:
    """``[g * C]`` what to add to the bias so that the output has its old mean: ``(W - W_q) E[x]``."""
    result: F64 = np.einsum("gcn,gn->gc", weight - quantized, moments.mean).reshape(-1)
    return result
