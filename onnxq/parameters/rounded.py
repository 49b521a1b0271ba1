"""What a weight would be in another format: for a look, kept nowhere."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.parameters.weights import weight_jobs
from onnxq.plan.types import Plan, Weight
from onnxq.query import values_by_name
from onnxq.weights import WeightFormat

F32 = npt.NDArray[np.float32]


class Rounded(NamedTuple):
    """A weight in some format: ``real: [..] float32``, and ``error``, the energy of its layer's output error."""

    real: F32
    error: float


def rounded_as(
    model: ir.Model, plan: Plan, statistics: Statistics, config: Config, weight: Weight, stored: WeightFormat
) -> Rounded:
    """What ``weight`` of ``plan`` would be in the format ``stored``; nothing is kept.

    The error is by the second moments of the layer's inputs where they are known, else the squared error of the weight.
    """
    values = values_by_name(model)
    biases = tuple(b for b in plan.biases if b.weight_node == weight.node)
    one = replace(plan, weights=(replace(weight, stored=stored),), biases=biases)
    (job,) = weight_jobs(model, values, one, statistics, config, None)
    found = job.quantized(config).dequantize()
    if not job.seen:
        return Rounded(found, float(np.square(found - job.data, dtype=np.float64).sum()))
    layer, moments = next(iter(job.seen.values()))
    lost = layer.matrix(job.data - found).astype(np.float64)
    second = moments.known(centred="mean" in job.restore)
    seen = np.matmul(lost, second) if moments.full else lost * second[:, None, :]
    return Rounded(found, float((seen * lost).sum()))
