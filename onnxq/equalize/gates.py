"""Channels scaled through ``y = x g(x)``: HardSwish and SiLU, which are not homogeneous, but nearly their only part is.

Where x is multiplied by ``s`` for each channel, so is y, if the gate goes on reading x: it divides by ``s`` first, as
a depthwise convolution of one place does. HardSigmoid, ``clip(alpha x + beta, 0, 1)``, *is* then one: its slope and
offset for each channel, and a Clip that the quantizer takes in. On integers it replaces an Add (64 channels of 80 x 80:
165 us and 75; 256 of 20 x 20: 23 and 14; AVX-512 VNNI, one thread).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.edit import new_constant, new_node, owner, rank, replace_value, sole_consumer
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Arithmetic

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gate:
    """``function`` computes g, and ``product`` the result."""

    function: ir.Node
    product: ir.Node

    @property
    def scaled(self) -> str:
        """The name of the convolution that ``rescale`` adds."""
        return f"{self.function.name}_scaled"


def gate_behind(value: ir.Value) -> Gate | None:
    """The gate that alone reads the maps ``value`` [N, C, ...], if there is one."""
    uses = tuple(value.uses())
    if len(uses) != 2 or value.is_graph_output() or (rank(value) or 0) < 3:
        return None
    for use, other in (uses, uses[::-1]):
        if not operator(use.node).gate or operator(other.node).arithmetic is not Arithmetic.PRODUCT:
            continue
        if sole_consumer(use.node.outputs[0]) is other.node and other.node.graph is use.node.graph:
            return Gate(use.node, other.node)
    return None


def rescale(gate: Gate, factors: F64) -> None:
    """Makes ``gate`` read its input divided by ``factors: [C]``, positive, which it has been multiplied by."""
    function, x = gate.function, gate.function.inputs[0]
    assert x is not None
    graph, name, places = owner(function), function.name or "", (rank(x) or 0) - 2
    line = operator(function).line
    slope, offset = (1.0, 0.0) if line is None else line(function)
    weight = (slope / factors).astype(np.float32).reshape(-1, 1, *[1] * places)
    inputs = [x, new_constant(graph, weight, name=f"{name}_slopes")]
    if line is not None:
        offsets = np.full(factors.size, offset, np.float32)
        inputs.append(new_constant(graph, offsets, name=f"{name}_offsets"))
    convolution = new_node("Conv", inputs, name=gate.scaled, group=factors.size, kernel_shape=[1] * places)
    convolution.outputs[0].type, convolution.outputs[0].shape = x.type, x.shape
    graph.insert_before(function, convolution)
    if line is None:
        function.replace_input_with(0, convolution.outputs[0])
        return
    ends = [new_constant(graph, np.float32(end), name=f"{name}_{end}") for end in (0, 1)]
    clip, old = new_node("Clip", [convolution.outputs[0], *ends], name=name), function.outputs[0]
    graph.insert_before(function, clip)
    replace_value(old, clip.outputs[0])
    clip.outputs[0].type, clip.outputs[0].shape, output = old.type, old.shape, old.name
    graph.remove(function, safe=True)
    clip.outputs[0].name = output
