"""Steps and scales of a layer's weight by what its error does to the layer's output.

The error that matters is not that of the weight. Clipping shrinks a whole channel in one direction, and that does not
average out over the inputs as rounding does. Hence two choices beside the range method:

| objective  | the step minimises ...                                         | needs                            |
|------------|----------------------------------------------------------------|----------------------------------|
| `tensor`   | the squared error of the weight                                | nothing                          |
| `diagonal` | that of the output, inputs taken as uncorrelated: exact        | the mean square of each input    |
| `output`   | that of the output: exact line search (``optimum_output``)     | all second moments               |

`output` becomes `diagonal` above ``MATRIX_INPUTS`` inputs. `auto` is `output` below 7 bits and `tensor` from 7 on,
where what activations lose hides what another objective would gain (measured: ``benchmarks/initialisation.py``);
where weights are rounded together it is `diagonal` below 7 bits (``fit``).

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

import numpy as np

from onnxq.numerics import QType
from onnxq.ranges.choose import checked_weight
from onnxq.ranges.method import for_dead_parts, usable
from onnxq.ranges.moments import Moments, times
from onnxq.ranges.optimum_output import optimal_output_steps
from onnxq.ranges.registry import find_method
from onnxq.ranges.samples import F32, F64, channel_parts, scales_of_rows

# Inputs of a layer up to which all second moments are kept: memory grows with their square, time with their cube.
MATRIX_INPUTS = 1152
MANY_BITS = 7

# Below this correlation of the quantized output with the float one, their ratio is noise rather than a gain.
_LEAST_CORRELATION = 0.5


def concrete(objective: str, inputs: int, qtype: QType) -> str:
    """What ``objective`` means for a layer with so many ``inputs`` and weights of ``qtype``: the table above."""
    if objective == "auto":
        objective = "tensor" if qtype.bits >= MANY_BITS else "output"
    return "diagonal" if objective == "output" and inputs > MATRIX_INPUTS else objective


def layer_steps(
    weight: F64,
    moments: Moments,
    *,
    qtype: QType,
    method: str,
    objective: str,
    restore: str,
) -> F64:
    """``[g, C]`` the steps that round ``weight: [g, C, n]``, whose inputs have ``moments`` (of ``[g, n]``).

    ``restore`` says what is going to be put right after rounding, and so costs nothing. ``objective`` applies to the
    method ``mse``; the others have no say in what they minimise. Channels of zeros are
    treated as in ``weight_params``.

    Raises ``ConfigError`` for an unknown method, ``NumericsError`` where the weight holds NaN or infinity.
    """
    found = find_method(method)
    groups, channels, n = weight.shape
    centred = "mean" in restore
    goal = concrete(objective, n, qtype) if found.name == "mse" else "tensor"
    importance = None
    if goal != "tensor":
        importance = np.repeat(moments.squares(centred=centred), channels, axis=0).astype(np.float32)
    rows = checked_weight(weight.reshape(-1, n))
    step = scales_of_rows(rows, importance, lambda samples: found.weights(samples, qtype)).reshape(groups, channels)
    step = np.where(step > 0, usable(step), 0.0)
    if goal == "output" and moments.full:
        step = optimal_output_steps(
            weight,
            moments.matrix(centred=centred),
            qmin=qtype.qmin,
            qmax=qtype.qmax,
            start=step,
            any_scale="gain" in restore,
        )
    return for_dead_parts(step, qtype)


def with_gain(weight: F64, codes: F64, step: F64, second: F32) -> F64:
    """``[g, C]`` the scale that restores the output's gain for ``codes: [g, C, n]``, rounded with ``step``.

    ``second``: the inputs' second moments or covariance, ``[g, n, n]``, or its diagonal, ``[g, n]``. Products are taken
    in float32 and added up in float64.
    """
    result: F64 = step.copy()
    for part in channel_parts(weight.shape):
        w, q, s = weight[:, part], codes[:, part], step[:, part]
        seen_w, seen_q = (
            times(x.astype(np.float32), second) if second.ndim == 3 else x * second[:, None, :] for x in (w, q)
        )
        ww, wq, qq = (np.einsum("gcn,gcn->gc", a, b) for a, b in ((seen_w, w), (seen_w, q), (seen_q, q)))
        sound = (wq > 0) & (np.square(wq) >= _LEAST_CORRELATION**2 * ww * qq)
        result[:, part] = np.where(sound, np.divide(ww, wq, out=np.ones_like(ww), where=sound), s)
    return result


def mean_shift(weight: F64, quantized: F64, moments: Moments) -> F64:
    """``[g * C]`` what to add to the bias so that the output has its old mean: ``(W - W_q) E[x]``."""
    result: F64 = np.matmul(weight - quantized, moments.mean[:, :, None]).reshape(-1)
    return result
