"""The constants of a plan: weights and how they are stored, biases, operands of elementwise nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxq.kernels import ops
from onnxq.kernels.held import held, turned
from onnxq.kernels.operators import operator
from onnxq.kernels.targets import Target
from onnxq.numerics import UINT4, Granularity, PerAxis, PerBlock
from onnxq.plan.reasons import ReasonCode
from onnxq.plan.types import Bias, Constant, KeptFloat, Point, Storage, Weight
from onnxq.plan.units import bias_add, fused_output, maker_of
from onnxq.query import constant, is_float, nodes
from onnxq.weights import NBits, WeightFormat, for_rows, weight_format

# Symmetric codes reach from -127 to 127 at most: one lower they still fit.
_SHIFT = -1

# The input of a recurrent node that is multiplied with what it reads, and not with its states.
_OF_INPUTS = 1
# With fewer inputs the scales of each matrix of a stack take as much as their codes.
_STACKED_INPUTS = 8


def fused_products(anchors: Mapping[str, ir.Node], points: Sequence[Point]) -> frozenset[str]:
    """The MatMuls that become MatMulIntegerToFloat in the file.

    Left to itself, onnxruntime makes one of MatMul between quantizers too, but never takes the bias into it: an Add
    over the whole output remains, up to a fifth of the time of the product. Where all readers want integers,
    QLinearMatMul or QGemm writes them at once and is better still; QGemm, which a bias needs, takes matrices only.
    """
    everywhere = {p.tensor for p in points if p.consumers is None}
    found = set()
    for name, node in anchors.items():
        out = node.outputs[0]
        biased = bias_add(node) is not None
        writes_codes = fused_output(node).name in everywhere
        is_matrix = out.shape is not None and len(out.shape) == 2
        if operator(node).kernel_to_float is not None and not (writes_codes and (is_matrix or not biased)):
            found.add(name)
    return frozenset(found)


def anchor_weights(
    node: ir.Node,
    target: Target,
    stored: WeightFormat,
    fused: Collection[str],
    force_gemm: Collection[str],
    chosen: Collection[str],
) -> list[Weight]:
    """The weight of ``node`` on integers; ``fused``, ``force_gemm``, ``chosen``: names, the last of all on integers."""
    slot = ops.weight_slot(node)
    assert slot is not None
    value = held(node.inputs[slot.index])
    assert value is not None
    weight = constant(value)
    assert weight is not None
    granularity = PerAxis(slot.axis % len(weight.shape))
    storage = Storage.FUSED if node.name in fused else Storage.INTEGER
    shift = _SHIFT if node.name in force_gemm and operator(node).direct else 0
    name, of = node.name or "", value.name or ""
    padded = 0 if shift else _padded_input_channels(node, target, chosen)
    across = turned(node.inputs[slot.index])
    return [Weight(of, name, slot.index, target.weights, granularity, storage, stored.folded, shift, padded, across)]


def _padded_input_channels(node: ir.Node, target: Target, chosen: Collection[str]) -> int:
    """``ops.padded_input_channels`` where ``node`` reads what is quantized for it: other codes are laid out already."""
    source = None if node.inputs[0] is None else maker_of(node.inputs[0])
    quantized_here = source is None or (source.name or "") not in chosen
    return ops.padded_input_channels(node, target) if quantized_here and target.direct_convolution else 0


def biases(node: ir.Node) -> list[Bias]:
    slot = ops.weight_slot(node)
    assert slot is not None
    source = node.inputs[0]
    assert source is not None
    add = bias_add(node)
    if add is not None:
        value = add[0].inputs[add[1]]
        assert value is not None
        return [Bias(value.name or "", add[0].name or "", add[1], source.name or "", node.name or "")]
    if slot.bias is None or len(node.inputs) <= slot.bias or node.inputs[slot.bias] is None:
        return []
    value = node.inputs[slot.bias]
    assert value is not None
    return [Bias(value.name or "", node.name or "", slot.bias, source.name or "", node.name or "")]


def operands(node: ir.Node, target: Target) -> list[Constant]:
    if not ops.constants_allowed(node):
        return []
    found = []
    for index in ops.data_inputs(node):
        value = node.inputs[index]
        if value is not None and constant(value) is not None:
            found.append(Constant(value.name or "", node.name or "", index, target.activations))
    return found


def stored_weights(
    model: ir.Model,
    anchors: Mapping[str, ir.Node],
    refused: Mapping[str, KeptFloat],
    target: Target,
    formats: Mapping[str, WeightFormat],
    *,
    own_operators: bool,
    recurrences: bool,
) -> list[Weight]:
    """Weights that need no ranges of activations: of float nodes, stored as integers all the same, and of LSTM.

    ``own_operators``: whether nodes that only onnxruntime knows may be used (MatMulNBits); ``recurrences``: whether
    LSTM shall run in such a one.
    """
    found: list[Weight] = []

    def stored_as(name: str) -> WeightFormat:
        return formats.get(name, weight_format("int8"))

    for node in nodes(model):
        name = node.name or ""
        if name in anchors or node.domain or (name in refused and refused[name].weight is None):
            continue
        linear = ops.weight_slot(node) is not None
        for index, axes in _stored_slots(node).items():
            value = held(node.inputs[index]) if index < len(node.inputs) else None
            weight = constant(value)
            if value is None or weight is None or not is_float(value) or weight.size < ops.STORED_MINIMUM:
                continue
            storage = Storage.PACKED
            if operator(node).gathered:
                storage = Storage.GATHERED
            elif recurrences and not linear and ops.can_be_dynamic(node, target):
                wish = refused[name].weight if name in refused else Storage.DYNAMIC
                storage = Storage.PACKED if wish is Storage.PACKED else Storage.DYNAMIC
                if wish is Storage.TWO_PARTS and index == _OF_INPUTS and not for_rows(stored_as(name)).packed:
                    storage = Storage.TWO_PARTS  # states are at most 1
            elif linear and name in refused and ops.can_be_dynamic(node, target):
                wish = refused[name].weight
                in_kernel = formats[name].in_kernel if name in formats else None
                if wish is Storage.BLOCKS and own_operators and in_kernel is not None:
                    found.append(_in_blocks(node, value.name or "", NBits(in_kernel)))
                    continue
                # Where 4 bits are too few, a kernel that measures its input at run time is the fast one.
                if wish is Storage.DYNAMIC or (wish is Storage.BLOCKS and own_operators):
                    storage = Storage.DYNAMIC
                if wish is Storage.TWO_PARTS and own_operators:
                    storage = Storage.TWO_PARTS
            if storage is Storage.PACKED and index == _OF_INPUTS and not linear and _equalized(node, refused):
                continue  # factors for what it reads are in it: a scale for each row of gates would be too coarse
            shape = tuple(weight.shape.numpy())
            granularity = _channels(shape, axes[0]) if linear else _row_granularity(shape, axes)
            stored = stored_as(name)
            stored = stored.folded if linear else for_rows(stored)
            kept = Weight(value.name or "", name, index, target.weights, granularity, storage, stored)
            found.append(replace(kept, turned=turned(node.inputs[index])))
    return found


def _equalized(node: ir.Node, refused: Mapping[str, KeptFloat]) -> bool:
    """Whether ``node`` reads what was multiplied by factors for it alone, and ``refused`` says so."""
    source = node.inputs[0]
    maker = None if source is None else source.producer()
    kept = None if maker is None else refused.get(maker.name or "")
    return kept is not None and kept.code is ReasonCode.EQUALIZES


def _in_blocks(node: ir.Node, tensor: str, stored: NBits) -> Weight:
    """The weight of a linear layer for MatMulNBits: blocks along its inputs."""
    slot = ops.weight_slot(node)
    assert slot is not None
    granularity = PerBlock(1 if slot.axis in (0, -2) else 0, stored.block)
    across = turned(node.inputs[slot.index])
    return Weight(tensor, node.name or "", slot.index, UINT4, granularity, Storage.BLOCKS, stored, turned=across)


def _stored_slots(node: ir.Node) -> Mapping[int, tuple[int, ...]]:
    """The inputs of a float node whose weight may be stored as int8, and the axes that have one scale each."""
    slot = ops.weight_slot(node)
    if slot is not None:
        weight = constant(held(node.inputs[slot.index]))
        return {} if weight is None or len(weight.shape) < 2 else {slot.index: (slot.axis % len(weight.shape),)}
    return ops.stored_slots(node)


def _channels(shape: tuple[int, ...], axis: int) -> Granularity:
    """One scale for every output channel, on ``axis``; of a stack of matrices, whose last axes they are, for each's."""
    inner = 2 * len(shape) - 3 - axis  # the other one of the last two axes
    stacked = len(shape) > 2 and inner < len(shape)
    return PerBlock(inner, shape[inner]) if stacked and shape[inner] >= _STACKED_INPUTS else PerAxis(axis)


def _row_granularity(shape: tuple[int, ...], axes: tuple[int, ...]) -> Granularity:
    """One scale for every index of ``axes``: the leading axes of a matrix-like weight, or a single axis."""
    if axes == tuple(range(len(shape) - 1)):
        return PerBlock(len(shape) - 1, shape[-1])
    return PerAxis(axes[0])
