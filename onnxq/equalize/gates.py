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

from onnxq.graph.edit import owner, rank, sole_consumer, supersede
from onnxq.graph.nodes import Before, NodeBuilder
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
    build, name, places = NodeBuilder(Before(function)), function.name or "", (rank(x) or 0) - 2
    line = operator(function).line
    slope, offset = (1.0, 0.0) if line is None else line(function)
    weight = (slope / factors).astype(np.float32).reshape(-1, 1, *[1] * places)
    inputs = [x, build.constant(weight, f"{name}_slopes")]
    if line is not None:
        offsets = np.full(factors.size, offset, np.float32)
        inputs.append(build.constant(offsets, f"{name}_offsets"))
    divided = build("Conv", inputs, name=gate.scaled, like=x, group=factors.size, kernel_shape=[1] * places)
    if line is None:
        function.replace_input_with(0, divided)
        return
    ends = [build.constant(np.float32(end), f"{name}_{end}") for end in (0, 1)]
    clipped = build("Clip", [divided, *ends], name=name, like=function.outputs[0])
    supersede(function.outputs[0], clipped)
    owner(function).remove(function, safe=True)
