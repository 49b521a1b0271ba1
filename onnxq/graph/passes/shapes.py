"""Shape and type inference that cannot fail."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir

from onnxq.graph.copying import INFERRED, all_graphs, only_building
from onnxq.graph.edit import Array, constant, is_op
from onnxq.graph.foreign import put_types_back

_log = logging.getLogger(__name__)
# Data propagation reads small tensors (shapes, axes, indices); larger ones are weights, whose values say nothing.
_SMALL = 1024


# Numbers in a vector: onnx propagates what Range and Concat make element by element, a thousand million of them too.
_LONGEST_VECTOR = 1 << 16

# What onnx calls a dimension that it cannot tell: each name stands for one number, wherever it turns up.
UNKNOWN = "unk__"


@only_building()
def infer_shapes(model: ir.Model) -> int:
    """Fills in shapes and types that onnx can infer, bodies included; returns how many values became better known.

    Needs unique names. What onnx cannot infer stays as it was; an inference that fails changes nothing.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(
            _light(model), check_type=False, strict_mode=False, data_prop=_longest_vector(model) <= _LONGEST_VECTOR
        )
    except Exception as error:  # any exception: this pass is a help, never a reason to stop
        _log.debug("shape inference failed: %s", error)
        return 0
    known: dict[str, onnx.TypeProto] = {}
    _collect(inferred.graph, known)
    count = 0
    for graph in all_graphs(model):
        for node in graph:
            for value in node.outputs:
                found = known.get(value.name or "")
                if found is not None:
                    count += _improve(value, found)
    return count


def forget_shapes(model: ir.Model, claims: dict[ir.Value, ir.Shape]) -> int:
    """Moves the shapes that the file claims for values inside the graphs into ``claims``; returns how many.

    Such a claim can be wrong without anybody noticing (a batch of 1 written down everywhere, then a batch axis made
    free at the input only), so nothing may be computed from it.
    """
    for graph in all_graphs(model):
        for node in graph:
            for value in node.outputs:
                if value.shape is not None and not value.is_graph_output():
                    claims[value] = value.shape
                    value.shape = None
    return len(claims)


def recall_shapes(claims: dict[ir.Value, ir.Shape]) -> int:
    """Gives the shapes of ``forget_shapes`` back to values about which nothing could be inferred; returns how many."""
    missing = [value for value in claims if value.shape is None]
    for value in missing:
        value.shape = claims[value]
    return len(missing)


def _longest_vector(model: ir.Model) -> float:
    """An estimate from above of how many numbers a small vector has that onnx would propagate."""
    if not any(is_op(node, "Concat", "Range") for graph in all_graphs(model) for node in graph):
        return 2 * _SMALL  # nothing makes longer ones than small constants are, two numbers a byte
    lengths: dict[ir.Value, float] = {}

    def length(value: ir.Value | None, *, joined: bool) -> float:
        tensor = None if value is None else value.const_value
        if tensor is not None:
            # Weights are not propagated, but vectors of any length are where they are joined.
            return tensor.size if tensor.nbytes <= _SMALL or (joined and len(tensor.shape) == 1) else 0
        return 0 if value is None else lengths.get(value, 1)

    longest = 0.0
    for graph in all_graphs(model):
        for node in graph:
            read = [length(value, joined=is_op(node, "Concat")) for value in node.inputs] or [1]
            made = max(read)
            if is_op(node, "Concat"):
                made = sum(read)
            elif is_op(node, "Range") and len(node.inputs) == 3:
                made = _turns(*map(constant, node.inputs))
            lengths.update(dict.fromkeys(node.outputs, made))
            longest = max(longest, made)
    return longest


def _turns(start: Array | None, limit: Array | None, delta: Array | None) -> float:
    """How many numbers Range makes of these constants, 1 where they are none."""
    if start is None or limit is None or delta is None or not start.size == limit.size == delta.size == 1:
        return 1
    first, last, step = (float(one.reshape(-1)[0]) for one in (start, limit, delta))
    return max(0.0, (last - first) / step) if step else 1


def _light(model: ir.Model) -> onnx.ModelProto:
    """``model`` without the bytes of its weights: large initializers are inputs of the main graph there.

    ``model`` is changed while it is written and restored after; copying all nodes for each inference takes longer than
    the inference.
    """
    graphs = tuple(all_graphs(model))
    inputs = tuple(model.graph.inputs)
    held = [(graph, value, value.const_value) for graph in graphs for value in graph.initializers.values()]
    try:
        for graph, value, tensor in held:
            if tensor is None or value.name is None or tensor.dtype == ir.DataType.STRING:
                continue
            if value.shape is None or value.type is None:
                value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            if tensor.nbytes > _SMALL:
                graph.initializers.pop(value.name)
                if not any(value is other for other in inputs):
                    model.graph.inputs.append(value)
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), name=value.name)
        proto = ir.serde.serialize_model(model)
        put_types_back(proto, model)  # onnx follows the types of inputs, and dies where one has none
        return proto
    finally:
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
        for graph in graphs:
            graph.initializers.clear()
        for graph, value, tensor in held:
            value.const_value = tensor
            graph.initializers.add(value)


def _collect(graph: onnx.GraphProto, known: dict[str, onnx.TypeProto]) -> None:
    for info in (*graph.value_info, *graph.output):
        known[info.name] = info.type
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _collect(attribute.g, known)
            for body in attribute.graphs:
                _collect(body, known)


def _improve(value: ir.Value, found: onnx.TypeProto) -> bool:
    """Merges ``found`` into ``value``: numbers win over names, names over made-up ones, what is said over guesses."""
    if not found.HasField("tensor_type"):
        return False
    tensor, better = found.tensor_type, False
    if value.type is None and value.shape is None:
        value.meta[INFERRED] = True
    if value.type is None and tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
        better = True
    if not tensor.HasField("shape"):
        return better
    dims: list[int | str | None] = [
        d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim
    ]
    if value.shape is None or len(value.shape) != len(dims):
        value.shape = ir.Shape(dims)
        return True
    merged: list[int | str | None] = []
    for old, new in zip(value.shape, dims, strict=True):
        if isinstance(old, int):
            merged.append(old)
        elif isinstance(new, int):
            merged.append(new)
            better = True
        elif old.value is None or (old.value.startswith(UNKNOWN) and new is not None and not new.startswith(UNKNOWN)):
            better |= new is not None
            merged.append(new)
        else:
            merged.append(old.value)
    value.shape = ir.Shape(merged)
    return better
