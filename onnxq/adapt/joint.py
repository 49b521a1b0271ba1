"""Everything with a gradient trained together, through the quantizers, towards the float model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.adapt.gradients import with_gradient
from onnxq.adapt.samples import Split
from onnxq.adapt.simulation import Simulation, norm_places
from onnxq.adapt.trainer import Parameter, Schedule, Trained, Trainer
from onnxq.adapt.training_graph import Place, target_name, training_graph
from onnxq.emit import weight_key
from onnxq.numerics import QuantParams
from onnxq.parameters.align import tied
from onnxq.parameters.choose import Parameters
from onnxq.plan import Plan, Storage, Weight

F32 = npt.NDArray[np.float32]

# What a unit of the rate moves log scales of weights and activations by; weights and biases move by their root mean
# square.
_SCALE_SIZE = 0.3
_STEP_SIZE = 0.3
_SMALLEST = 1e-4


def adapt_jointly(
    start: Simulation,
    split: Split,
    schedule: Schedule,
    trainer: Trainer,
    *,
    frozen: Collection[str] = (),
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Parameters, Trained | None]:
    """The parameters of ``start`` trained, the best on samples held out; None where no gradient reaches a weight.

    What is trained: weights read by one node, in uniform codes, that are computed with as they are stored, and their
    scales; biases; scales and shifts of layer normalisations; and the scales of activations. ``frozen`` are nodes whose
    weights and biases stay, and with them the normalisations in front of the last of them.
    """
    model, plan, parameters, samples = start.model, start.plan, start.parameters, split.samples
    movable = _movable(plan, parameters, frozen)
    free = [(b.node, b.index) for b in plan.biases if b.weight_node not in frozen]
    free += _norms(model, frozen)
    scores = {name: samples.score(name) for name in samples.outputs}
    chosen = {place: _in_codes(w, parameters.weights[weight_key(w)].params) for place, w in movable.items()}
    graph = training_graph(
        start.graph(), chosen, free, scores=scores, learned=_learned(model, plan, parameters), labels=samples.labels
    )
    reached = with_gradient(graph.model)
    weighed = {place: latent for place, latent in graph.weights.items() if latent.values in reached}
    biased = {place: name for place, name in graph.free.items() if name in reached}
    steps = {tensor: name for tensor, name in graph.steps.items() if name in reached}
    if not weighed and not biased:
        return parameters, None
    trained = {}
    for latent in weighed.values():
        trained[latent.values] = Parameter(_size(graph.model, latent.values))
        trained[latent.log_scale] = Parameter(_SCALE_SIZE)
    trained.update({name: Parameter(_size(graph.model, name)) for name in biased.values()})
    trained.update(dict.fromkeys(steps.values(), Parameter(_STEP_SIZE)))
    data = {**samples.inputs, **{target_name(n): a for n, a in samples.outputs.items()}}
    result = trainer.train(graph.model, data, trained, schedule, fit=split.fit, check=split.check, progress=progress)
    weights, biases = dict(parameters.weights), dict(parameters.biases)
    for place, latent in weighed.items():
        old, key = chosen[place], weight_key(movable[place])
        scale = (old.scale * np.exp(result.values[latent.log_scale].reshape(old.scale.shape))).astype(np.float32)
        codes = replace(old, scale=scale).quantize(result.values[latent.values])
        computed = weights[key].params
        codes = codes.astype(computed.qtype.storage)
        weights[key] = replace(weights[key], codes=codes, params=replace(computed, scale=scale))
    for place, name in biased.items():
        biases[place] = result.values[name]
    tensors = dict(parameters.tensors)
    for tensor, name in steps.items():
        old = tensors[tensor]
        scale = old.scale * np.exp(float(result.values[name][0]))
        new = replace(old, scale=np.asarray(scale, np.float32))
        tensors.update({other: new for other, of in parameters.tensors.items() if of is old})
    return Parameters(tensors, weights, biases), result


def _norms(model: ir.Model, frozen: Collection[str]) -> list[Place]:
    """The scales and shifts of the layer normalisations that no ``frozen`` node stands behind."""
    order = {node.name or "": i for i, node in enumerate(model.graph)}
    last = max((order.get(name, -1) for name in frozen), default=-1)
    return [place for place in norm_places(model) if order[place[0]] > last]


def _learned(model: ir.Model, plan: Plan, parameters: Parameters) -> dict[str, str]:
    """The points whose scale may be trained, each with the tensor whose scale it is.

    Tensors with the same parameters (see ``onnxq.parameters.concat``) keep to one scale. Where a Clip is absorbed it
    has a ceiling, and stays; so does what must divide a constant (``onnxq.parameters.align``).
    """
    roots = plan.roots
    first: dict[int, str] = {}
    for root in dict.fromkeys(roots.values()):
        first.setdefault(id(parameters.tensors[root]), root)
    of = {tensor: first[id(parameters.tensors[root])] for tensor, root in roots.items()}
    fixed = {of[p.tensor] for p in plan.points if p.ceiling is not None}
    fixed |= {of[tensor] for tensor in tied(model, plan, parameters.tensors)}
    return {tensor: root for tensor, root in of.items() if root not in fixed}


def _movable(plan: Plan, parameters: Parameters, frozen: Collection[str]) -> dict[Place, Weight]:
    """The weights that can be trained if gradients reach them: those that are computed with as they are stored."""
    keys = [weight_key(w) for w in plan.weights]
    return {
        (w.node, w.index): w
        for w, key in zip(plan.weights, keys, strict=True)
        if keys.count(key) == 1
        and parameters.weights[key].params.granularity == w.granularity
        and w.storage is not Storage.GATHERED  # a batch reads few rows of a table
        and w.stored.uniform
        and not w.at_load
        and w.node not in frozen
    }


def _in_codes(weight: Weight, computed: QuantParams) -> QuantParams:
    """The parameters with the codes that are stored, fewer than kernels compute with."""
    return replace(computed, qtype=weight.stored.code_type(computed.qtype))


def _size(model: ir.Model, name: str) -> float:
    value = model.graph.initializers[name].const_value
    assert value is not None
    data = np.asarray(value.numpy(), np.float64)
    return max(float(np.sqrt(np.square(data).mean())), _SMALLEST)
