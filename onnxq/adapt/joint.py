"""All weights, scales and biases trained together, through their quantizers, towards the float model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.adapt.engine import Engine, Parameter, Schedule, Trained
from onnxq.adapt.gradients import differentiable, with_gradient
from onnxq.adapt.samples import Samples
from onnxq.adapt.simulation import simulated
from onnxq.adapt.training_graph import Place, soften, target_name, training_graph
from onnxq.choose import Parameters
from onnxq.emit import weight_key
from onnxq.graph.copying import copy_model
from onnxq.graph.query import nodes
from onnxq.numerics import PerAxis, Quantized, QuantParams, params
from onnxq.plan import Plan, Weight
from onnxq.plan.types import SharedWith
from onnxq.ranges.fit import code_type

F32 = npt.NDArray[np.float32]

# What a unit of the rate moves log scales of weights and activations by; weights and biases move by their root mean
# square.
_SCALE_SIZE = 0.3
_STEP_SIZE = 0.3
_SMALLEST = 1e-4


def adapt_jointly(
    model: ir.Model,
    plan: Plan,
    parameters: Parameters,
    samples: Samples,
    schedule: Schedule,
    engine: Engine,
    *,
    fit: Sequence[int],
    check: Sequence[int],
    frozen: Collection[str] = (),
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Parameters, Trained | None]:
    """``parameters`` trained on the samples ``fit``, the best on ``check``; None where no gradient reaches a weight.

    What is trained: weights with one scale a channel, read by one node, in uniform codes; their scales; biases; and the
    scales of activations. ``frozen`` are nodes whose weights and biases stay.
    """
    simulation = simulated(model, plan, parameters)
    movable, free = _reached(simulation, plan, frozen)
    if not movable and not free:
        return parameters, None
    scores = {name: samples.score(name) for name in samples.outputs}
    chosen = {place: _in_codes(w, parameters.weights[weight_key(w)].params) for place, w in movable.items()}
    learned = _learned(plan)
    graph = training_graph(simulation, chosen, free, scores=scores, learned=learned)
    reached = with_gradient(graph.model)
    steps = {tensor: name for tensor, name in graph.steps.items() if name in reached}
    trained = {}
    for latent in graph.weights.values():
        trained[latent.values] = Parameter(_size(graph.model, latent.values))
        trained[latent.log_scale] = Parameter(_SCALE_SIZE)
    trained.update({name: Parameter(_size(graph.model, name)) for name in graph.free.values()})
    trained.update(dict.fromkeys(steps.values(), Parameter(_STEP_SIZE)))
    data = {**samples.inputs, **{target_name(n): a for n, a in samples.outputs.items()}}
    result = engine.train(graph.model, data, trained, schedule, fit=fit, check=check, progress=progress)
    weights, biases = dict(parameters.weights), dict(parameters.biases)
    for place, latent in graph.weights.items():
        old, key = chosen[place], weight_key(movable[place])
        scale = (old.scale * np.exp(result.values[latent.log_scale].reshape(old.scale.shape))).astype(np.float32)
        codes = replace(old, scale=scale).quantize(result.values[latent.values])
        computed = weights[key].params
        weights[key] = Quantized(codes.astype(computed.qtype.storage), replace(computed, scale=scale))
    for place, name in graph.free.items():
        biases[place] = result.values[name]
    tensors = dict(parameters.tensors)
    for tensor, name in steps.items():
        scale = tensors[tensor].scale * np.exp(float(result.values[name][0]))
        tensors[tensor] = replace(tensors[tensor], scale=np.asarray(scale, np.float32))
    return Parameters(tensors, weights, biases), result


def _learned(plan: Plan) -> dict[str, str]:
    """The points whose scale may be trained, each with the tensor whose scale it is.

    Where a Clip is absorbed the scale has a ceiling, and stays.
    """
    source = {p.tensor: p.source.tensor for p in plan.points if isinstance(p.source, SharedWith)}
    roots = {}
    for point in plan.points:
        root = point.tensor
        while root in source:
            root = source[root]
        roots[point.tensor] = root
    fixed = {roots[p.tensor] for p in plan.points if p.ceiling is not None}
    return {tensor: root for tensor, root in roots.items() if root not in fixed}


def _reached(simulation: ir.Model, plan: Plan, frozen: Collection[str]) -> tuple[dict[Place, Weight], list[Place]]:
    """The weights and biases that can be trained."""
    probe = copy_model(simulation)
    soften(probe, {})
    differentiable(probe)
    reached = with_gradient(probe)
    by_name = {n.name or "": n for n in nodes(probe)}

    def is_reached(node: str, index: int) -> bool:
        found = by_name.get(node)
        value = None if found is None or index >= len(found.inputs) else found.inputs[index]
        return value is not None and value.name in reached

    keys = [weight_key(w) for w in plan.weights]
    movable = {
        (w.node, w.index): w
        for w, key in zip(plan.weights, keys, strict=True)
        if keys.count(key) == 1
        and isinstance(w.granularity, PerAxis)
        and not (w.stored.codebook or w.stored.block)
        and w.node not in frozen
        and is_reached(w.node, w.index)
    }
    return movable, [
        (b.node, b.index) for b in plan.biases if b.weight_node not in frozen and is_reached(b.node, b.index)
    ]


def _in_codes(weight: Weight, computed: QuantParams) -> QuantParams:
    """The parameters with the codes that are stored, fewer than kernels compute with."""
    qtype = code_type(weight.stored, computed.qtype)
    return params(qtype, computed.scale, granularity=computed.granularity)


def _size(model: ir.Model, name: str) -> float:
    value = model.graph.initializers[name].const_value
    assert value is not None
    data = np.asarray(value.numpy(), np.float64)
    return max(float(np.sqrt(np.square(data).mean())), _SMALLEST)
