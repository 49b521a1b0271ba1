"""What a model is made of: the float types it stores and computes in, and whether somebody has quantized it already."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.copying import all_graphs, all_nodes, called
from onnxq.graph.widened import LARGE, NARROW, OTHER
from onnxq.kernels.operators import named

# Where onnxq writes into a file what it made of the model: JSON with versions, choices, ``float``, nodes by reason, and
# ``equalized``, factors of channels by tensor (``equalize.Equalized.steps``).
METADATA_KEY = "onnxq"


def quantized_ops(model: ir.Model) -> dict[str, int]:
    """How often each quantization operator occurs in ``model``, bodies and functions included; empty: a float model."""
    counts = Counter(node.op_type for node in all_nodes(model) if named(node.op_type).quantized)
    return dict(sorted(counts.items()))


def require_not_quantized(model: ir.Model) -> None:
    """Nothing; raises ModelError when somebody has quantized ``model`` already."""
    quantized = quantized_ops(model)
    if quantized:
        found = ", ".join(f"{count} {op}" for op, count in quantized.items())
        raise ModelError(
            f"{called(model)} is already quantized ({found})", hint="give the float model that it was made from"
        )


# Where onnxruntime's optimizers put operators over layouts of this machine's kernels, which no other file has.
_LAYOUTS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")


def require_plain_layouts(model: ir.Model) -> None:
    """Nothing; raises ModelError where onnxruntime saved ``model`` in the layouts of its kernels."""
    for node in all_nodes(model):
        if node.domain in _LAYOUTS:
            raise ModelError(
                f"{called(model)} was saved by onnxruntime after it optimized it for this kind of machine: "
                f"{node.domain}:{node.op_type} {node.name!r} reads layouts of onnxruntime's own",
                hint="give the model as it was before onnxruntime optimized it",
            )


def mostly_stored_in(model: ir.Model) -> ir.DataType | None:
    """The half-precision type of more than half of what ``model`` has in large float constants; None: there is none."""
    count: Counter[ir.DataType] = Counter()
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype.is_floating_point() and tensor.nbytes >= LARGE:
                count[tensor.dtype] += tensor.size
    return next((kind for kind in NARROW if 2 * count[kind] > count.total()), None)


def other_floats(model: ir.Model) -> frozenset[ir.DataType]:
    """The types of floats, float32 aside, of the constants, inputs and outputs of ``model``."""
    kinds: set[ir.DataType | None] = set()
    for graph in all_graphs(model):
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            kinds.add(value.dtype if value.const_value is None else value.const_value.dtype)
    for node in all_nodes(model):
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
            kinds.add(attribute.value.dtype)
    return frozenset(kind for kind in kinds if kind in OTHER)
