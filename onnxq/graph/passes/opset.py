"""The opset: up to 13, where per-channel quantization begins; down to 20, the last that every current runtime reads."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import is_op, label
from onnxq.graph.passes.adapters import ADAPTERS, CHANGED, refuse
from onnxq.runtime.session import has_codes

LOWEST = 13
HIGHEST = 20
NATIVE = 21  # the first with tensors of 4-bit integers
# onnxruntime's own, which it reads in the default domain too, whatever the opset: no opset of ONNX changes them.
_OWN = ("LayerNormalization", "SimplifiedLayerNormalization")


def fit_opset(model: ir.Model, lowest: int, notes: list[str]) -> int:
    """Brings the opset of the default domain into 13..20 where that keeps the meaning; returns by how much.

    ``lowest``: the lower end, or ``NATIVE`` for int4 tensors; then nothing is lowered. ``notes``: gets what there is to
    say.

    Needs shapes (Softmax before 13 depends on the rank) and inlined functions.

    Raises:
        ModelError: a node has no equivalent at the lowest opset, or needs one without kernels for quantization.
    """
    opset = model.opset_imports.get("")
    if opset is None or lowest <= opset <= max(HIGHEST, lowest):
        return 0
    if opset < lowest:
        raise_opset(model, lowest)
        notes.append(f"opset {opset} raised to {lowest}")
        return lowest - opset
    if lowest > HIGHEST:
        return 0
    obstacle = lower_opset(model, HIGHEST)
    if obstacle is None:
        notes.append(f"opset {opset} lowered to {HIGHEST}")
        return opset - HIGHEST
    if has_codes(opset):
        notes.append(f"opset {opset} kept ({obstacle}); the result needs a runtime that reads it")
        return 0
    for target in range(opset - 1, HIGHEST, -1):
        if has_codes(target) and lower_opset(model, target) is None:
            notes.append(f"opset {opset} lowered to {target}, not to {HIGHEST} ({obstacle})")
            return opset - target
    raise ModelError(
        f"the model needs opset {opset} ({obstacle}), at which this onnxruntime has no QuantizeLinear for the codes "
        "that integer kernels read",
        hint=f"export the model again with opset {HIGHEST} or older, or update onnxruntime",
    )


def raise_opset(model: ir.Model, target: int) -> None:
    """Rewrites every node for opset ``target``. Raises ModelError naming a node that has no equivalent there."""
    start = model.opset_imports[""]
    if model.functions:
        raise ModelError(
            f"the model has functions at opset {start}", hint=f"export it again with opset {target} or newer"
        )
    for graph in all_graphs(model):
        for node in tuple(graph):
            if node.domain != "":
                continue
            for version in range(start + 1, target + 1):
                adapter = ADAPTERS.get((node.op_type, version))
                if adapter is not None:
                    adapter(node)
            if _schema(node.op_type, target) is None and not _is_own(node, start):
                raise refuse(node, f"does not exist at opset {target}")
    _set_opset(model, target)


def lower_opset(model: ir.Model, target: int) -> str | None:
    """Declares opset ``target`` if every node is valid there and means the same; else changes nothing and says why."""
    start = model.opset_imports[""]
    if model.functions:
        return "it has local functions"
    nodes = [node for graph in all_graphs(model) for node in graph if node.domain == ""]
    for node in nodes:
        obstacle = _obstacle(node, start, target)
        if obstacle is not None:
            return obstacle
    for node in nodes:
        old, new = _schema(node.op_type, target), _schema(node.op_type, start)
        if old is not None and new is not None:
            for name in [name for name in node.attributes if name not in old.attributes]:
                node.attributes.pop(name)  # at its default, see _obstacle
    _set_opset(model, target)
    return None


def _obstacle(node: ir.Node, start: int, target: int) -> str | None:
    """Why ``node`` cannot be read at ``target`` as it is at ``start``; None when it can."""
    where = f"{node.op_type} node {label(node)!r}"
    old, new = _schema(node.op_type, target), _schema(node.op_type, start)
    if _is_own(node, start):
        return None
    if old is None or new is None:
        return f"{where} is newer than opset {target}"
    if old.since_version == new.since_version:
        return None
    steps = [(node.op_type, version) for version in range(target + 1, start + 1)]
    if any(step in ADAPTERS or (step in CHANGED and CHANGED[step](node)) for step in steps):
        return f"{where} changed its meaning after opset {target}"
    for name, attribute in node.attributes.items():
        if name not in old.attributes and not _is_default(attribute, new.attributes.get(name)):
            return f"{where} has the attribute {name!r}, newer than opset {target}"
    if len(node.inputs) > old.max_input or len(node.outputs) > old.max_output:
        return f"{where} has more inputs or outputs than at opset {target}"
    for values, formals in ((node.inputs, old.inputs), (node.outputs, old.outputs)):
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)]
            if value is not None and not _allowed(value, formal.types):
                return f"{where} has an element type that opset {target} does not allow"
    return None


def _allowed(value: ir.Value, types: set[str]) -> bool:
    """Whether the type of ``value`` is among ``types``, written as in schemas; unknown and non-tensor types pass."""
    if not isinstance(value.type, ir.TensorType):
        return True
    name = onnx.helper.tensor_dtype_to_string(value.type.dtype.value).removeprefix("TensorProto.").lower()
    return f"tensor({name})" in types


def _is_default(attribute: ir.Attr, schema: onnx.defs.OpSchema.Attribute | None) -> bool:
    if schema is None or not schema.default_value.type:
        return False
    default: object = onnx.helper.get_attribute_value(schema.default_value)
    return bool(attribute.value == (default.decode() if isinstance(default, bytes) else default))


def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _is_own(node: ir.Node, opset: int) -> bool:
    """Whether ``node`` is an operator of onnxruntime that ONNX does not have at ``opset``."""
    return is_op(node, *_OWN) and _schema(node.op_type, opset) is None


def _set_opset(model: ir.Model, opset: int) -> None:
    model.opset_imports[""] = opset
    for graph in all_graphs(model):
        for node in graph:
            if node.domain == "" and node.version is not None:
                node.version = opset
