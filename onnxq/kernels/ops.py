"""What onnxruntime's CPU kernels can do with integers, as tables: the only place where operators are named.

Sources: onnxruntime's QDQ selectors (core/optimizer/qdq_transformer) and our own measurements of the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxq.query import attribute, constant, is_float, trailing_ones


@dataclass(frozen=True)
class WeightSlot:
    """Where an operator with weights keeps them: input ``index``, output-channel axis ``axis``, bias input ``bias``."""

    index: int
    axis: int
    bias: int | None


def weight_slot(node: ir.Node) -> WeightSlot | None:
    """Where the weight of ``node`` lies, or None for an operator that has no integer kernel with weights."""
    if node.domain:
        return None
    if node.op_type == "Conv":
        return WeightSlot(1, 0, 2)
    if node.op_type == "MatMul":
        return WeightSlot(1, -1, None)
    if node.op_type == "Gemm":
        return WeightSlot(1, 0 if attribute(node, "transB", 0) else 1, 2)
    return None


def anchor_obstacle(node: ir.Node) -> str | None:
    """Why ``node``, which has a ``weight_slot``, cannot run in an integer kernel; None where it can."""
    slot = weight_slot(node)
    assert slot is not None
    x, weight = node.inputs[0], constant(node.inputs[slot.index])
    if x is None or not is_float(node.inputs[slot.index]):
        return "its weight is not float32"
    if weight is None:
        if constant(x) is not None:
            return "its constant is on the left, where no integer kernel takes weights"
        return "it multiplies two activations: that integer kernel is no faster than float on x86"
    if constant(x) is not None:
        return "all its inputs are constants"
    if node.op_type in ("MatMul", "Gemm") and len(weight.shape) != 2:
        return f"its weight has rank {len(weight.shape)}; integer kernels take matrices"
    if weight.size == 0:
        return "its weight is empty"
    if node.op_type == "MatMul" and x.shape is not None and len(x.shape) < 2:
        return "its input is a vector; integer kernels take matrices"
    if node.op_type == "Gemm":
        if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
            return "alpha and beta are not 1"
        if attribute(node, "transA", 0):
            return "its input is transposed"
    if slot.bias is not None and len(node.inputs) > slot.bias and node.inputs[slot.bias] is not None:
        bias = constant(node.inputs[slot.bias])
        if bias is None:
            return "its bias is computed"
        # A column of Gemm's C, [M, 1], would have the right size and be one entry for each row.
        if bias.size != weight.shape[slot.axis] or (bias.size > 1 and bias.shape[-1] != bias.size):
            return f"its bias has shape {list(bias.shape)}, not one entry for each output channel"
    return None


# Input channels that onnxruntime's direct int8 convolution takes at a time, and the fewest output channels.
DIRECT_INPUTS, _DIRECT_OUTPUTS = 4, 16

# Channels that onnxruntime's integer kernel for depthwise convolutions takes at a time.
DEPTHWISE_MULTIPLE = 16


def direct(inputs: int, outputs: int) -> bool:
    """Whether onnxruntime has a direct int8 kernel for a convolution without groups of so many channels."""
    return inputs % DIRECT_INPUTS == 0 and outputs % 4 == 0 and outputs >= _DIRECT_OUTPUTS


def padded_input_channels(conv: ir.Node) -> int:
    """How many input channels of zeros let ``conv`` run in onnxruntime's direct int8 kernel; 0: none, or none needed.

    With AVX2 that takes output channels by eights. Patches that do not overlap are no more work as a matrix product.
    Measured with 1 and 3 channels, kernels of 3 and 7: ``emit/padded.py``.
    """
    weight = constant(conv.inputs[1]) if not conv.domain and conv.op_type == "Conv" else None
    if weight is None or len(weight.shape) != 4 or attribute(conv, "group", 1) != 1:
        return 0
    outputs, inputs, *kernel = (int(d) for d in weight.shape.numpy())
    strides = attribute(conv, "strides", [1, 1])
    overlap = all(k > s for k, s in zip(kernel, strides, strict=True)) and max(kernel) <= _LARGEST_WIDENED
    fits = 0 < inputs < DIRECT_INPUTS and outputs % 8 == 0 and direct(DIRECT_INPUTS, outputs)
    return DIRECT_INPUTS - inputs if overlap and fits else 0


_LARGEST_WIDENED = 7


def can_be_dynamic(node: ir.Node) -> bool:
    """Whether ``node`` can measure the range of its input at every run: linear layers (MatMulInteger)."""
    return not node.domain and node.op_type in ("MatMul", "Gemm") and anchor_obstacle(node) is None


# From so many weights on, both matrices together, the integer LSTM was faster on all shapes that were measured (with
# VNNI): 64 units by a few percent, 128 by 1.6 times, 256 by 2.4, 512 by 7, whose float weights leave the cache; 32 are
# slower.
_RECURRENT_WEIGHTS = 48_000


def has_integer_recurrence(node: ir.Node) -> bool:
    """Whether ``node`` is an LSTM with a faster integer kernel (DynamicQuantizeLSTM): there is none for GRU and RNN."""
    if node.domain or node.op_type != "LSTM" or attribute(node, "layout", 0) or not is_float(node.inputs[0]):
        return False
    weights = [constant(v) for v in node.inputs[1:3] if is_float(v)]
    sizes = [w.size for w in weights if w is not None]
    return len(sizes) == 2 and sum(sizes) >= _RECURRENT_WEIGHTS


# Operators with an integer kernel that is not slower than the float one. What only moves data keeps the parameters of
# its input. AveragePool and Softmax have integer kernels that are slower than float: they are not here on purpose.
_POINTWISE = frozenset({"Add", "Mul", "Concat", "Sigmoid", "HardSigmoid", "LeakyRelu", "GlobalAveragePool"})
_MOVES_DATA = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "DepthToSpace", "Resize"}
)


def moves_data(node: ir.Node) -> bool:
    """Whether ``node`` copies values without changing them, so that output and input share parameters."""
    return not node.domain and node.op_type in _MOVES_DATA


def can_follow(node: ir.Node) -> bool:
    """Whether ``node``, which has no weights, has an integer kernel worth using between integer neighbours."""
    if node.domain or not node.outputs:
        return False
    if node.op_type == "Resize":
        mode = attribute(node, "mode", "nearest")
        crops = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
        return bool(mode == "nearest" and not crops)
    if node.op_type == "HardSigmoid" and not attribute(node, "alpha", 0.2) > 0:
        return False  # its slope becomes a scale
    if node.op_type == "MaxPool" and len([o for o in node.outputs if o.name and o.uses()]) > 1:
        return False
    return node.op_type in _POINTWISE or node.op_type in _MOVES_DATA


def wants_channels_last(node: ir.Node) -> bool:
    """Whether the integer kernel of ``node`` is slower than float outside the layout of integer convolutions.

    MaxPool 3 x 3: 27 times slower than float in the ordinary layout.
    """
    return not node.domain and node.op_type == "MaxPool"


def keeps_channels_last(node: ir.Node) -> bool:
    """Whether ``node`` takes the layout of integer convolutions on from what it reads to what it writes."""
    return not node.domain and (node.op_type in _POINTWISE - {"GlobalAveragePool"} or wants_channels_last(node))


def data_inputs(node: ir.Node) -> list[int]:
    """Indices of the inputs of a ``can_follow`` node that carry activations (not shapes, axes or indices)."""
    if node.op_type in ("Add", "Mul", "Concat"):
        return [i for i, v in enumerate(node.inputs) if v is not None]
    return [0]


def constants_allowed(node: ir.Node) -> bool:
    """Whether a constant operand may be quantized like an activation."""
    return node.op_type in ("Add", "Mul", "Concat")


def cheap_operand(node: ir.Node, value: ir.Value) -> bool:
    """Whether quantizing ``value`` for ``node`` costs next to nothing: a per-channel factor next to a map.

    That is the gate of squeeze-and-excite, ``[N, C, 1, 1]`` times ``[N, C, H, W]``.
    """
    return node.op_type in ("Add", "Mul") and trailing_ones(value, 2)


def quantizes_its_inputs(node: ir.Node) -> bool:
    """Whether ``node`` may quantize floats that it reads: a Concat has as many elements before as behind it.

    What is joined as 8-bit codes is a quarter of the bytes to move.
    """
    return not node.domain and node.op_type == "Concat"


def absorbed_ceiling(node: ir.Node) -> float | None:
    """The upper end of an activation function that a quantizer with zero point ``qmin`` replaces exactly.

    ``inf`` for Relu, ``max`` for Clip(0, max); None for everything else.
    """
    if node.domain:
        return None
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type == "Clip" and len(node.inputs) >= 2:
        low = constant(node.inputs[1])
        high = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if low is None or low.size != 1 or float(low.numpy().item()) != 0.0:
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None and high is None:
            return None
        if high is None:
            return float("inf")
        ceiling = float(high.numpy().item())
        return ceiling if ceiling > 0.0 else None  # no scale fits an empty range
    return None


def highest(node: ir.Node) -> float | None:
    """The end that codes of the output of ``node`` must not pass: then a quantizer is all that is left of clipping."""
    if not node.domain and node.op_type == "HardSigmoid":
        return 1.0
    return absorbed_ceiling(node)


# Operators that stay float but whose weights may be stored as int8: {op: {input index: axis that has one scale each}}.
# The file shrinks, the runtime expands the weight once when it loads the model.
STORED: dict[str, dict[int, tuple[int, ...]]] = {
    "LSTM": {1: (0, 1), 2: (0, 1)},
    "GRU": {1: (0, 1), 2: (0, 1)},
    "RNN": {1: (0, 1), 2: (0, 1)},
    "ConvTranspose": {1: (1,)},
}

# A weight below this many elements saves nothing worth the extra nodes.
STORED_MINIMUM = 1024
