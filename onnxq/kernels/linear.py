"""Operators that multiply by weights: convolutions and matrix products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxq.kernels.costs import Shapes, Work
from onnxq.kernels.held import held, turned
from onnxq.kernels.record import (
    BOTH,
    MICROSOFT,
    Blocks,
    Gradient,
    Layout,
    Operator,
    Role,
    WeightSlot,
)
from onnxq.kernels.targets import Target
from onnxq.query import attribute, constant, is_float

if TYPE_CHECKING:
    import onnx_ir as ir

# How many nodes in front of a weight are looked at.
_MOST_MAKERS = 16


def _conv_slot(_: ir.Node) -> WeightSlot:
    return WeightSlot(1, 0, 2)


def _misshapen(node: ir.Node) -> tuple[tuple[int, ...], ...]:
    """That of the weight of a convolution: it has two axes of channels, and behind them those of ``kernel_shape``."""
    tensor = None if node.inputs[1] is None else node.inputs[1].const_value
    if tensor is None:
        return ()
    shape, size = tuple(tensor.shape.numpy()), attribute(node, "kernel_shape", None)
    wrong = len(shape) < 3 or (size is not None and tuple(size) != shape[2:])
    return (shape,) if wrong else ()


def _matmul_slot(node: ir.Node) -> WeightSlot:
    return WeightSlot(1, -2 if turned(node.inputs[1]) else -1, None)


def _gemm_slot(node: ir.Node) -> WeightSlot:
    return WeightSlot(1, 0 if bool(attribute(node, "transB", 0)) != turned(node.inputs[1]) else 1, 2)


def _weight(node: ir.Node) -> ir.TensorProtocol | None:
    """The constant that ``node`` multiplies by, as it is held."""
    return constant(held(node.inputs[1]))


def _weight_obstacle(node: ir.Node) -> str | None:
    """Why no integer kernel takes the weight of ``node``, whatever its operator."""
    x, weight = node.inputs[0], _weight(node)
    if x is None or not is_float(node.inputs[1]):
        return "its weight is not float32"
    if weight is None:
        if constant(x) is not None:
            return "its constant is on the left, where no integer kernel takes weights"
        if _is_made_of_constants(node.inputs[1]):
            return "its weight is computed, from constants alone, and not folded: it would be much larger than those"
        return "it multiplies two activations: that integer kernel is no faster than float on x86"
    return "all its inputs are constants" if constant(x) is not None else None


def _is_made_of_constants(value: ir.Value | None) -> bool:
    """Whether ``value`` hangs on no input of the model, as far as a few nodes tell: exporters need no more for that."""
    pending, seen = [value], 0
    while pending:
        one = pending.pop()
        if one is None or constant(one) is not None:
            continue
        maker, seen = one.producer(), seen + 1
        if maker is None or seen > _MOST_MAKERS:
            return False
        pending += maker.inputs
    return True


def _no_matrix(weight: ir.TensorProtocol) -> str | None:
    if len(weight.shape) != 2:
        return f"its weight has rank {len(weight.shape)}; integer kernels take matrices"
    return _empty(weight)


def _empty(weight: ir.TensorProtocol) -> str | None:
    return "its weight is empty" if weight.size == 0 else None


def _bias_obstacle(node: ir.Node, weight: ir.TensorProtocol, axis: int) -> str | None:
    """Why no integer kernel takes the bias of ``node``, its input 2; ``axis``: of output channels."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    bias = constant(node.inputs[2])
    if bias is None:
        return "its bias is computed"
    # A column of Gemm's C, [M, 1], would have the right size and be one entry for each row.
    if bias.size != weight.shape[axis] or (bias.size > 1 and bias.shape[-1] != bias.size):
        return f"its bias has shape {list(bias.shape)}, not one entry for each output channel"
    return None


def _conv_obstacle(node: ir.Node) -> str | None:
    weight = _weight(node)
    found = _weight_obstacle(node)
    if found is not None or weight is None:
        return found
    return _empty(weight) or _bias_obstacle(node, weight, _conv_slot(node).axis)


def _matmul_obstacle(node: ir.Node) -> str | None:
    x, weight = node.inputs[0], _weight(node)
    found = _weight_obstacle(node)
    if found is not None or weight is None:
        return found
    is_vector = x is not None and x.shape is not None and len(x.shape) < 2
    return _no_matrix(weight) or ("its input is a vector; integer kernels take matrices" if is_vector else None)


def _gemm_obstacle(node: ir.Node) -> str | None:
    weight = _weight(node)
    found = _weight_obstacle(node)
    if found is not None or weight is None:
        return found
    if (found := _no_matrix(weight)) is not None:
        return found
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return "alpha and beta are not 1"
    if attribute(node, "transA", 0):
        return "its input is transposed"
    return _bias_obstacle(node, weight, _gemm_slot(node).axis)


def direct(inputs: int, outputs: int, target: Target) -> bool:
    """Whether onnxruntime has a direct int8 kernel for a convolution without groups of so many channels."""
    plain = inputs % target.direct_inputs == 0 and outputs % target.direct_output_multiple == 0
    return plain and outputs >= target.direct_outputs


def padded_input_channels(conv: ir.Node, target: Target) -> int:
    """How many input channels of zeros let ``conv`` run in onnxruntime's direct int8 kernel; 0: none, or none needed.

    With AVX2 that takes output channels by eights. Patches that do not overlap are no more work as a matrix product.
    Measured with 1 and 3 channels, kernels of 3 and 7: ``emit/padded.py``.
    """
    weight = constant(conv.inputs[1])
    if weight is None or len(weight.shape) != 4 or attribute(conv, "group", 1) != 1:
        return 0
    outputs, inputs, *kernel = (int(d) for d in weight.shape.numpy())
    strides = attribute(conv, "strides", [1, 1])
    overlap = all(k > s for k, s in zip(kernel, strides, strict=True)) and max(kernel) <= target.padded_kernel
    wide = target.direct_inputs
    fits = 0 < inputs < wide and outputs % target.padded_output_multiple == 0 and direct(wide, outputs, target)
    return wide - inputs if overlap and fits else 0


def _conv_work(node: ir.Node, shapes: Shapes, target: Target) -> Work | None:
    out, weight = shapes[node.outputs[0].name or ""], constant(node.inputs[1])
    if weight is None or len(out) < 3:
        return None
    channels, inner, *kernel = (int(d) for d in weight.shape.numpy())
    area, pixels = math.prod(kernel), out[0] * math.prod(out[2:])
    group = int(attribute(node, "group", 1))
    if group > 1 and inner == 1:
        return Work("conv.depthwise", (channels, area, pixels), direct=channels % target.depthwise_multiple == 0)
    if group > 1:
        return Work("conv.grouped", (inner * area, channels, pixels))
    if padded := padded_input_channels(node, target):
        wide = ("conv.spatial", ((inner + padded) * area, channels, pixels))
        otherwise = Work("conv.few", (inner * area, channels, pixels), integer=(wide,))
        return Work("conv.widened", (inner, area, channels, pixels), otherwise=otherwise)
    if inner < target.direct_inputs:
        return Work("conv.few", (inner * area, channels, pixels))
    kernel_name = "conv.pointwise" if area == 1 else "conv.spatial"
    return Work(kernel_name, (inner * area, channels, pixels), direct(inner, channels, target))


def _product_work(node: ir.Node, shapes: Shapes, _: Target) -> Work | None:
    out, weight = shapes[node.outputs[0].name or ""], _weight(node)
    if weight is None or len(out) < 1:
        return None
    columns = out[-1]
    return Work("matmul", (math.prod(out) / max(1, columns), weight.size / max(1, columns), columns))


def _transposed_conv_weight(_: ir.Node) -> Mapping[int, tuple[int, ...]]:
    return {1: (1,)}


def _conv_channels(node: ir.Node, weight: tuple[int, ...]) -> tuple[int, int]:
    return 1, weight[1] * int(attribute(node, "group", 1))


def _transposed_conv_channels(_: ir.Node, weight: tuple[int, ...]) -> tuple[int, int]:
    return 1, weight[0]


def _product_channels(node: ir.Node, weight: tuple[int, ...]) -> tuple[int, int] | None:
    """Where onnxruntime makes a Gemm of a product and the sum behind it, before it looks for weights to round."""
    x, uses = node.inputs[0], tuple(node.outputs[0].uses())
    summed = len(uses) == 1 and uses[0].node.op_type == "Add"
    if not summed or x is None or x.shape is None or not len(x.shape):
        return None
    inputs = x.shape[-1]
    return len(x.shape) - 1, inputs if isinstance(inputs, int) else weight[0]


def _gemm_channels(node: ir.Node, weight: tuple[int, ...]) -> tuple[int, int]:
    return 1 - int(attribute(node, "transA", 0)), weight[1 if attribute(node, "transB", 0) else 0]


OPERATORS = (
    Operator(
        "Conv",
        role=Role.ANCHOR,
        kind="float compute",
        slot=_conv_slot,
        obstacle=_conv_obstacle,
        misshapen=_misshapen,
        rounded_at_load=_conv_channels,
        direct=True,
        between_codes=True,
        kernels=("QLinearConv",),
        takes_activation=True,
        layout=Layout.STARTS,
        blocks=Blocks.STARTS,
        work=_conv_work,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "MatMul",
        role=Role.ANCHOR,
        kind="float compute",
        slot=_matmul_slot,
        obstacle=_matmul_obstacle,
        rounded_at_load=_product_channels,
        dynamic=lambda node, _: _matmul_obstacle(node) is None,
        kernel_to_float="MatMulIntegerToFloat",
        kernels=("QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"),
        takes_activation=True,
        work=_product_work,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "Gemm",
        role=Role.ANCHOR,
        kind="float compute",
        slot=_gemm_slot,
        obstacle=_gemm_obstacle,
        rounded_at_load=_gemm_channels,
        dynamic=lambda node, _: _gemm_obstacle(node) is None,
        kernels=("QGemm", "MatMulNBits"),
        takes_activation=True,
        work=_product_work,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "ConvTranspose",
        role=Role.STORED,
        kind="float compute",
        stored=_transposed_conv_weight,
        misshapen=_misshapen,
        rounded_at_load=_transposed_conv_channels,
    ),
    # What has no integer kernel, and what onnxruntime makes of the others in float.
    Operator("DeformConv", kind="float compute"),
    Operator("Einsum", kind="float compute", operands=2),
    *(
        Operator(name, domains=(MICROSOFT,), kind="float compute")
        for name in (
            "FusedConv",
            "NhwcFusedConv",
            "FusedGemm",
            "FusedMatMul",
            "FusedMatMulActivation",
            "MultiHeadAttention",
            "GroupQueryAttention",
            "DecoderMaskedMultiHeadAttention",
        )
    ),
    Operator("Attention", domains=BOTH, kind="float compute"),
)
