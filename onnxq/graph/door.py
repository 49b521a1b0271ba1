"""The one check of a model, when it comes in: behind it, every tensor has its data and every node its inputs.

It looks at what a file can get wrong without onnx or protobuf noticing, and at nothing that takes inference (shapes
and types that do not fit each other): onnxruntime says that better, see ``runtime_model.or_refused``. What onnxruntime
runs passes, operators that it does not know too. No weight is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TypeAlias

import onnx
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.copying import all_graphs
from onnxq.graph.foreign import TYPES
from onnxq.graph.passes.order import sort_nodes
from onnxq.graph.tensors import obstacle
from onnxq.kernels.operators import operator
from onnxq.runtime.schemas import Schema, schema

_OLDEST_OPSET = 7
DAMAGED = "the file is damaged, or what wrote it has a fault: export it again"

Noted: TypeAlias = ir.Model | ir.Function | ir.Graph | ir.Node | ir.Value


def check_model(model: ir.Model, name: str) -> None:
    """Raises ModelError where ``model``, called ``name``, cannot run; puts its nodes in the order of computing."""
    if len(model.graph) == 0:
        raise ModelError(f"{name} has no nodes, so there is nothing to run", hint="export it again")
    if not model.graph.outputs:
        raise ModelError(f"{name} has no outputs, or is truncated", hint="export or copy it again")
    _check_opset(model, name)
    _drop_unreadable_notes(model)
    problem = next(_problems(model), None)
    if problem is not None:
        raise ModelError(f"{name}: {problem}", hint=DAMAGED)
    sort_nodes(model)


def _check_opset(model: ir.Model, name: str) -> None:
    opset = model.opset_imports.get("")
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and opset > newest:
        raise ModelError(
            f"{name} has opset {opset}, newer than {newest}, the last one that the installed onnx "
            f"{onnx.__version__} knows",
            hint="update onnx and onnxruntime, or export with opset 17 to 20",
        )
    if opset is not None and opset < _OLDEST_OPSET:
        raise ModelError(f"{name} has opset {opset}", hint="export it again with opset 13 or newer")


def _drop_unreadable_notes(model: ir.Model) -> None:
    """Takes what is not UTF-8 from where people leave notes: nothing depends on it, and it could not be written."""
    functions = model.functions.values()
    things: list[Noted] = [model, *functions]
    for graph in all_graphs(model):
        things += [graph, *graph.inputs, *graph.initializers.values()]
    for nodes in (*all_graphs(model), *(function.all_nodes() for function in functions)):
        for node in nodes:
            things += [node, *node.outputs]
    for thing in things:
        if not _readable(thing.doc_string):
            thing.doc_string = None
        notes = thing.metadata_props
        for key in [key for key, text in notes.items() if not (_readable(key) and _readable(text))]:
            del notes[key]


def _problems(model: ir.Model) -> Iterator[str]:
    """What is wrong with ``model``, most telling first; names are checked before they are used in messages."""
    for domain in model.opset_imports:
        yield from _name_problem(domain, "a domain")
    for graph in all_graphs(model):
        yield from _graph_problems(graph)
        yield from _node_problems(graph, model.opset_imports, model)
    for value in model.graph.inputs:
        known = (*model.graph.initializers, *model.meta.get(TYPES, ()))
        if value.type is None and value.name not in known:
            yield f"input {value.name!r} has no type"
    for function in model.functions.values():
        yield from _node_problems(function.all_nodes(), function.opset_imports, model)


def _graph_problems(graph: ir.Graph) -> Iterator[str]:
    """What is wrong with the inputs, outputs and initializers of ``graph``."""
    named: set[str] = set()
    for value in graph.inputs:
        yield from _value_problems(value)
        if value.name in named:
            yield f"two inputs are called {value.name!r}"
        named.add(value.name or "")
    for value in graph.initializers.values():
        if value.const_value is None:
            yield f"initializer {value.name!r} has no data"
        elif problem := obstacle(value.const_value):
            yield f"initializer {value.name!r} {problem}"
        yield from _value_problems(value)
    for value in graph.outputs:
        yield from _value_problems(value)
        if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
            yield f"nothing makes the output {value.name!r}"


def _value_problems(value: ir.Value) -> Iterator[str]:
    yield from _name_problem(value.name, "a value")
    if value.type is not None and value.dtype == ir.DataType.UNDEFINED:
        yield f"the elements of {value.name!r} have no type"


def _node_problems(nodes: Iterable[ir.Node], opsets: Mapping[str, int], model: ir.Model) -> Iterator[str]:
    """What is wrong with ``nodes``, those of bodies left out, by the operators of ``opsets``."""
    known: dict[tuple[str, str], Schema | None] = {}
    for node in nodes:
        op = (node.domain, node.op_type)
        if op not in known:
            yield from _name_problem(node.domain, "a domain")
            yield from _name_problem(node.op_type, "an operator")
            known[op] = _schema(node, opsets, model)
        yield from _name_problem(node.name, "a node")
        for value in node.inputs:
            if value is not None and value.name and value.graph is None and value.producer() is None:
                yield f"node {node.name or node.op_type!r} reads {value.name!r}, which nothing makes"
        for value in node.outputs:
            yield from _value_problems(value)
        # One after the other: each may count on what those before it have found right.
        for problem in chain(_attribute_problems(node), _schema_problems(node, known[op])):
            yield f"{node.op_type} node {_label(node)!r} {problem}"
        for problem in _weight_problems(node) if known[op] is not None else ():
            yield f"{node.op_type} node {_label(node)!r} {problem}"


def _schema(node: ir.Node, opsets: Mapping[str, int], model: ir.Model) -> Schema | None:
    """What is known of the operator of ``node``: nothing where the model defines it, or its version is not given."""
    if node.op_identifier() in model.functions or node.domain not in opsets:
        return None
    return schema(node.domain, node.op_type, opsets[node.domain])


def _attribute_problems(node: ir.Node) -> Iterator[str]:
    """What is wrong with the attributes of ``node`` whatever they are for."""
    for key, attribute in node.attributes.items():
        if not _readable(key):
            yield "has an attribute whose name is not UTF-8"
            return
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.UNDEFINED:
            yield f"has the attribute {key!r} without a type"
        elif attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
            tensors = (attribute.value,) if attribute.type == ir.AttributeType.TENSOR else attribute.value
            for problem in filter(None, map(obstacle, tensors)):
                yield f"has the attribute {key!r}, which {problem}"


def _schema_problems(node: ir.Node, known: Schema | None) -> Iterator[str]:
    """In what ``node`` is not what the operator asks for."""
    if known is None:
        return
    made = [bool(value.name) for value in node.outputs]
    while made and not made[-1]:
        made.pop()  # left out when the model is written
    for problem in (
        known.inputs.obstacle([value is not None for value in node.inputs], kind="input"),
        known.outputs.obstacle(made, kind="output"),
    ):
        if problem is not None:
            yield problem
    for key in known.required:
        if key not in node.attributes:
            yield f"lacks the attribute {key!r}"
    for key, attribute in node.attributes.items():
        wanted = known.attributes.get(key)
        if wanted is not None and attribute.type.name != wanted and not attribute.is_ref():
            yield f"has the attribute {key!r} as {attribute.type.name}, and the operator takes {wanted}"
        elif wanted == "STRING" and isinstance(attribute.value, bytes):
            yield f"has the attribute {key!r}, which is not UTF-8"


def _weight_problems(node: ir.Node) -> Iterator[str]:
    """What onnxruntime sees first when it runs: constant weights of a shape that their operator cannot have."""
    shapes = operator(node).misshapen(node)
    if shapes:
        yield f"has weights of the shapes {' and '.join(str(list(shape)) for shape in shapes)}"


def _name_problem(name: object, what: str) -> Iterator[str]:
    if not _readable(name):
        yield f"the name of {what} is not UTF-8: {name!r:.80}"


def _readable(text: object) -> bool:
    """Whether a text of the file is one: what is not UTF-8 comes as bytes."""
    return not isinstance(text, bytes)


def _label(node: ir.Node) -> str:
    return node.name or next((value.name for value in node.outputs if value.name), None) or node.op_type
