"""The quantized model as a float graph: activations go through quantizers, weights are the values of their codes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.emit import WeightKey, emit, weight_key
from onnxq.graph.edit import float_constant, new_constant, owner
from onnxq.kernels.operators import operator
from onnxq.numerics import bias_params
from onnxq.parameters.choose import Parameters
from onnxq.plan import Bias, Plan, Storage
from onnxq.query import nodes

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Simulation:
    """A prepared float ``model`` and how it is quantized: where, by ``plan``, and with which ``parameters``."""

    model: ir.Model
    plan: Plan
    parameters: Parameters

    def graph(self) -> ir.Model:
        """The float graph that computes what this does on integers."""
        return simulated(self.model, self.plan, self.parameters)


def simulated(model: ir.Model, plan: Plan, parameters: Parameters) -> ir.Model:
    """A copy of ``model`` that computes in float what the emitted model computes on integers, within rounding.

    Every node of ``plan`` reads weights and biases of its own, whatever was shared, and every layer normalisation a
    scale and a shift: they can be changed one by one.
    Activations whose range is measured at run time, and those that MatMulNBits rounds, stay as they are.
    """
    copy = emit(
        model, replace(plan, weights=(), biases=()), tensors=parameters.tensors, weights={}, biases={}, steer=False
    )
    by_name = {n.name or "": n for n in nodes(copy)}
    made: dict[WeightKey, F32] = {}
    for weight in plan.weights:
        key = weight_key(weight)
        if key not in made:
            made[key] = parameters.weights[key].dequantize()
        real = np.swapaxes(made[key], -1, -2) if weight.turned else made[key]
        give(by_name[weight.node], weight.index, real)
    for bias in plan.biases:
        data = parameters.biases.get((bias.node, bias.index))
        if data is None:
            data = original(by_name[bias.node], bias.index)
        give(by_name[bias.node], bias.index, stored_bias(plan, parameters, bias, data))
    for name, index in norm_places(copy):
        data = parameters.biases.get((name, index))
        give(by_name[name], index, original(by_name[name], index) if data is None else data)
    return copy


def norm_places(model: ir.Model) -> list[tuple[str, int]]:
    """Scales and shifts of the layer normalisations of the main graph, in its order, as (node, input)."""
    return [
        (node.name or "", index)
        for node in model.graph
        for index in operator(node).channel_inputs
        if index < len(node.inputs) and float_constant(node.inputs[index]) is not None
    ]


def stored_bias(plan: Plan, parameters: Parameters, bias: Bias, data: F32) -> F32:
    """What the emitted model adds for a bias of ``data``: integers where the kernel computes on such.

    With few bits the scale of a weight is large, and that of its bias with it.
    """
    weight = next((w for w in plan.weights if w.node == bias.weight_node), None)
    if bias.storage is not Storage.INTEGER or weight is None or weight.storage is not Storage.INTEGER:
        return data
    root = plan.roots.get(bias.input, bias.input)
    chosen = bias_params(parameters.tensors[root], parameters.weights[weight_key(weight)].params)
    return chosen.dequantize(chosen.quantize(data.reshape(-1))).reshape(data.shape)


def give(node: ir.Node, index: int, data: F32) -> None:
    """Makes input ``index`` of ``node`` a constant of its own that holds ``data``."""
    node.replace_input_with(index, new_constant(owner(node), data, name=f"{node.name}_input_{index}"))


def original(node: ir.Node, index: int) -> F32:
    """The constant that input ``index`` of ``node`` reads."""
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float32)
