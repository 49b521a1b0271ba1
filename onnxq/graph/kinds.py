"""What a model is made of: float types of its weights, and whether somebody has quantized it already."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.copying import all_graphs, all_nodes
from onnxq.kernels.operators import named

# Where onnxq writes into a file what it made of the model: JSON with versions, choices, ``float``, nodes by reason, and
# ``equalized``, factors of channels by tensor (``equalize.Equalized.steps``).
METADATA_KEY = "onnxq"

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def quantized_ops(model: ir.Model) -> dict[str, int]:
    """How often each quantization operator occurs in ``model``, bodies and functions included; empty: a float model."""
    counts = Counter(node.op_type for node in all_nodes(model) if named(node.op_type).quantized)
    return dict(sorted(counts.items()))


def float_kinds(model: ir.Model) -> dict[str, int]:
    """How many weight elements ``model`` has of each float type, as ``{"FLOAT": 1234, "FLOAT16": 5}``.

    Weights are initializers and the tensors of Constant nodes, in all graphs.
    """
    counts: Counter[str] = Counter()
    tensors = [v.const_value for graph in all_graphs(model) for v in graph.initializers.values()]
    for node in all_nodes(model):
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
            tensors.append(attribute.value)
    for tensor in tensors:
        if tensor is not None and tensor.dtype.is_floating_point():
            counts[tensor.dtype.name] += tensor.size
    return dict(sorted(counts.items()))


def require_float32(model: ir.Model) -> None:
    """Raises ModelError when ``model`` is quantized already, or keeps its weights in half or double precision."""
    quantized = quantized_ops(model)
    if quantized:
        found = ", ".join(f"{count} {op}" for op, count in quantized.items())
        raise ModelError(f"the model is already quantized ({found}); give the float model that it was made from")
    kinds = float_kinds(model)
    single = kinds.get("FLOAT", 0)
    for kind in (*_HALF, ir.DataType.DOUBLE):
        # A few constants of another type are harmless (a float64 epsilon); the bulk of the weights decides.
        if kinds.get(kind.name, 0) > single:
            raise ModelError(f"the model's weights are {kind.name.lower()}; export it in float32 and quantize that")
