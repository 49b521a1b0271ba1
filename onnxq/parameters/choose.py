"""From statistics and weights to quantization parameters for everything that a plan names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.emit import WeightKey, weight_key
from onnxq.errors import ModelError, NumericsError, one_line
from onnxq.graph.linear_layer import Product, products
from onnxq.numerics import INT32, PerBlock, PerTensor, Quantized, QuantParams, params
from onnxq.parameters.cache import Codes, CodesKey, ParameterCache
from onnxq.parameters.tensors import constant_data, tensor_params
from onnxq.plan.types import Bias, Plan, Storage, Weight
from onnxq.query import nodes, values_by_name
from onnxq.ranges import fitted, mean_shift
from onnxq.ranges.blocks import InBlocks, in_blocks
from onnxq.ranges.moments import Moments
from onnxq.ranges.samples import from_rows, rows_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# Codes of an int32 bias stay within half the type's range: the kernel adds products to them in the same 32 bits.
_BIAS_CODES = INT32.qmax / 2


# What is left to restore where a layer has no bias.
_WITHOUT_BIAS = {"none": "none", "mean": "none", "gain": "gain", "mean+gain": "gain"}


@dataclass(frozen=True)
class Parameters:
    """What ``emit`` takes beside a plan.

    ``tensors``: parameters of every point that owns some and of every constant operand; ``weights``: every weight, in
    integers; ``biases``: by node and input, the biases, and scales and shifts of layer normalisations, that are no
    longer those of the model, float32.
    """

    tensors: dict[str, QuantParams]
    weights: dict[WeightKey, Quantized]
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
    are yet to come (``ranges.unseen``). ``cache`` has what was chosen before; it changes no result.

    Raises ``DataError`` naming a tensor that was never observed, ``ModelError`` for a weight that is not finite.
    """
    values = values_by_name(model)
    known, cache = known or Parameters({}, {}, {}), cache or ParameterCache()
    tensors = tensor_params(
        model, plan, statistics, config, known=known.tensors, extrapolated=extrapolated, cache=cache
    )
    weights, biases = dict(known.weights), dict(known.biases)
    open_jobs = []
    for job in weight_jobs(model, values, plan, statistics, config, tensors):
        held = known.weights.get(job.key)
        if held is None or job.too_small(held):
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
        made = pool.map(lambda i: jobs[i].quantized(config).kept(cache.scratch.kept), missing)
        for i, quantized in zip(missing, made, strict=True):
            codes = Codes(quantized, jobs[i].least)
            cache.keep(keys[i], codes)
            found[i] = codes
    return [codes for codes in found if codes is not None]


def weight_jobs(
    model: ir.Model,
    values: Mapping[str, ir.Value],
    plan: Plan,
    statistics: Statistics,
    config: Config,
    tensors: Mapping[str, QuantParams] | None,
) -> list[WeightJob]:
    """One job for each weight of ``plan``, whatever the number of nodes that share it.

    Without ``tensors`` no room is left for biases: for a look at what a weight would be.
    """
    layers = {(n.name or "", i): layer for n in nodes(model) for i, (_, layer) in products(n).items()}
    least = {} if tensors is None else _least_scales(plan, values, tensors)
    uses: dict[WeightKey, list[Weight]] = {}
    for weight in plan.weights:
        uses.setdefault(weight_key(weight), []).append(weight)
    jobs = []
    for key, same in uses.items():
        biases = [b for b in plan.biases if b.weight_node in {w.node for w in same}]
        # A mean that no bias can put right counts as error.
        complete = {b.weight_node for b in biases} == {w.node for w in same}
        restore = config.restore if complete else _WITHOUT_BIAS[config.restore]
        places = [(w.node, w.index) for w in same if (w.node, w.index) in statistics.moments]
        seen = {place[0]: (layers[place], statistics.moments[place]) for place in places}
        room, data = least.get(key, np.float32(0)), constant_data(values, same[0].tensor)
        jobs.append(WeightJob(same[0], data, seen, biases, room, restore))
    return jobs


def _least_scales(
    plan: Plan, values: Mapping[str, ir.Value], tensors: Mapping[str, QuantParams]
) -> dict[WeightKey, F32]:
    """The smallest scales at which the biases still fit into int32 (a dead channel beside a large bias)."""
    roots = plan.roots
    weight_of = {w.node: w for w in plan.weights if w.storage is Storage.INTEGER}
    least: dict[WeightKey, F32] = {}
    for bias in plan.biases:
        if bias.weight_node not in weight_of:
            continue
        root = roots.get(bias.input, bias.input)
        weight = weight_of[bias.weight_node]
        needed = np.abs(constant_data(values, bias.tensor).reshape(-1)) / (_BIAS_CODES * float(tensors[root].scale))
        if isinstance(weight.granularity, PerTensor):
            needed = needed.max()
        key = weight_key(weight)
        least[key] = np.maximum(needed.astype(np.float32), least.get(key, np.float32(0)))
    return least


@dataclass(frozen=True)
class WeightJob:
    """One weight to be quantized for all nodes that share it; ``use`` is the first of them.

    ``seen``: by node, how it reads the weight and what it multiplies it with, as far as that is known. ``least``: the
    smallest scale that leaves room for the biases, of the scale's shape or a scalar; 0 for none. ``restore``: what can
    be put right after rounding.
    """

    use: Weight
    data: F32
    seen: Mapping[str, tuple[Product, Moments]]
    biases: list[Bias]
    least: F32
    restore: str

    @property
    def key(self) -> WeightKey:
        return weight_key(self.use)

    def codes_key(self, model: ir.Model, config: Config) -> CodesKey:
        """What decides the codes, beside ``least``; ``model`` is that of the weight."""
        use = self.use
        return CodesKey(
            model,
            tuple((node, use.index) for node in self.seen),
            tuple(moments for _, moments in self.seen.values()),
            use.tensor,
            use.granularity,
            use.stored,
            use.qtype,
            use.storage is Storage.BLOCKS,
            config.weight_range,
            config.objective,
            self.restore,
            config.rounding,
        )

    def too_small(self, found: Quantized) -> bool:
        return bool(self.least.any() and (found.params.scale < self.least).any())

    def quantized(self, config: Config, outputs: F64 | None = None) -> Quantized:
        """The weight in integers; ``outputs`` as in ``fitted``."""
        # A packed weight or a table is read in float: its full code range is used, saturation is no concern.
        use = self.use
        layer, moments = next(iter(self.seen.values()), (None, None))
        if use.storage is Storage.BLOCKS:
            return self._in_blocks(config, moments)
        if layer is not None and moments is not None:
            # The same weight may serve convolutions with different numbers of groups; one kind is fitted to.
            alike = [m for _, m in self.seen.values() if m.second.shape == moments.second.shape]
            rows, moments = layer.matrix(self.data), reduce(add, alike)
        else:
            rows = rows_of(self.data, use.granularity)[None]
        least = self.least.reshape(-1).astype(np.float64)
        try:
            found = fitted(
                rows,
                moments,
                stored=use.stored,
                qtype=use.qtype,
                method=config.weight_range,
                objective=config.objective,
                restore=self.restore,
                rounding=config.rounding,
                least=np.broadcast_to(least, rows.shape[0] * rows.shape[1]).reshape(rows.shape[:2]),
                outputs=outputs,
            )
        except NumericsError as error:
            raise ModelError(f"weight '{use.tensor}': {one_line(error)}") from error
        integers: npt.NDArray[Any] = found.codes.astype(use.qtype.storage)
        codes: npt.NDArray[Any] = integers[0]
        codes = from_rows(codes, use.granularity, self.data.shape) if layer is None else layer.tensor(integers)
        scale = found.scale.reshape(use.granularity.scale_shape(self.data.shape))
        return Quantized(codes, params(use.qtype, scale, granularity=use.granularity))

    def _in_blocks(self, config: Config, moments: Moments | None) -> Quantized:
        """The weight of a linear layer in blocks along its inputs (``ranges.blocks``)."""
        granularity = self.use.granularity
        assert isinstance(granularity, PerBlock)
        rows = self.data if granularity.axis == 1 else self.data.T
        try:
            found = in_blocks(
                rows,
                moments,
                size=granularity.size,
                offset=self.use.stored.offset,
                method=config.weight_range,
                rounding="nearest" if config.rounding == "nearest" else "compensated",
                centred="mean" in self.restore,
            )
        except NumericsError as error:
            raise ModelError(f"weight '{self.use.tensor}': {one_line(error)}") from error
        if granularity.axis == 0:
            found = InBlocks(*(np.ascontiguousarray(x.T) for x in found))
        return Quantized(found.codes, QuantParams(self.use.qtype, found.scale, found.zero, granularity))

    def restored(
        self, biases: list[Bias], found: Quantized, values: Mapping[str, ir.Value]
    ) -> Iterator[tuple[tuple[str, int], F32]]:
        """By node and input, those of ``biases`` whose layer's inputs are known, with what its mean has lost."""
        real = found.dequantize() if biases and self.seen else None
        for bias in biases:
            if real is None or bias.weight_node not in self.seen:
                continue
            layer, moments = self.seen[bias.weight_node]
            weight, quantized = (layer.matrix(x).astype(np.float64) for x in (self.data, real))
            shift, data = mean_shift(weight, quantized, moments).astype(np.float32), constant_data(values, bias.tensor)
            if shift.size == data.size:
                yield (bias.node, bias.index), data + shift.reshape(data.shape)
