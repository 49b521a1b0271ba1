"""Nodes that read only constants become constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import Array, constant, integer, is_constant, is_op, new_constant, redirect
from onnxq.graph.passes.arrays import compute
from onnxq.graph.passes.share_constants import SMALLEST
from onnxq.graph.passes.share_transposed import only_products
from onnxq.kernels.held import held

# A folded tensor may be this much larger than what it is made from, in bytes, and no larger than this at all.
_GROWTH = 4096
_LARGEST = 64 << 20
_NEVER = frozenset(
    {
        "Bernoulli",
        "Constant",
        "DequantizeLinear",
        "Dropout",
        "DynamicQuantizeLinear",
        "Multinomial",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
_RUNNABLE = frozenset("?bBhHiIlLqQefd")  # numpy type characters that onnxruntime takes as they are


def fold_constants(model: ir.Model) -> int:
    """Evaluates nodes whose inputs are all constants, and Shape of static dimensions; returns how many went.

    Left: random operators, strings, control flow, graph outputs, what would become much larger than its inputs
    (ConstantOfShape, Expand, Tile of large sizes), and transposes in front of products of what others read as it is.
    Needs shapes for the Shape part.
    """
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if node.domain != "" or any(value.is_graph_output() for value in node.outputs) or _shared(node):
                continue
            results = _shape(node) or _evaluate(node, model)
            if results is None:
                continue
            for output, array in zip(node.outputs, results, strict=True):
                if output.uses():
                    output_name, output.name = output.name or "constant", None
                    redirect(output, new_constant(graph, array, name=output_name))
            graph.remove(node, safe=True)
            count += 1
    return count


def _shared(node: ir.Node) -> bool:
    """Whether ``node`` turns, for products alone, a large constant that others read too: folded it would be a copy."""
    base = held(node.outputs[0]) if is_op(node, "Transpose") else None
    if base is None or base.const_value is None or base.const_value.nbytes < SMALLEST or not is_constant(base):
        return False
    return only_products(node.outputs[0]) and any(use.node is not node for use in base.uses())


def _shape(node: ir.Node) -> tuple[Array] | None:
    """The value of Shape, or of Gather or Slice on a Shape, as far as the dimensions asked for are numbers."""
    if is_op(node, "Shape"):
        dims = _dims(node)
        return None if dims is None or None in dims else (np.array(dims, dtype=np.int64),)
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if source is None or not is_op(source, "Shape"):
        return None
    dims = _dims(source)
    if dims is None:
        return None
    # Unknown dimensions become a number that no shape has, so that one look tells whether any was asked for.
    known = np.array([-1 if dim is None else dim for dim in dims], dtype=np.int64)
    if is_op(node, "Gather"):
        index = constant(node.inputs[1])
        if index is None or index.size == 0 or np.any((index < -known.size) | (index >= known.size)):
            return None
        picked = known[index]
    elif is_op(node, "Slice"):
        parts = [constant(value) for value in node.inputs[1:]]
        if any(part is None or part.size != 1 for part in parts) or len(parts) < 2:
            return None
        numbers = [int(part.reshape(-1)[0]) for part in parts if part is not None]
        if len(numbers) > 2 and numbers[2] not in (0, -1):
            return None
        picked = known[numbers[0] : numbers[1] : numbers[3] if len(numbers) > 3 else 1]
    else:
        return None
    return None if np.any(picked < 0) else (np.asarray(picked),)


def _dims(node: ir.Node) -> list[int | None] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    dims = [dim if isinstance(dim, int) else None for dim in source.shape]
    end = node.attributes.get("end")
    return dims[integer(node, "start", 0) : None if end is None else end.as_int()]


def _evaluate(node: ir.Node, model: ir.Model) -> tuple[Array, ...] | None:
    """The outputs of ``node``, computed by onnxruntime; None where it may not or cannot be computed."""
    if node.op_type in _NEVER or not node.inputs:
        return None
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return None
    feeds: dict[str, Array] = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.const_value is None or not _runnable(value.const_value):
            return None
        array = constant(value)
        if array is None:
            return None
        feeds[f"i{index}"] = array
    budget = sum(array.nbytes for array in feeds.values()) + _GROWTH
    expected = _expected_bytes(node)
    if not feeds or expected is None or expected > min(budget, _LARGEST):
        return None
    opset = model.opset_imports.get("", 13)
    known = None if opset < 13 else compute(node, [constant(value) for value in node.inputs])
    if known is not None:
        return (known,)
    try:
        return _run(node, opset, feeds)
    except Exception:  # no kernel, or a node that fails for these values: leave it as it is
        return None


def _runnable(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and np.dtype(tensor.dtype.numpy()).char in _RUNNABLE


def _expected_bytes(node: ir.Node) -> int | None:
    """An upper bound for the bytes that ``node`` returns, None where it cannot be told beforehand."""
    shapes = [array.shape for array in map(constant, node.inputs) if array is not None]
    second = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    first = constant(node.inputs[0])
    if first is None:
        return None
    width = 8
    if is_op(node, "ConstantOfShape"):
        return width * int(np.prod(first.astype(np.float64)))
    if is_op(node, "Expand") and second is not None:
        try:
            return width * int(np.prod(np.broadcast_shapes(first.shape, tuple(second.tolist())), dtype=np.float64))
        except ValueError:
            return None
    if is_op(node, "Tile") and second is not None:
        return int(first.nbytes * np.prod(second.astype(np.float64)))
    if is_op(node, "Range"):
        start, limit, delta = (float(np.asarray(constant(value)).reshape(-1)[0]) for value in node.inputs)
        return None if delta == 0 else int(width * max(0.0, (limit - start) / delta + 1))
    if is_op(node, "Concat"):
        return sum(array.nbytes for array in map(constant, node.inputs) if array is not None)
    if is_op(node, "Shape", "Size"):
        return width * first.ndim
    if all(value.shape is not None and value.shape.is_static() for value in node.outputs):
        sizes = [_bytes(value) for value in node.outputs]
        return sum(sizes)
    if is_op(node, *_ELEMENTWISE):
        try:
            return width * int(np.prod(np.broadcast_shapes(*shapes), dtype=np.float64))
        except ValueError:
            return None
    if is_op(node, *_MOVES):
        return int(first.nbytes)
    if is_op(node, "Gather") and second is not None:
        return int(second.size * first.nbytes)
    return None


_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Equal", "Greater", "Less", "And", "Or", "Not", "Where"),
    *("Cast", "Neg", "Abs", "Sqrt", "Exp", "Log", "Floor", "Ceil", "Reciprocal", "Sigmoid", "Tanh", "Relu", "Clip"),
    *("GreaterOrEqual", "LessOrEqual", "Round", "Sign", "Erf", "Sin", "Cos", "Identity"),
)
_MOVES = (
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Flatten", "Split", "Identity"),
    *("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceMean", "ArgMax", "ArgMin", "ScatterND"),
)


def _bytes(value: ir.Value) -> int:
    size = 1.0 if value.shape is None else float(np.prod([float(d) for d in value.shape if isinstance(d, int)]))
    return int(size * (8 if value.dtype is None else max(1, value.dtype.itemsize)))


def _run(node: ir.Node, opset: int, feeds: Mapping[str, Array]) -> tuple[Array, ...]:
    import onnxruntime as ort

    proto = ir.serde.serialize_node(node)
    del proto.input[:], proto.output[:]
    proto.input.extend("" if value is None else f"i{index}" for index, value in enumerate(node.inputs))
    proto.output.extend(f"o{index}" for index in range(len(node.outputs)))
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    graph = onnx.helper.make_graph([proto], "constant", inputs, [onnx.ValueInfoProto(name=o) for o in proto.output])
    one = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(one.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, dict(feeds))
    return tuple(np.asarray(result) for result in results)
