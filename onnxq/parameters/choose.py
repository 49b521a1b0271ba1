"""From statistics and weights to quantization parameters for everything that a plan names."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.emit import WeightKey
from onnxq.files.scratch import Scratch
from onnxq.numerics import QuantParams
from onnxq.parameters.tensors import tensor_params
from onnxq.parameters.weights import weight_jobs
from onnxq.plan.types import Plan
from onnxq.query import values_by_name
from onnxq.weights import StoredWeight

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parameters:
    """What ``emit`` takes beside a plan.

    ``tensors``: parameters of every point that owns some and of every constant operand; ``weights``: every weight, in
    integers; ``biases``: by node and input, the biases, and scales and shifts of layer normalisations, that are no
    longer those of the model, float32.
    """

    tensors: dict[str, QuantParams]
    weights: dict[WeightKey, StoredWeight]
    biases: dict[tuple[str, int], F32]


def choose(
    model: ir.Model,
    plan: Plan,
    statistics: Statistics,
    config: Config,
    *,
    known: Parameters | None = None,
    ahead: bool = False,
    scratch: Scratch | None = None,
) -> Parameters:
    """The ``Parameters`` for ``plan``: activations from ``statistics``, weights and constants from ``model``.

    ``known`` are parameters of an earlier plan of the same model and statistics; what they hold is not computed again.
    ``ahead``: ranges for samples that are yet to come (``ranges.unseen``). ``scratch`` holds the codes.

    Raises ``DataError`` naming a tensor that was never observed, ``ModelError`` for a weight that is not finite.
    """
    values = values_by_name(model)
    known, scratch = known or Parameters({}, {}, {}), scratch or Scratch()
    tensors = {**known.tensors, **tensor_params(values, plan, statistics, config, known.tensors.keys(), ahead=ahead)}
    jobs = weight_jobs(model, values, plan, statistics, config, tensors)
    missing = [job for job in jobs if job.key not in known.weights or job.too_small(known.weights[job.key])]
    # The sorting and summing in numpy leaves the interpreter free for other threads; large weights go first.
    missing.sort(key=lambda job: -job.data.size)
    # Its matrix products would each start as many threads again, and all of them would wait for each other.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        done = pool.map(lambda job: job.quantized(config).kept(scratch.kept), missing)
        found = dict(zip((job.key for job in missing), done, strict=True))
    weights = {**known.weights, **found}
    biases = dict(known.biases)
    for job in jobs:
        if "mean" in job.restore:
            stale = [b for b in job.biases if job.key in found or (b.node, b.index) not in biases]
            biases.update(job.restored(stale, weights[job.key], values))
    return Parameters(tensors, weights, biases)
