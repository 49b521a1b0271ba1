"""Layer after layer, in the order in which they run, each weight is refitted to the noisy input and then rounded.

The target of a layer is what makes up for the noise so far: its output in the float network on float inputs, and where
that is added to a branch that has been computed already, also what the branch lacks. Both networks walk side by side
over the calibration samples (``walk``), so that all layers cost two runs of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.adapt.closed_form import Pairs, PairSums, error, refitted
from onnxq.adapt.simulation import Simulation, original, stored_bias
from onnxq.adapt.walk import Walk
from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.emit import weight_key
from onnxq.files.memory import give_back_holes
from onnxq.files.scratch import Scratch
from onnxq.graph.geometry import Geometry
from onnxq.graph.linear import Linear, linear_of
from onnxq.graph.runtime_model import set_aside
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Arithmetic
from onnxq.parameters.choose import Parameters
from onnxq.parameters.weights import WeightJob, weight_jobs
from onnxq.plan import Bias, Plan
from onnxq.query import values_by_name
from onnxq.report.report import Refit
from onnxq.weights import StoredWeight

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Feeds = Iterable[Mapping[str, Array]]

# Rows for each input of a layer, as far as the samples have them, and the fewest of a sample.
_ROWS_AN_INPUT = 8
_ROWS_OF_A_SAMPLE = 32
# One sample of so many is held out to choose the ridge.
_CHECKED = 8
# Inputs of a layer up to which it is refitted: time grows with their cube.
MOST_INPUTS = 6144


@dataclass(frozen=True)
class Layer:
    """A linear layer of the main graph whose weight is its alone; ``offset`` is its bias in the float model.

    ``skip`` is the Add that takes its output to a computed tensor, and the index of that among the Add's inputs.
    """

    linear: Linear
    geometry: Geometry
    job: WeightJob
    bias: Bias | None
    offset: F32 | None
    skip: tuple[ir.Node, int] | None

    @property
    def name(self) -> str:
        """The name of its node."""
        return self.linear.node.name or ""

    @property
    def centred(self) -> bool:
        """Whether its bias takes care of means."""
        return self.bias is not None and "mean" in self.job.restore


def linear_layers(
    model: ir.Model, plan: Plan, parameters: Parameters, statistics: Statistics, config: Config
) -> list[Layer]:
    """The layers of ``plan`` that can be adapted, in graph order."""
    values = values_by_name(model)
    jobs = {j.use.node: j for j in weight_jobs(model, values, plan, statistics, config, parameters.tensors)}
    keys = [weight_key(w) for w in plan.weights]
    biases = {b.weight_node: b for b in plan.biases}
    found = []
    for node in model.graph:
        job, linear = jobs.get(node.name or ""), linear_of(node)
        geometry = None if linear is None else linear.geometry
        if job is None or linear is None or geometry is None:
            continue
        if keys.count(job.key) > 1 or job.use.at_load or geometry.inputs > MOST_INPUTS:
            continue
        bias = biases.get(node.name or "")
        place = None if bias is None else linear.bias_at
        offset, end = (None, node) if place is None else (original(*place), place[0])
        found.append(Layer(linear, geometry, job, bias, offset, _skip(end.outputs[0])))
    return found


def adapt_layers(
    start: Simulation,
    layers: Iterable[Layer],
    config: Config,
    feeds: Feeds,
    *,
    costs: Mapping[str, F64] | None = None,
    scratch: Scratch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Parameters, tuple[Refit, ...]]:
    """The parameters of ``start``, weights and biases of ``layers`` adapted to the noise of all that comes before them.

    ``feeds`` lie in files with all tensors that are alive at one point of the network, where ``scratch`` has a folder
    for these. ``costs``: by node, what
    errors of a layer's outputs cost (``sensitivity``); then its channels are rounded together.
    """
    scratch = scratch or Scratch()
    clean, noisy = Walk(start.model, (), scratch), _simulated(start, scratch)
    for feed in feeds:  # once: data that is another one in every pass must be the same for both
        clean.take(feed)
        noisy.take(feed)
    give_back_holes()
    parameters = start.parameters
    weights, biases = dict(parameters.weights), dict(parameters.biases)
    layers, done = list(layers), []
    for number, layer in enumerate(layers, start=1):
        clean.advance(clean.place(layer.name))
        noisy.advance(noisy.place(layer.name))
        seen = [_observed(layer, clean, noisy)]  # handed over: some of it is needed for the ridge only
        quantized, bias, refit = _adapted(layer, seen, config, (costs or {}).get(layer.name))
        weights[layer.job.key] = quantized
        noisy.give(layer.name, layer.job.use.index, quantized.dequantize())
        if layer.bias is not None and bias is not None:
            biases[layer.bias.node, layer.bias.index] = bias
            stored = stored_bias(start.plan, replace(parameters, weights=weights), layer.bias, bias)
            noisy.give(layer.bias.node, layer.bias.index, stored)
        done.append(refit)
        give_back_holes()
        if progress is not None:
            progress(number, len(layers))
    return Parameters(parameters.tensors, weights, biases), tuple(done)


def _simulated(start: Simulation, scratch: Scratch) -> Walk:
    graph = start.graph()
    set_aside(graph.graph, scratch)
    return Walk(graph, (), scratch)


def _skip(out: ir.Value) -> tuple[ir.Node, int] | None:
    """The Add of two computed tensors that alone reads ``out``, and the index of the other one."""
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output():
        return None
    add, index = uses[0].node, 1 - uses[0].idx
    if operator(add).arithmetic is not Arithmetic.SUM or add.graph is not out.graph:
        return None
    other = add.inputs[index]
    return (add, index) if other is not None and other is not out and other.const_value is None else None


def _observed(layer: Layer, clean: Walk, noisy: Walk) -> tuple[Pairs, Pairs | None]:
    """What the layer reads and ought to give: most feeds, and those held out (None where there are too few feeds)."""
    geometry = layer.geometry
    source, noisy_source = clean.reads(layer.name)[0], noisy.reads(layer.name)[0]
    matrix = geometry.matrix(np.asarray(layer.job.data, np.float32)).transpose(0, 2, 1)
    offset = None if layer.offset is None else layer.offset.reshape(geometry.groups, 1, -1)
    count = sum(arrays.shape(source)[0] for arrays in clean.live)
    per_sample = max(_ROWS_OF_A_SAMPLE, -(-_ROWS_AN_INPUT * geometry.inputs // max(count, 1)))
    parts = [PairSums(clean.scratch.zeros), PairSums(clean.scratch.zeros)]
    for number, (whole, rough) in enumerate(zip(clean.live, noisy.live, strict=True)):
        x = whole[source]
        limit = per_sample * x.shape[0]
        look = geometry.sampler(x.shape, limit=limit)
        target = np.matmul(look(x), matrix)
        if offset is not None:
            target += offset
        lacking = _lacking(layer, clean, noisy, number)
        if lacking is not None and lacking.shape[1 if geometry.kernel else -1] == target.shape[0] * target.shape[2]:
            target += geometry.output_sampler(x.shape, limit=limit)(lacking)
        rows = look(rough[noisy_source])
        for aside, part in _split(x.shape[0], rows.shape[1], number):
            parts[aside].add(rows[:, part], target[:, part])
    fit, check = (part.found for part in parts)
    assert fit is not None
    return fit, check


def _split(samples: int, rows: int, number: int) -> Iterator[tuple[bool, slice]]:
    """Which of the ``rows`` of feed ``number`` are held out: those of its last samples, or all of few samples."""
    if samples < _CHECKED:
        yield number % _CHECKED == _CHECKED - 1, slice(None)
        return
    cut = rows * (samples - samples // _CHECKED) // samples  # rows go sample by sample
    yield False, slice(0, cut)
    yield True, slice(cut, rows)


def _lacking(layer: Layer, clean: Walk, noisy: Walk, number: int) -> F32 | None:
    """What the branch that the layer's output is added to lacks in one feed, if all of it has been computed."""
    if layer.skip is None:
        return None
    add, index = layer.skip
    whole = clean.live[number].get(clean.reads(add.name or "")[index])
    rough = noisy.live[number].get(noisy.reads(add.name or "")[index])
    if whole is None or rough is None or whole.ndim != len(clean.live[number].shape(clean.reads(layer.name)[0])):
        return None
    difference: F32 = whole - rough
    return difference


def _adapted(
    layer: Layer, pairs: list[tuple[Pairs, Pairs | None]], config: Config, outputs: F64 | None
) -> tuple[StoredWeight, F32 | None, Refit]:
    """The layer's weight and its bias, None where that has no say, for the ``pairs`` seen, which it empties."""
    geometry, centred = layer.geometry, layer.centred
    weight = geometry.matrix(layer.job.data).astype(np.float64)
    new, ridge, every = refitted(weight, *pairs.pop(), centred=centred)
    data = geometry.tensor(new).astype(np.float32)
    del new
    seen = {layer.job.use.node: (geometry, every.moments)}
    quantized = replace(layer.job, data=data, seen=seen).quantized(config, outputs)
    del data, seen
    rounded = geometry.matrix(quantized.dequantize()).astype(np.float64)
    bias = None
    if centred and layer.offset is not None:
        mean = (every.t - np.matmul(rounded, every.x[:, :, None])[:, :, 0]) / every.count
        bias = mean.reshape(layer.offset.shape).astype(np.float32)
    energy = float(every.centred(centred)[2].sum()) or 1.0
    lost = (float(error(w, every, centred=centred).sum()) / energy for w in (weight, rounded))
    return quantized, bias, Refit(layer.name, ridge, *lost)
