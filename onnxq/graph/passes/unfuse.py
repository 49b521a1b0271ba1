"""What onnxruntime's optimizers fused, spelled out again where an integer kernel waits inside.

    FusedConv, FusedGemm             Conv (and Add), Gemm; the activation behind
    FusedMatMul                      MatMul with a constant that holds transposition and factor
    Attention                        three MatMul with bias and MultiHeadAttention
    EmbedLayerNormalization          rows of tables added up, LayerNormalization
    SkipLayerNormalization           Add, LayerNormalization
    BiasGelu, FastGelu with a bias   Add, Gelu or FastGelu

Models come out of these optimizers with their weights inside of operators that only compute in float: a BERT keeps a
quarter of its products there, and its largest table. The last two hold none, but their kernels are slower than their
parts (``emit.sums``), and the bias of a GELU goes into the integer product. The numbers stay the same within rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import (
    Array,
    constant,
    float_constant,
    integer,
    integers,
    label,
    number,
    owner,
    rank,
    static_shape,
    supersede,
    text,
)
from onnxq.graph.nodes import Before, NodeBuilder

_DOMAIN = "com.microsoft"
# Activations by what their parameters are called, in the order in which the fused operators list them.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
    "Elu": ("alpha",),
    "Selu": ("alpha", "gamma"),
    "ThresholdedRelu": ("alpha",),
    "Softplus": (),
    "Softsign": (),
    "HardSwish": (),
}


def unfuse(model: ir.Model) -> int:
    """Spells out the fused operators that hold constant weights; returns how many."""
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if node.domain == _DOMAIN and (spell := _SPELLED.get(node.op_type)) is not None:
                count += spell(node)
    return count


class _Spelling:
    """Makes the nodes that take the place of one, in front of it; each is called after that one."""

    def __init__(self, old: ir.Node) -> None:
        self.old, self.name, self._build = old, label(old), NodeBuilder(Before(old))

    def __call__(self, op: str, *inputs: ir.Value | None, part: str, domain: str = "", **attributes: Any) -> ir.Value:
        return self._build(op, inputs, name=f"{self.name}_{part}", domain=domain, **attributes)

    def constant(self, data: Array, part: str) -> ir.Value:
        return self._build.constant(data, f"{self.name}_{part}")

    def done(self, *results: ir.Value | None) -> bool:
        """Puts ``results`` in the place of the outputs."""
        for old, new in zip(self.old.outputs, results, strict=False):
            if new is not None:
                new.type, new.shape = old.type, old.shape
                supersede(old, new)
        owner(self.old).remove(self.old, safe=True)
        return True


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _written(node: ir.Node, index: int) -> bool:
    """Whether anything reads output ``index``."""
    if index >= len(node.outputs):
        return False
    output = node.outputs[index]
    return bool(output.uses()) or output.is_graph_output()


def _activated(spelling: _Spelling, x: ir.Value, activation: str, parameters: Sequence[float]) -> ir.Value:
    if activation == "Clip":
        ends = [spelling.constant(np.float32(end), part) for end, part in zip(parameters, ("low", "high"), strict=True)]
        return spelling("Clip", x, *ends, part="activation")
    attributes: dict[str, Any] = dict(zip(_ACTIVATIONS[activation], map(float, parameters), strict=True))
    return spelling(activation, x, part="activation", **attributes)


def _attributes(node: ir.Node, *names: str) -> dict[str, Any]:
    return {name: node.attributes[name].value for name in names if name in node.attributes}


def _parameters(node: ir.Node, activation: str) -> list[float] | None:
    """Those of the activation; None for one that is not known."""
    names = _ACTIVATIONS.get(activation)
    if names is None:
        return None
    listed = node.attributes.get("activation_params")
    found = [] if listed is None else list(listed.as_floats())
    if not found:  # FusedGemm and older files have them one by one
        found = [number(node, f"activation_{n}", np.nan) for n in names]
    return found if len(found) == len(names) and np.isfinite(found).all() else None


def _convolution(node: ir.Node) -> bool:
    """``FusedConv(x, w, b, z) = activation(Conv(x, w, b) + z)``."""
    own = _attributes(node, "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    return _with_activation(node, "Conv", own, addend=_input(node, 3))


def _gemm(node: ir.Node) -> bool:
    return _with_activation(node, "Gemm", _attributes(node, "alpha", "beta", "transA", "transB"))


def _with_activation(node: ir.Node, op: str, own: dict[str, Any], addend: ir.Value | None = None) -> bool:
    """``op`` of the first three inputs, ``addend`` on top, and the activation."""
    activation = text(node, "activation", "")
    parameters = _parameters(node, activation) if activation else []
    if parameters is None:
        return False
    spelling = _Spelling(node)
    y = spelling(op, *node.inputs[:3], part=op.lower(), **own)
    if addend is not None:
        y = spelling("Add", y, addend, part="sum")
    return spelling.done(_activated(spelling, y, activation, parameters) if activation else y)


def _matmul(node: ir.Node) -> bool:
    weight = float_constant(_input(node, 1))
    mixed = integer(node, "transA", 0) or integer(node, "transBatchA", 0) or integer(node, "transBatchB", 0)
    if weight is None or weight.ndim != 2 or mixed:
        return False
    spelling = _Spelling(node)
    right = weight.T if integer(node, "transB", 0) else weight
    scaled = (right * number(node, "alpha", 1.0)).astype(weight.dtype)
    return spelling.done(spelling("MatMul", node.inputs[0], spelling.constant(scaled, "weight"), part="matmul"))


def _attention(node: ir.Node) -> bool:
    """``Attention(x, [W_q W_k W_v], b, mask, -, bias of scores)``, without a past; masks of keys or none."""
    x, weight, bias, mask = (_input(node, i) for i in range(4))
    matrix, offsets = float_constant(weight), float_constant(bias)
    past = _input(node, 4) is not None or _input(node, 6) is not None or _written(node, 1)
    if x is None or matrix is None or (bias is not None and offsets is None) or past:
        return False
    if (mask is not None and rank(mask) != 2 and not _counts_keys(mask)) or integer(node, "do_rotary", 0):
        return False
    sizes = integers(node, "qkv_hidden_sizes") or (matrix.shape[1] // 3,) * 3
    if len(sizes) != 3 or sum(sizes) != matrix.shape[1] or sizes[0] != sizes[1]:
        return False
    spelling, ends = _Spelling(node), np.cumsum([0, *sizes])
    parts = []
    for name, low, high in zip(("query", "key", "value"), ends[:-1], ends[1:], strict=True):
        y = spelling("MatMul", x, spelling.constant(matrix[:, low:high], f"{name}_weight"), part=name)
        if offsets is not None:
            y = spelling("Add", y, spelling.constant(offsets[low:high], f"{name}_bias"), part=f"{name}_biased")
        parts.append(y)
    inputs = [*parts, None, mask, _input(node, 5)]
    while inputs[-1] is None:
        inputs.pop()
    own = _attributes(node, "num_heads", "unidirectional", "scale", "mask_filter_value")
    return spelling.done(spelling("MultiHeadAttention", *inputs, part="heads", domain=_DOMAIN, **own))


# Set on the value that this pass makes to hold the number of keys of each sample.
_COUNTS_KEYS = "onnxq.counts_keys"


def _counts_keys(mask: ir.Value) -> bool:
    """Whether ``mask`` holds the number of keys of each sample, and not one of the other things of rank 1."""
    return _COUNTS_KEYS in mask.meta


def _normalised(spelling: _Spelling, x: ir.Value, *parameters: ir.Value | None) -> ir.Value:
    epsilon = number(spelling.old, "epsilon", 1e-12)
    return spelling("LayerNormalization", x, *parameters, part="norm", axis=-1, epsilon=epsilon)


def _skip(node: ir.Node) -> bool:
    """``SkipLayerNormalization(x, skip, gamma, beta, bias)``; its fourth output is the sum."""
    x, skip, gamma, beta, bias = (_input(node, i) for i in range(5))
    if gamma is None or _written(node, 1) or _written(node, 2):
        return False
    spelling = _Spelling(node)
    if bias is not None:
        x = spelling("Add", x, bias, part="biased")
    total = spelling("Add", x, skip, part="sum")
    results = [_normalised(spelling, total, gamma, *([] if beta is None else [beta]))]
    return spelling.done(*results, None, None, total) if _written(node, 3) else spelling.done(*results)


def _gelu(node: ir.Node) -> bool:
    bias = _input(node, 1)
    if bias is None:
        return False
    spelling = _Spelling(node)
    x = spelling("Add", node.inputs[0], bias, part="biased")
    op = "Gelu" if node.op_type == "BiasGelu" else node.op_type
    return spelling.done(spelling(op, x, part="gelu", domain=_DOMAIN))


def _embedding(node: ir.Node) -> bool:
    """``EmbedLayerNormalization(ids, segments, word, position, segment, gamma, beta, mask, positions)``.

    Its second output is how many entries of each row of the mask are 1.
    """
    ids, segments, word, position, segment, gamma, beta, mask, positions = (_input(node, i) for i in range(9))
    table = None if word is None else constant(word)
    counted = _written(node, 1)
    if ids is None or position is None or table is None or (counted and mask is None) or _written(node, 2):
        return False
    shape = static_shape(position)
    if gamma is None or beta is None or shape is None or (segments is None) != (segment is None):
        return False
    spelling = _Spelling(node)
    x = spelling("Gather", word, ids, part="words")
    if positions is None:
        length = spelling("Shape", ids, part="shape")
        last = spelling("Gather", length, spelling.constant(np.array([1], np.int64), "axis"), part="length")
        first = spelling.constant(np.array([0], np.int64), "first")
        places = spelling("Slice", position, first, last, first, part="places")
    else:
        places = spelling("Gather", position, positions, part="places")
    if segments is not None:
        x = spelling("Add", x, places, part="placed")
        places = spelling("Gather", segment, segments, part="segments")
    y = _normalised(spelling, spelling("Add", x, places, part="sum"), gamma, beta)
    if not counted:
        return spelling.done(y)
    ones = spelling("Equal", mask, spelling.constant(np.array(1, np.int32), "one"), part="kept")
    ones = spelling("Cast", ones, part="kept_numbers", to=int(ir.DataType.INT32))
    axis = spelling.constant(np.array([1], np.int64), "row")
    count = spelling("ReduceSum", ones, axis, part="keys", keepdims=0)
    count.meta[_COUNTS_KEYS] = True
    return spelling.done(y, count)


_SPELLED = {
    "FusedConv": _convolution,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Attention": _attention,
    "EmbedLayerNormalization": _embedding,
    "SkipLayerNormalization": _skip,
    "BiasGelu": _gelu,
    "FastGelu": _gelu,
}
