"""Recurrent nodes as onnxruntime-training can differentiate them: forward in time, with all inputs and outputs.

Its kernels for LSTM and GRU know one direction, and read the states to begin with and every output. Each direction of
a node becomes a node of its own; the one that goes backwards reads and writes the steps in reverse order. Weights stay
whole, and are sliced: whatever stands in front of them (quantizers) stays there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph.edit import new_constant, owner
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Gradient, Recurrence
from onnxq.query import attribute

# Inputs of LSTM and GRU in their order: X, W, R, B, sequence_lens, initial_h; of LSTM also initial_c and P.
_LENGTHS, _PEEPHOLES = 4, 7
_TO_THE_END = 1 << 31


def recurrent_obstacle(node: ir.Node) -> str | None:
    """What of a recurrent ``node`` the training runtime has no kernel for, in words; None where it has all.

    It exchanges LSTM and GRU for kernels of its own even where no gradient is wanted.
    """
    if not is_recurrent(node):
        return None
    usual = [name for _ in _directions(node) for name in _kind(node).activations]
    activations = [str(name).lower() for name in attribute(node, "activations", ()) or usual]
    if _input(node, _LENGTHS) is not None:
        what = "sequences of differing lengths"
    elif _input(node, _PEEPHOLES) is not None:
        what = "peepholes"
    elif activations != usual:
        what = "activations other than Sigmoid and Tanh"
    elif attribute(node, "layout", 0) or attribute(node, "clip", 0.0) or attribute(node, "input_forget", 0):
        what = "a layout, a clip or coupled gates"
    else:
        return None
    return f"onnxruntime-training runs no {node.op_type} with {what} ('{node.name}')"


def is_recurrent(node: ir.Node) -> bool:
    """Whether ``node`` is recurrent, of a kind that the training runtime differentiates."""
    record = operator(node)
    return record.recurrence is not None and record.gradient is Gradient.SMOOTH


def _kind(node: ir.Node) -> Recurrence:
    found = operator(node).recurrence
    assert found is not None
    return found


def is_forward(node: ir.Node) -> bool:
    """Whether ``node`` is what ``forward_only`` makes of a recurrent node."""
    return is_recurrent(node) and operator(node).gradient_if(node)


def forward_only(node: ir.Node) -> dict[ir.Value, ir.Value]:
    """Puts nodes in front of ``node`` that compute its outputs and have gradients: what stands for each of them."""
    outs: list[list[ir.Value]] = []
    for index, direction in enumerate(_directions(node)):
        name = f"{node.name}_{direction}"
        backwards = direction == "reverse"
        x = node.inputs[0]
        assert x is not None
        steps = _reversed(node, x, f"{name}_steps") if backwards else x
        parts: list[ir.Value | None] = [steps, *(_part(node, i, index, name) for i in (1, 2, 3)), None]
        parts += [_state(node, i, index, name) for i in _kind(node).states]
        kept: dict[str, Any] = {k: v for k, v in node.attributes.items() if k not in ("direction", "activations")}
        outputs = [f"{name}_{what}" for what in ("all", "hidden", "cell")[: len(parts) - 4]]
        new = NodeBuilder(Before(node)).node(node.op_type, parts, name=name, outputs=outputs, **kept)
        for output in new.outputs:
            output.type = x.type
        every = list(new.outputs)
        if backwards:
            every[0] = _reversed(node, every[0], f"{name}_all_steps")
        outs.append(every)
    found: dict[ir.Value, ir.Value] = {}
    for i, output in enumerate(node.outputs):
        if output.uses() or output.is_graph_output():
            # Y is [steps, directions, batch, units], the states are [directions, batch, units].
            both = [every[i] for every in outs]
            name = f"{node.name}_{i}"
            found[output] = both[0] if len(both) == 1 else _new(node, "Concat", both, name, axis=1 if i == 0 else 0)
    return found


def _directions(node: ir.Node) -> tuple[str, ...]:
    said = str(attribute(node, "direction", "forward"))
    return ("forward", "reverse") if said == "bidirectional" else (said,)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _part(node: ir.Node, index: int, direction: int, name: str) -> ir.Value:
    """Input ``index`` of one direction; zeros for a bias that is not there."""
    value = _input(node, index)
    if value is None:
        size = 2 * _kind(node).gates * int(attribute(node, "hidden_size", 0))
        return new_constant(owner(node), np.zeros((1, size), np.float32), name=f"{name}_bias")
    return value if len(_directions(node)) == 1 else _sliced(node, value, direction, f"{name}_{index}")


def _state(node: ir.Node, index: int, direction: int, name: str) -> ir.Value:
    """The state that one direction begins with, ``[1, batch, units]``; zeros where none is given."""
    if _input(node, index) is not None:
        return _part(node, index, direction, name)
    graph, x = owner(node), node.inputs[0]
    assert x is not None
    name = f"{name}_start_{index}"
    units = np.asarray([int(attribute(node, "hidden_size", 0))], np.int64)
    batch = _new(node, "Gather", [_new(node, "Shape", [x], name), _integers(node, [1], f"{name}_axis")], name)
    one = _integers(node, [1], f"{name}_one")
    shape = _new(node, "Concat", [one, batch, new_constant(graph, units, name=f"{name}_units")], name, axis=0)
    return _new(node, "ConstantOfShape", [shape], name)


def _reversed(node: ir.Node, value: ir.Value, name: str) -> ir.Value:
    """``value`` with its first axis the other way round."""
    bounds = [_integers(node, [n], f"{name}_{i}") for i, n in enumerate((-1, -_TO_THE_END, 0, -1))]
    return _new(node, "Slice", [value, *bounds], name)


def _sliced(node: ir.Node, value: ir.Value, index: int, name: str) -> ir.Value:
    """``value[index : index + 1]``."""
    bounds = [_integers(node, [n], f"{name}_{i}") for i, n in enumerate((index, index + 1, 0))]
    return _new(node, "Slice", [value, *bounds], name)


def _integers(node: ir.Node, values: list[int], name: str) -> ir.Value:
    return new_constant(owner(node), np.asarray(values, np.int64), name=name)


def _new(node: ir.Node, op: str, inputs: list[ir.Value], name: str, **attributes: Any) -> ir.Value:
    return NodeBuilder(Before(node))(op, inputs, name=f"{name}_{op}", **attributes)
