"""From statistics and weights to quantization parameters for everything that a plan names."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.emit import WeightKey
from onnxq.files.scratch import Scratch
from onnxq.numerics import QuantParams
from onnxq.parameters.cache import Codes, ParameterCache
from onnxq.parameters.tensors import tensor_params
from onnxq.parameters.weights import WeightJob, weight_jobs
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
    extrapolated: bool = False,
    cache: ParameterCache | None = None,
) -> Parameters:
    """The ``Parameters`` for ``plan``: activations from ``statistics``, weights and constants from ``model``.

    ``known`` are parameters that hold whatever the rest says (learned ones). ``extrapolated``: ranges for samples that
    are yet to come (``ranges.extrapolated``). ``cache`` has what was chosen before; it changes no result.

    Raises ``DataError`` naming a tensor that was never observed, ``ModelError`` for a weight that is not finite.
    """
    values = values_by_name(model)
    known, cache = known or Parameters({}, {}, {}), cache or ParameterCache()
    tensors = tensor_params(
        model, plan, statistics, config, known=known.tensors, extrapolated=extrapolated, cache=cache
    )
    weights, biases = dict(known.weights), dict(known.biases)
    jobs = weight_jobs(model, values, plan, statistics, config, tensors)
    owners = {job.use.tensor: job.key for job in jobs if not job.use.at_load}
    for at_load in (False, True):  # those that are made of others come last
        open_jobs = []
        for job in [job for job in jobs if job.use.at_load is at_load]:
            held = known.weights.get(job.key)
            if at_load:
                owner = owners.get(job.use.tensor)
                open_jobs.append(job if owner is None else replace(job, made_of=weights[owner]))
            elif held is None or job.too_small(held):
                open_jobs.append(job)
            elif "mean" in job.restore:
                stale = [b for b in job.biases if (b.node, b.index) not in known.biases]
                biases.update(job.restored(stale, held, values))
        codes = _codes(model, open_jobs, config, cache)
        for job, found in zip(open_jobs, codes, strict=True):
            weights[job.key] = found.quantized
            if "mean" in job.restore:
                asked = tuple(job.biases)
                if asked not in found.biases:
                    found.biases[asked] = dict(job.restored(job.biases, found.quantized, values))
                biases.update(found.biases[asked])
    return Parameters(tensors, weights, biases)


def _codes(model: ir.Model, jobs: list[WeightJob], config: Config, cache: ParameterCache) -> list[Codes]:
    """What each of ``jobs`` comes to."""
    keys = [job.codes_key(model, config) for job in jobs]
    found = [cache.find(key, job.least) for key, job in zip(keys, jobs, strict=True)]
    missing = [i for i, codes in enumerate(found) if codes is None]
    # The sorting and summing in numpy leaves the interpreter free for other threads; large weights go first.
    missing.sort(key=lambda i: -jobs[i].data.size)
    # Its matrix products would each start as many threads again, and all of them would wait for each other.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        made = pool.map(lambda i: _made(jobs[i], config, cache.scratch), missing)
        for i, quantized in zip(missing, made, strict=True):
            codes = Codes(quantized, jobs[i].least)
            cache.keep(keys[i], codes)
            found[i] = codes
    return [codes for codes in found if codes is not None]


def _made(job: WeightJob, config: Config, scratch: Scratch) -> StoredWeight:
    """The weight of ``job`` in integers, worked out when there is memory for that."""
    with scratch.working(job.working_bytes):
        found = job.quantized(config).kept(scratch.kept)
    job.let_go()
    return found
