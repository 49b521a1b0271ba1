"""Weights of a plan in integers: one job for each, whatever the number of nodes that share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.emit import WeightKey, weight_key
from onnxq.errors import ModelError, NumericsError, one_line
from onnxq.files.scratch import let_go
from onnxq.graph.geometry import Product
from onnxq.graph.linear import products
from onnxq.numerics import INT32, Granularity, PerAxis, PerBlock, PerTensor, QuantParams
from onnxq.parameters.cache import CodesKey
from onnxq.parameters.tensors import constant_data
from onnxq.plan.types import Bias, Plan, Storage, Weight
from onnxq.query import nodes
from onnxq.ranges import Fit, mean_shift
from onnxq.ranges.moments import Moments
from onnxq.ranges.samples import PART, from_rows, rows_of
from onnxq.weights import NBits, StoredWeight

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# Codes of an int32 bias stay within half the type's range: the kernel adds products to them in the same 32 bits.
_BIAS_CODES = INT32.qmax / 2

# Bytes that are worked in for each element of a weight, of what is worked on at once of it, and of second moments.
_COPIES_OF_WEIGHT, _COPIES_OF_PART, _COPIES_OF_MOMENTS = 16, 64, 12

# What is left to restore where a layer has no bias.
_WITHOUT_BIAS = {"none": "none", "mean": "none", "gain": "gain", "mean+gain": "gain"}


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


@dataclass(frozen=True)
class WeightJob:
    """One weight to be quantized for all nodes that share it; ``use`` is the first of them.

    ``seen``: by node, how it reads the weight and what it multiplies it with, as far as that is known. ``least``: the
    smallest scale that leaves room for the biases, of the scale's shape or a scalar; 0 for none. ``restore``: what can
    be put right after rounding. ``made_of``: the weight whose values are rounded in place of ``data``, where the file
    holds no other.
    """

    use: Weight
    data: F32
    seen: Mapping[str, tuple[Product, Moments]]
    biases: list[Bias]
    least: F32
    restore: str
    made_of: StoredWeight | None = None

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
            config.weight_range,
            config.objective,
            self.restore,
            config.rounding,
            use.at_load,
            self.made_of,
        )

    @property
    def working_bytes(self) -> int:
        """About what ``quantized`` takes: some copies of the weight, and of the largest matrix of second moments."""
        squares = max((m.second.size for _, m in self.seen.values()), default=0)
        part = min(self.data.size, PART)
        return _COPIES_OF_WEIGHT * self.data.size + _COPIES_OF_PART * part + _COPIES_OF_MOMENTS * squares

    def let_go(self) -> None:
        """Gives back the memory of what lies in files."""
        let_go(self.data)
        for _, moments in self.seen.values():
            let_go(moments.second)

    def too_small(self, found: StoredWeight) -> bool:
        return bool(self.least.any() and (found.params.scale < self.least).any())

    def quantized(self, config: Config, outputs: F64 | None = None) -> StoredWeight:
        """The weight in integers; ``outputs`` as in ``ranges.fitted``."""
        # A packed weight or a table is read in float: its full code range is used, saturation is no concern.
        use = self.use
        layer, moments = self._read()
        channels = _of_channels(use)
        data = self.data if self.made_of is None else self.made_of.dequantize()
        rows = rows_of(data, channels)[None] if layer is None else layer.matrix(data)
        least = np.broadcast_to(self.least.reshape(-1).astype(np.float64), rows.shape[0] * rows.shape[1])
        if use.at_load:  # QuantizeLinear knows no narrow range: no code may come near its end
            least = np.maximum(least, np.abs(rows).max(axis=2).reshape(-1) / use.qtype.qmax)
        try:
            found = use.stored.quantized(
                rows,
                moments,
                qtype=use.qtype,
                how=self._how(config),
                least=least.reshape(rows.shape[:2]),
                outputs=outputs,
            )
        except NumericsError as error:
            raise ModelError(f"weight '{use.tensor}': {one_line(error)}") from error
        codes: npt.NDArray[Any] = found.codes[0]
        codes = from_rows(codes, channels, self.data.shape) if layer is None else layer.tensor(found.codes)
        shape = use.granularity.scale_shape(self.data.shape)

        def as_scale(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return rows.reshape(shape) if rows.ndim == 2 else from_rows(rows[0], channels, shape)

        scale = as_scale(found.scale).astype(np.float32)
        chosen = QuantParams(use.qtype, scale, as_scale(found.zero), use.granularity)
        if use.at_load:
            codes = chosen.quantize(data)
        return StoredWeight(codes, chosen, found.representation)

    def _how(self, config: Config) -> Fit:
        """How codes are found; the runtime can round each value by itself alone."""
        if not self.use.at_load:
            return Fit(config.weight_range, config.objective, self.restore, config.rounding)
        restore = {"gain": "none", "mean+gain": "mean"}.get(self.restore, self.restore)
        return Fit(config.weight_range, config.objective, restore, "nearest")

    def _read(self) -> tuple[Product | None, Moments | None]:
        """How the weight is multiplied, and the moments of what it is multiplied with; None where nothing is known."""
        layer, moments = next(iter(self.seen.values()), (None, None))
        if moments is None:
            return layer, moments
        # The same weight may serve convolutions with different numbers of groups; one kind is fitted to.
        alike = [m for _, m in self.seen.values() if m.second.shape == moments.second.shape]
        return layer, reduce(add, alike)

    def restored(
        self, biases: list[Bias], found: StoredWeight, values: Mapping[str, ir.Value]
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


def _of_channels(use: Weight) -> Granularity:
    """What has a row of its own where a weight is fitted: what has a scale; a channel where the kernel has blocks."""
    if isinstance(use.stored, NBits) and isinstance(use.granularity, PerBlock):
        return PerAxis(1 - use.granularity.axis)
    return use.granularity
