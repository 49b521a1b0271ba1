"""Graphs that onnxruntime-training can differentiate: what has a gradient, and exact rewrites of what has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.adapt.directions import forward_only, is_forward, is_recurrent, recurrent_obstacle
from onnxq.graph.edit import is_op, new_constant, owner, redirect, redirect_output, set_input
from onnxq.graph.nodes import After, AtEnd, Before, NodeBuilder
from onnxq.graph.passes.unused import remove_unused
from onnxq.graph.widened import OTHER
from onnxq.kernels.operators import operator
from onnxq.kernels.record import MICROSOFT, Gradient
from onnxq.query import attribute, nodes

LOSS = "onnxq_loss"


def differentiable(model: ir.Model) -> None:
    """Changes ``model`` in place so that more of it has gradients; what it computes stays the same.

    But for the types: outputs of other types of floats become float32, as do inputs of one that numpy has not.
    """
    _float32_ends(model)
    for node in list(nodes(model)):
        if node.domain:
            continue
        if node.op_type in _REWRITES:
            redirect(node.outputs[0], _REWRITES[node.op_type](node))
        elif is_recurrent(node) and not is_forward(node) and recurrent_obstacle(node) is None:
            for old, new in forward_only(node).items():
                redirect(old, new)
    remove_unused(model)
    for node in list(nodes(model)):  # gradients that read the optional inputs and outputs
        norm = operator(node).channel_inputs
        if norm and (len(node.inputs) <= norm[-1] or node.inputs[norm[-1]] is None):
            scale = node.inputs[norm[0]]
            size = () if scale is None or scale.const_value is None else scale.const_value.shape.numpy()
            set_input(node, norm[-1], new_constant(owner(node), np.zeros(size, np.float32), name=f"{node.name}_zeros"))
        for i, part in enumerate(operator(node).gradient_outputs):
            if len(node.outputs) < i + 2:
                node.resize_outputs(i + 2)
            if not node.outputs[i + 1].name:
                node.outputs[i + 1].name = f"{node.name}_{part}"
                node.outputs[i + 1].type = ir.TensorType(ir.DataType.FLOAT)


def _float32_ends(model: ir.Model) -> None:
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.BFLOAT16:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for output in tuple(model.graph.outputs):
        maker = output.producer()
        if is_op(maker, "Cast") and maker is not None and output.dtype in OTHER:
            single = NodeBuilder(After(maker))("Identity", [maker.inputs[0]], name=f"{maker.name}_float32")
            redirect_output(output, single)
            single.type = ir.TensorType(ir.DataType.FLOAT)


def obstacle(model: ir.Model) -> str | None:
    """Why onnxruntime-training can do nothing with ``model``, in words; None where it can."""
    return next((wall for node in nodes(model) if (wall := recurrent_obstacle(node)) is not None), None)


def with_gradient(model: ir.Model) -> set[str]:
    """The names of the tensors that gradients of all outputs that they influence reach, in the main graph."""
    clear: dict[int, bool] = {}
    found = set()
    for node in reversed(list(model.graph)):
        record = operator(node)
        smooth = record.gradient is Gradient.SMOOTH and record.gradient_if(node)
        good = True
        for output in node.outputs:
            readers = [u.node for u in output.uses()]
            passed = all(r.graph is node.graph and (_is_flat(r) or clear.get(id(r), False)) for r in readers)
            good = good and passed
            if passed and output.name and (readers or output.is_graph_output()):
                found.add(output.name)
        clear[id(node)] = good and smooth
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.name and all(_is_flat(u.node) or clear.get(id(u.node), False) for u in value.uses()):
            found.add(value.name)
    return found


def _is_flat(node: ir.Node) -> bool:
    return operator(node).gradient is Gradient.FLAT


def new_node(before: ir.Node, op: str, inputs: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Value:
    """The output of a new node in front of ``before``."""
    return _made(NodeBuilder(Before(before)), op, inputs, name, attributes)


def scalar(node: ir.Node, value: float, name: str) -> ir.Value:
    """``value`` as a constant of the graph of ``node``."""
    return new_constant(owner(node), np.asarray(value, np.float32), name=name)


def new_input(model: ir.Model, name: str, like: ir.Value) -> ir.Value:
    """A new input of ``model`` of the type and shape of ``like``."""
    value = ir.Value(name=name, type=like.type, shape=like.shape)
    model.graph.inputs.append(value)
    return value


def squared_errors(model: ir.Model, parts: Sequence[tuple[ir.Value, ir.Value, float]]) -> None:
    """Makes the sum of ``share * mean((output - target)^2)``, rows less their means, the only output of ``model``."""
    emit = _appender(model)
    terms = []
    for output, target, share in parts:
        name = f"{output.name}_loss"
        difference = emit("Sub", [output, target], name)
        if len(output.shape or ()) > 1:
            difference = emit("Sub", [difference, _row_mean(model, emit, difference, name)], f"{name}_centred")
        square = emit("Mul", [difference, difference], f"{name}_square")
        terms.append(_shared(model, emit, emit("ReduceMean", [square], f"{name}_mean", keepdims=0), share, name))
    _only_output(model, emit, terms)


def cross_entropies(model: ir.Model, parts: Sequence[tuple[ir.Value, ir.Value, float]], *, logits: bool) -> None:
    """Makes the sum of ``-share * mean(target * log p)`` the only output of ``model``, p the outputs' probabilities.

    ``logits``: whether outputs still lack the Softmax that makes them probabilities.
    """
    emit = _appender(model)
    terms = []
    for output, target, share in parts:
        name = f"{output.name}_loss"
        if logits:
            log = emit("LogSoftmax", [output], name, axis=-1)
        else:
            least = new_constant(model.graph, np.asarray(_LEAST_PROBABILITY, np.float32), name=f"{name}_least")
            log = emit("Log", [emit("Max", [output, least], name)], name)
        mean = emit("ReduceMean", [emit("Mul", [log, target], name)], name, keepdims=0)
        terms.append(_shared(model, emit, mean, -share, name))
    _only_output(model, emit, terms)


def summed(model: ir.Model, parts: Sequence[tuple[ir.Value, ir.Value, float]]) -> None:
    """Makes the sum of ``share * sum(output * factor)`` the only output of ``model``."""
    emit = _appender(model)
    terms = []
    for output, factor, share in parts:
        name = f"{output.name}_sum"
        product = emit("Mul", [output, factor], name)
        terms.append(_shared(model, emit, emit("ReduceSum", [product], f"{name}_all", keepdims=0), share, name))
    _only_output(model, emit, terms)


_Emit = Callable[..., ir.Value]
_LEAST_PROBABILITY = 1e-7


def _made(build: NodeBuilder, op: str, inputs: Sequence[ir.Value], name: str, attributes: dict[str, Any]) -> ir.Value:
    if op != "FakeQuant":
        return build(op, inputs, name=f"{name}_{op}", **attributes)
    # Its second output is the mask that its gradient reads.
    made = build.node(op, inputs, name=f"{name}_{op}", outputs=(None, None), domain=MICROSOFT, **attributes)
    return made.outputs[0]


def _appender(model: ir.Model) -> _Emit:
    """Puts nodes at the end of ``model``."""

    def emit(op: str, inputs: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Value:
        return _made(NodeBuilder(AtEnd(model.graph)), op, inputs, name, attributes)

    return emit


def _row_mean(model: ir.Model, emit: _Emit, value: ir.Value, name: str) -> ir.Value:
    # From opset 18 on the axes are an input.
    if (model.opset_imports.get("") or 0) >= 18:
        axes = new_constant(model.graph, np.asarray([-1], np.int64), name=f"{name}_axes")
        return emit("ReduceMean", [value, axes], f"{name}_row", keepdims=1)
    return emit("ReduceMean", [value], f"{name}_row", axes=[-1], keepdims=1)


def _shared(model: ir.Model, emit: _Emit, value: ir.Value, share: float, name: str) -> ir.Value:
    factor = new_constant(model.graph, np.asarray(share, np.float32), name=f"{name}_share")
    return emit("Mul", [value, factor], f"{name}_scaled")


def _only_output(model: ir.Model, emit: _Emit, terms: Sequence[ir.Value]) -> None:
    total = terms[0]
    for i, term in enumerate(terms[1:]):
        total = emit("Add", [total, term], f"{LOSS}_{i}")
    final = emit("Identity", [total], LOSS)
    final.name, final.type, final.shape = LOSS, ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    model.graph.outputs.clear()
    model.graph.outputs.append(final)
    model.opset_imports.setdefault(MICROSOFT, 1)


def _hard_sigmoid(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    assert x is not None
    slope, offset = (float(attribute(node, name, value)) for name, value in (("alpha", 0.2), ("beta", 0.5)))
    name = f"{node.name}_gate"
    scaled = new_node(node, "Mul", [x, scalar(node, slope, f"{name}_slope")], name)
    moved = new_node(node, "Add", [scaled, scalar(node, offset, f"{name}_offset")], name)
    ends = [scalar(node, 0.0, f"{name}_low"), scalar(node, 1.0, f"{name}_high")]
    return new_node(node, "Clip", [moved, *ends], name)


def _prelu(node: ir.Node) -> ir.Value:
    """``max(x, 0) + slope * min(x, 0)``."""
    x, slope = node.inputs
    assert x is not None
    assert slope is not None
    zero = scalar(node, 0.0, f"{node.name}_zero")
    up = new_node(node, "Max", [x, zero], f"{node.name}_up")
    down = new_node(node, "Min", [x, zero], f"{node.name}_down")
    return new_node(node, "Add", [up, new_node(node, "Mul", [down, slope], f"{node.name}_bent")], f"{node.name}_both")


def _softplus(node: ir.Node) -> ir.Value:
    """``log(1 + exp(-|x|)) + max(x, 0)``, which does not overflow."""
    x = node.inputs[0]
    assert x is not None
    name = f"{node.name}_softplus"
    size = new_node(node, "Abs", [x], name)
    small = new_node(node, "Exp", [new_node(node, "Neg", [size], name)], name)
    log = new_node(node, "Log", [new_node(node, "Add", [small, scalar(node, 1.0, f"{name}_one")], name)], name)
    up = new_node(node, "Max", [x, scalar(node, 0.0, f"{name}_zero")], name)
    return new_node(node, "Add", [log, up], f"{name}_both")


def _elu(node: ir.Node) -> ir.Value:
    """``max(x, 0) + alpha * (exp(min(x, 0)) - 1)``."""
    x = node.inputs[0]
    assert x is not None
    name, alpha = f"{node.name}_elu", float(attribute(node, "alpha", 1.0))
    zero = scalar(node, 0.0, f"{name}_zero")
    up = new_node(node, "Max", [x, zero], name)
    power = new_node(node, "Exp", [new_node(node, "Min", [x, zero], name)], name)
    down = new_node(node, "Sub", [power, scalar(node, 1.0, f"{name}_one")], name)
    return new_node(
        node, "Add", [up, new_node(node, "Mul", [down, scalar(node, alpha, f"{name}_alpha")], name)], f"{name}_both"
    )


_REWRITES: dict[str, Callable[[ir.Node], ir.Value]] = {
    "HardSigmoid": _hard_sigmoid,
    "PRelu": _prelu,
    "Softplus": _softplus,
    "Elu": _elu,
}
