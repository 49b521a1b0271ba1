"""A node and what its integer kernel takes in besides: the bias behind a MatMul, the activation behind anything."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.linear import linear_of
from onnxq.kernels import ops
from onnxq.kernels.operators import operator
from onnxq.query import constant


def fused_output(node: ir.Node) -> ir.Value:
    """The tensor after ``node`` and the bias and activation that its integer kernel takes in.

    A MatMul's bias is the Add that follows; a Relu, or a Clip from 0, is absorbed by the output's quantizer.
    """
    out = node.outputs[0]
    add = bias_add(node)
    if add is not None:
        out = add[0].outputs[0]
    if not operator(node).takes_activation:
        return out
    follower = _only_reader(out)
    if follower is not None and ops.absorbed_ceiling(follower) is not None and follower.inputs[0] is out:
        return follower.outputs[0]
    return out


def absorbed(node: ir.Node) -> list[ir.Node]:
    """The nodes that the integer kernel of ``node`` takes in: those from ``node`` to its ``fused_output``."""
    found: list[ir.Node] = []
    maker = fused_output(node).producer()
    while maker is not None and maker is not node:
        found.append(maker)
        # Of an Add one input is the bias: only the other one has a maker.
        maker = next((p for v in maker.inputs if v is not None and (p := v.producer()) is not None), None)
    return found


def ends_in_activation(node: ir.Node) -> bool:
    """Whether a Relu or Clip follows ``node``: onnxruntime then fuses only where a quantizer absorbs it."""
    producer = fused_output(node).producer()
    return producer is not None and ops.absorbed_ceiling(producer) is not None


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    producer = value.producer()
    return uses[0].node if producer is not None and uses[0].node.graph is producer.graph else None


def bias_add(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add after a MatMul that adds one constant to each output channel, and which of its inputs is the constant."""
    linear = linear_of(node)
    place = None if linear is None or linear.add is None else linear.bias_at
    bias = None if place is None else constant(place[0].inputs[place[1]])
    if linear is None or bias is None:
        return None
    # One number for all channels, or a bias of the rank of batches of products, goes into no integer kernel.
    return place if bias.size == linear.channels and 1 <= len(bias.shape) <= 2 else None


def written(node: ir.Node) -> list[ir.Value]:
    """The tensors that an integer ``node`` must write quantized."""
    return list(node.outputs) if operator(node).all_outputs else [fused_output(node)]


def read(node: ir.Node) -> list[ir.Value]:
    """The tensors that ``node`` would read as integers."""
    slots = [0] if ops.weight_slot(node) is not None else ops.data_inputs(node)
    values = (node.inputs[i] for i in slots)
    return [v for v in values if v is not None and constant(v) is None]


def maker_of(value: ir.Value) -> ir.Node | None:
    """What computes ``value``, activations that quantizers absorb left out."""
    node = value.producer()
    while node is not None and ops.absorbed_ceiling(node) is not None and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node
