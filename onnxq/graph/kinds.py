"""What a model is made of: the float types it stores and computes in, and whether somebody has quantized it already."""

from __future__ import annotations

import math
from collections import Counter

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.copying import all_graphs, all_nodes
from onnxq.graph.widened import FLOATS, LARGE, NARROW
from onnxq.kernels.operators import named, operator

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
        raise ModelError(f"the model is already quantized ({found}); give the float model that it was made from")


# Where onnxruntime's optimizers put operators over layouts of this machine's kernels, which no other file has.
_LAYOUTS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")


def require_plain_layouts(model: ir.Model) -> None:
    """Nothing; raises ModelError where onnxruntime saved ``model`` in the layouts of its kernels."""
    for node in all_nodes(model):
        if node.domain in _LAYOUTS:
            raise ModelError(
                "the model was saved by onnxruntime after it optimized it for this kind of machine: "
                f"{node.domain}:{node.op_type} {node.name!r} reads layouts of onnxruntime's own",
                hint="give the model as it was before onnxruntime optimized it",
            )


def narrow_throughout(model: ir.Model) -> ir.DataType | None:
    """The half-precision type that all large float constants of ``model`` are stored in; None where they are not."""
    kinds = {
        v.const_value.dtype
        for graph in all_graphs(model)
        for v in graph.initializers.values()
        if v.const_value is not None and v.const_value.dtype.is_floating_point() and v.const_value.nbytes >= LARGE
    }
    return next(iter(kinds)) if len(kinds) == 1 and kinds <= set(NARROW) else None


def computed_in_float32(model: ir.Model) -> bool:
    """Whether at least half of the multiply-accumulates of ``model`` are of float32; of nodes, if nothing multiplies.

    As far as shapes are known, which have to be inferred: a dimension that is not counts once.
    """
    work: Counter[ir.DataType] = Counter()
    count: Counter[ir.DataType] = Counter()
    for graph in all_graphs(model):
        for node in graph:
            kind = _computed_in(node)
            if kind is not None:
                work[kind] += _work(node)
                count[kind] += 1
    decides = work if work.total() else count
    return 2 * decides[ir.DataType.FLOAT] >= decides.total()


def _computed_in(node: ir.Node) -> ir.DataType | None:
    """The float type that ``node`` computes in: that of its result; None for a Cast, and for what is not of floats."""
    if node.op_type in ("Cast", "CastLike", "Constant"):
        return None
    kinds = [v.dtype for v in (*node.outputs, *node.inputs) if v is not None and v.dtype in FLOATS]
    return kinds[0] if kinds else None


def _work(node: ir.Node) -> int:
    """The multiply-accumulates of a layer for one sample: elements of the weight, times positions of the result."""
    record = operator(node)
    if not record.computes:
        return 0
    sizes = [math.prod(v.const_value.shape.numpy()) for v in node.inputs if v is not None and v.const_value is not None]
    shape = node.outputs[0].shape
    inner = [] if shape is None else list(shape)[2:] if record.name.startswith("Conv") else list(shape)[1:-1]
    return max(sizes, default=0) * math.prod(dim for dim in inner if isinstance(dim, int))
