"""Operators that work number by number, and those that normalise rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.kernels.costs import Shapes, Work
from onnxq.kernels.record import (
    BOTH,
    MICROSOFT,
    Arithmetic,
    Blocks,
    Gradient,
    Homogeneous,
    Layout,
    Operator,
    Role,
)
from onnxq.kernels.sizes import elements
from onnxq.kernels.targets import Target
from onnxq.query import attribute, constant

if TYPE_CHECKING:
    import onnx_ir as ir


def _clip_ceiling(node: ir.Node) -> float | None:
    """The upper end of a Clip from 0; ``inf`` where it has none."""
    if len(node.inputs) < 2:
        return None
    low = constant(node.inputs[1])
    high = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if low is None or low.size != 1 or float(low.numpy().item()) != 0.0:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and high is None:
        return None
    if high is None:
        return float("inf")
    if high.size != 1:
        return None
    ceiling = float(high.numpy().item())
    return ceiling if ceiling > 0.0 else None  # no scale fits an empty range


def _line(node: ir.Node) -> tuple[float, float]:
    return float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))


def _rises(node: ir.Node) -> bool:
    return _line(node)[0] > 0.0  # it becomes a scale


def _gate_work(node: ir.Node, shapes: Shapes, _: Target) -> Work | None:
    """On integers a HardSigmoid is an Add; in float it costs no less than one."""
    count = elements(node.outputs[0], shapes)
    return None if count is None else Work("Add", (count,))


def _makers(node: ir.Node) -> list[ir.Node | None]:
    return [v.producer() if v is not None else None for v in node.inputs]


def _sum_behind_convolution(node: ir.Node) -> bool:
    """Whether a float convolution takes the sum ``node`` in."""
    return any(
        m is not None and m.op_type == "Conv" and not m.domain and len(list(m.outputs[0].uses())) == 1
        for m in _makers(node)
    )


def _silu(node: ir.Node) -> bool:
    """Whether ``node`` is ``x * sigmoid(x)``, which has a float kernel."""
    return len(node.inputs) == 2 and any(
        m is not None and m.op_type == "Sigmoid" and not m.domain and m.inputs[0] is other
        for m, other in zip(_makers(node), reversed(node.inputs), strict=True)
    )


def _of_two(name: str, arithmetic: Arithmetic, **own: object) -> Operator:
    return Operator(
        name,
        role=Role.FOLLOWER,
        kernels=(f"QLinear{name}",),
        data=None,
        constants=True,
        broadcasts=True,
        takes_activation=True,
        arithmetic=arithmetic,
        layout=Layout.KEEPS,
        blocks=Blocks.KEEPS,
        gradient=Gradient.SMOOTH,
        **own,  # type: ignore[arg-type]
    )


OPERATORS = (
    _of_two("Add", Arithmetic.SUM, fused_in_float=_sum_behind_convolution),
    _of_two("Mul", Arithmetic.PRODUCT, fused_in_float=_silu),
    Operator(
        "Where",
        role=Role.FOLLOWER,
        kernels=("QLinearWhere",),
        fast_on=frozenset(),  # not measured yet
        data=(1, 2),
        constants=True,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "Sigmoid",
        role=Role.FOLLOWER,
        kernels=("QLinearSigmoid",),
        gate=True,
        layout=Layout.KEEPS,
        blocks=Blocks.KEEPS,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "HardSigmoid",  # spelled as a sum, or as a Clip of codes: emit/gates.py
        role=Role.FOLLOWER,
        kernels=("QLinearAdd", "Clip"),
        fits=_rises,
        ceiling=lambda _: 1.0,
        line=_line,
        gate=True,
        layout=Layout.KEEPS,
        work=_gate_work,
    ),
    Operator(
        "LeakyRelu",
        role=Role.FOLLOWER,
        kernels=("QLinearLeakyRelu",),
        layout=Layout.KEEPS,
        homogeneous=Homogeneous.NUMBERS,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "Softmax",
        role=Role.FOLLOWER,
        kernels=("QLinearSoftmax",),
        fast_on=frozenset(),  # four times slower than float on x86; elsewhere not measured
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "Relu",
        ceiling=lambda _: float("inf"),
        absorbed=True,
        free_in_float=True,
        blocks=Blocks.KEEPS,
        homogeneous=Homogeneous.NUMBERS,
        gradient=Gradient.SMOOTH,
    ),
    Operator("PRelu", homogeneous=Homogeneous.NUMBERS),
    Operator("Clip", ceiling=_clip_ceiling, absorbed=True, blocks=Blocks.KEEPS, gradient=Gradient.SMOOTH),
    Operator(
        "LayerNormalization", channel_inputs=(1, 2), gradient=Gradient.SMOOTH, gradient_outputs=("mean", "inverse")
    ),
    *(
        Operator(name, gradient=Gradient.SMOOTH)
        for name in (
            "Sub",
            "Div",
            "Pow",
            "Min",
            "Max",
            "Tanh",
            "Erf",
            "Exp",
            "Log",
            "Sqrt",
            "Neg",
            "Abs",
            "Reciprocal",
            "Sin",
            "Cos",
            "LogSoftmax",
            "BatchNormalization",
            "Cast",
            "Dropout",
        )
    ),
    Operator("Gelu", domains=BOTH, gradient=Gradient.SMOOTH),
    Operator("Trilu", domains=BOTH, gradient=Gradient.SMOOTH),
    Operator("QuickGelu", domains=(MICROSOFT,), gradient=Gradient.SMOOTH),
    Operator("FakeQuant", domains=(MICROSOFT,), gradient=Gradient.SMOOTH),
    *(
        Operator(name, gradient=Gradient.FLAT)
        for name in (
            "Size",
            "ArgMin",
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "Not",
            "And",
            "Or",
            "Xor",
            "IsNaN",
            "IsInf",
            "NonZero",
            "ConstantOfShape",
            "Range",
            "Sign",
            "Shape",
        )
    ),
)
