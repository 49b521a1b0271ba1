"""Operators that make one number of many."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxq.kernels.costs import Shapes, Work
from onnxq.kernels.record import MICROSOFT, Blocks, Gradient, Homogeneous, Layout, Operator, Role
from onnxq.kernels.targets import Target
from onnxq.query import attribute

if TYPE_CHECKING:
    import onnx_ir as ir


def _one_output(node: ir.Node) -> bool:
    return len([o for o in node.outputs if o.name and o.uses()]) <= 1


def _undilated(node: ir.Node) -> bool:
    """onnxruntime makes an invalid model of a dilated average between codes."""
    return set(attribute(node, "dilations", (1,))) == {1}


def _misfused(node: ir.Node) -> bool:
    return not _undilated(node)


def _read_work(node: ir.Node, shapes: Shapes, _: Target) -> Work:
    """By elements of what it reads."""
    x = node.inputs[0]
    return Work(node.op_type, (math.prod(shapes.get((x.name if x is not None else "") or "", _out(node, shapes))),))


def _out(node: ir.Node, shapes: Shapes) -> tuple[int, ...]:
    return shapes[node.outputs[0].name or ""]


OPERATORS = (
    Operator(
        # 3 x 3: 27 times slower than float in the ordinary layout.
        "MaxPool",
        role=Role.MOVES,
        kind="integer movement",
        kernels=("MaxPool", "NhwcMaxPool"),
        fits=_one_output,
        layout=Layout.NEEDS,
        blocks=Blocks.STARTS,
        propagates=True,
        homogeneous=Homogeneous.CHANNELS,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "GlobalAveragePool",
        role=Role.FOLLOWER,
        kernels=("QLinearGlobalAveragePool",),
        takes_activation=True,
        blocks=Blocks.STARTS,
        work=_read_work,
        homogeneous=Homogeneous.CHANNELS,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "AveragePool",
        role=Role.FOLLOWER,
        kernels=("QLinearAveragePool",),
        fast_on=frozenset(),  # 7 to 11 times slower than float on x86; elsewhere not measured
        fits=_undilated,
        breaks_between_integers=_misfused,
        takes_activation=True,
        layout=Layout.KEEPS,
        blocks=Blocks.STARTS,
        homogeneous=Homogeneous.CHANNELS,
        gradient=Gradient.SMOOTH,
    ),
    Operator("NhwcMaxPool", domains=(MICROSOFT,), kind="integer movement"),
    Operator("GlobalMaxPool", homogeneous=Homogeneous.CHANNELS),
    *(Operator(name, gradient=Gradient.SMOOTH) for name in ("ReduceMean", "ReduceSum", "ReduceL2")),
    *(Operator(name, kind="integer movement") for name in ("ReduceMax", "ReduceMin")),
    Operator("ArgMax", kind="integer movement", gradient=Gradient.FLAT),
)
