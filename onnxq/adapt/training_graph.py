"""The simulated model as a graph that can be trained: quantizers with gradients, and the loss as its only output.

Quantizers become clipped straight-through estimators out of FakeQuant: ``u = x / s; FakeQuant(u, 1, z) * s``, for
weights with a scale for each channel. The gradient of ``s`` is then that of Esser et al., Learned Step Size
Quantization (ICLR 2020, section 2.1). Scales are trained as ``s0 * exp(t)``: they stay positive and steps are relative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.adapt.gradients import (
    cross_entropies,
    differentiable,
    new_input,
    new_node,
    scalar,
    squared_errors,
)
from onnxq.adapt.samples import AnswerKind
from onnxq.graph.copying import copy_model
from onnxq.graph.edit import new_constant, owner, redirect
from onnxq.numerics import PerBlock, QuantParams
from onnxq.query import array, nodes

F32 = npt.NDArray[np.float32]
Place = tuple[str, int]  # a node and the index of one of its inputs


@dataclass(frozen=True)
class Latent:
    """Names of the constants that a quantized weight is trained by: its values before rounding, its log scale."""

    values: str
    log_scale: str


@dataclass(frozen=True)
class TrainingGraph:
    """``model``: inputs are those of the simulated model, then a target for each output; its output is the loss.

    What may be trained: ``weights`` (with quantizers) and ``free`` (without) by place, and ``steps``, log scales of
    activations by tensor.
    """

    model: ir.Model
    weights: Mapping[Place, Latent]
    free: Mapping[Place, str]
    steps: Mapping[str, str]


def target_name(output: str) -> str:
    """The input that holds what ``output`` ought to be."""
    return f"{output}_target"


def training_graph(
    simulation: ir.Model,
    weights: Mapping[Place, QuantParams],
    free: Sequence[Place],
    *,
    scores: Mapping[str, float],
    learned: Mapping[str, str] | None = None,
    labels: AnswerKind | None = None,
) -> TrainingGraph:
    """``simulation`` (see ``simulated``) with quantizers for ``weights`` and a loss.

    The loss is the mean squared error towards the targets, rows less their means, or, for ``labels``, the cross-entropy
    of one-hot targets and outputs of that kind. ``free``: other constants that are to be trained. ``scores``: by output
    that counts, the mean square that its error is divided by. ``learned``: the quantized activations whose scale is
    trained, each with the tensor whose scale it is (its own, or that of one that it shares it with).
    """
    model = copy_model(simulation)
    steps = soften(model, learned or {})
    by_name = {n.name or "": n for n in nodes(model)}
    latents = {place: _latent(by_name[place[0]], place[1], q) for place, q in weights.items()}
    named = {}
    for node, index in free:
        value = by_name[node].inputs[index]
        assert value is not None
        named[node, index] = value.name or ""
    differentiable(model)
    outputs = [o for o in model.graph.outputs if o.name in scores]
    targets = [new_input(model, target_name(o.name or ""), o) for o in outputs]
    parts = [(o, t, 1.0 / scores[o.name or ""]) for o, t in zip(outputs, targets, strict=True)]
    if labels is None:
        squared_errors(model, parts)
    else:
        cross_entropies(model, parts, logits=labels == "logits")
    return TrainingGraph(model, latents, named, steps)


def soften(model: ir.Model, learned: Mapping[str, str]) -> dict[str, str]:
    """Every QuantizeLinear with its DequantizeLinears becomes a FakeQuant; constants in integers become floats.

    The log scales of ``learned`` tensors (see ``training_graph``) are returned by the tensor that they belong to.
    """
    steps: dict[str, str] = {}
    for node in list(nodes(model)):
        if node.domain:
            continue
        if node.op_type == "QuantizeLinear":
            soft = _soft(node, learned, steps)
            clips = [u.node for u in node.outputs[0].uses() if u.node.op_type == "Clip"]
            for value in (node.outputs[0], *(c.outputs[0] for c in clips)):
                for reader in [u.node for u in value.uses()]:
                    if reader.op_type == "DequantizeLinear":
                        redirect(reader.outputs[0], soft)
        elif node.op_type == "DequantizeLinear" and (held := array(node.inputs[0])) is not None:
            scale, zero = array(node.inputs[1]), array(node.inputs[2])
            assert scale is not None
            assert zero is not None
            real = ((held.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)
            redirect(node.outputs[0], new_constant(owner(node), real, name=f"{node.name}_real"))
    return steps


def _soft(node: ir.Node, learned: Mapping[str, str], steps: dict[str, str]) -> ir.Value:
    """What stands for a QuantizeLinear and the DequantizeLinears behind it."""
    x, scale, zero = node.inputs[0], array(node.inputs[1]), array(node.inputs[2])
    assert x is not None
    assert scale is not None
    assert zero is not None
    ends = int(np.iinfo(zero.dtype).min), int(np.iinfo(zero.dtype).max)
    for clip in (u.node for u in node.outputs[0].uses() if u.node.op_type == "Clip"):
        low, high = (array(v) for v in clip.inputs[1:3])
        assert low is not None
        assert high is not None
        ends = int(low), int(high)
    name, root = node.name or "", learned.get(x.name or "")
    codes = {"quant_min": ends[0], "quant_max": ends[1]}
    offset = scalar(node, float(zero), f"{name}_z")
    if root is None:
        return new_node(node, "FakeQuant", [x, scalar(node, float(scale), f"{name}_s"), offset], name, **codes)
    if root not in steps:
        steps[root] = new_constant(owner(node), np.zeros(1, np.float32), name=f"{root}_log_step").name or ""
    log_step = owner(node).initializers[steps[root]]
    factor = new_node(node, "Exp", [log_step], f"{name}_log_step")
    start = new_constant(owner(node), np.asarray([scale], np.float32), name=f"{name}_s")
    step = new_node(node, "Mul", [factor, start], f"{name}_step")
    ratio = new_node(node, "Div", [x, step], name)
    soft = new_node(node, "FakeQuant", [ratio, scalar(node, 1.0, f"{name}_one"), offset], name, **codes)
    return new_node(node, "Mul", [soft, step], name)


def _latent(node: ir.Node, index: int, params: QuantParams) -> Latent:
    """Puts a quantizer with trained scales between a weight and its reader."""
    values = node.inputs[index]
    assert values is not None
    assert values.name
    assert values.const_value is not None
    name, qtype, shape = values.name, params.qtype, tuple(values.const_value.shape.numpy())
    start = _broadcastable(params, np.asarray(params.scale, np.float32), shape)
    log_scale = new_constant(owner(node), np.zeros_like(start), name=f"{name}_log_scale")
    factor = new_node(node, "Exp", [log_scale], f"{name}_log_scale")
    base = new_constant(owner(node), start, name=f"{name}_scale")
    scale = new_node(node, "Mul", [factor, base], f"{name}_scaled")
    if isinstance(params.granularity, PerBlock) and start.shape[params.granularity.axis] > 1:
        scale = _repeated(node, scale, params.granularity, start.shape, shape)
    ratio = new_node(node, "Div", [values, scale], name)
    one, zero = scalar(node, 1.0, f"{name}_one"), scalar(node, 0.0, f"{name}_zero")
    ends = {"quant_min": int(qtype.qmin), "quant_max": int(qtype.qmax)}
    if params.symmetric:
        codes = new_node(node, "FakeQuant", [ratio, one, zero], name, **ends)
    else:  # FakeQuant knows one zero point only; whole numbers may be added in front of it as well
        zeros = params.granularity.expand(params.zero_point, shape).astype(np.float32)
        moved = new_constant(owner(node), zeros, name=f"{name}_zeros")
        above = new_node(node, "FakeQuant", [new_node(node, "Add", [ratio, moved], name), one, zero], name, **ends)
        codes = new_node(node, "Sub", [above, moved], name)
    node.replace_input_with(index, new_node(node, "Mul", [codes, scale], name))
    return Latent(name, log_scale.name or "")


def _broadcastable(params: QuantParams, values: F32, shape: tuple[int, ...]) -> F32:
    """``values`` of the shape of the scale of ``params`` with as many axes as ``shape``; blocks are not repeated."""
    if isinstance(params.granularity, PerBlock):
        return values
    return np.asarray(params.granularity.expand(values, shape), np.float32)


def _repeated(
    node: ir.Node, scale: ir.Value, blocks: PerBlock, have: tuple[int, ...], shape: tuple[int, ...]
) -> ir.Value:
    """The scales of blocks once for each weight of ``shape``."""
    axis, name = blocks.axis % len(shape), scale.name or ""

    def integers(values: Sequence[int], what: str) -> ir.Value:
        return new_constant(owner(node), np.asarray(values, np.int64), name=f"{name}_{what}")

    apart = (*have[: axis + 1], 1, *have[axis + 1 :])
    wide = (*have[: axis + 1], blocks.size, *have[axis + 1 :])
    whole = (*have[:axis], have[axis] * blocks.size, *have[axis + 1 :])
    value = new_node(node, "Reshape", [scale, integers(apart, "apart")], f"{name}_apart")
    value = new_node(node, "Expand", [value, integers(wide, "wide")], name)
    value = new_node(node, "Reshape", [value, integers(whole, "whole")], f"{name}_whole")
    if whole == shape:
        return value  # the last block may have fewer
    ends = [integers([n], what) for n, what in ((0, "start"), (shape[axis], "end"), (axis, "axis"))]
    return new_node(node, "Slice", [value, *ends], name)
