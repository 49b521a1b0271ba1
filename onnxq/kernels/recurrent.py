"""Recurrent operators. An LSTM has an integer kernel that measures the range of what it reads; the others have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxq.kernels.record import Gradient, Operator, Recurrence, Role
from onnxq.kernels.targets import Target
from onnxq.query import attribute, constant, is_float

if TYPE_CHECKING:
    import onnx_ir as ir


def _weights(_: ir.Node) -> Mapping[int, tuple[int, ...]]:
    """One scale for each row of gates, of inputs and of states."""
    return {1: (0, 1), 2: (0, 1)}


def _misshapen(node: ir.Node) -> tuple[tuple[int, ...], ...]:
    """Those of weights that are not ``[directions, gates, n]`` with the same directions and gates."""
    tensors = [value.const_value for value in node.inputs[1:3] if value is not None]
    shapes = tuple(tuple(tensor.shape.numpy()) for tensor in tensors if tensor is not None)
    wrong = any(len(shape) != 3 for shape in shapes) or len({shape[:2] for shape in shapes}) > 1
    return shapes if wrong else ()


def _large_enough(node: ir.Node, target: Target) -> bool:
    """Whether the integer kernel of the LSTM ``node`` is faster than the float one."""
    if attribute(node, "layout", 0) or not is_float(node.inputs[0]):
        return False
    weights = [constant(v) for v in node.inputs[1:3] if is_float(v)]
    sizes = [w.size for w in weights if w is not None]
    return len(sizes) == 2 and sum(sizes) >= target.recurrent_weights


def _forward(node: ir.Node) -> bool:
    """Whether the training runtime differentiates ``node``: forward in time, with all inputs and outputs."""
    record = RECURRENCES[node.op_type]
    return (
        attribute(node, "direction", "forward") == "forward"
        and all(i < len(node.inputs) and node.inputs[i] is not None for i in (_BIAS, *record.states))
        and len(node.outputs) == 1 + len(record.states)
        and all(o.name for o in node.outputs)
    )


_BIAS = 3
RECURRENCES = {
    "LSTM": Recurrence(4, (5, 6), ("sigmoid", "tanh", "tanh")),
    "GRU": Recurrence(3, (5,), ("sigmoid", "tanh")),
    "RNN": Recurrence(1, (5,), ("tanh",)),
}

OPERATORS = (
    Operator(
        "LSTM",
        role=Role.STORED,
        kind="float compute",
        stored=_weights,
        misshapen=_misshapen,
        dynamic=_large_enough,
        kernels=("DynamicQuantizeLSTM",),
        recurrence=RECURRENCES["LSTM"],
        gradient=Gradient.SMOOTH,
        gradient_if=_forward,
        gradient_outputs=("hidden", "cell"),
    ),
    Operator(
        "GRU",
        role=Role.STORED,
        kind="float compute",
        stored=_weights,
        misshapen=_misshapen,
        recurrence=RECURRENCES["GRU"],
        gradient=Gradient.SMOOTH,
        gradient_if=_forward,
        gradient_outputs=("hidden",),
    ),
    Operator(
        "RNN",
        role=Role.STORED,
        kind="float compute",
        stored=_weights,
        misshapen=_misshapen,
        recurrence=RECURRENCES["RNN"],
    ),
)
