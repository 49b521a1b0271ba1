"""A model of half or double precision computes in float32 inside: that is what integer kernels are quantized from.

Its inputs and outputs keep their types, with a Cast behind and in front of them. Which models these are is a question
of what they multiply (``computed_in_float32``): one block of another type in a float32 model stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import bypass, integer, is_constant, is_op, redirect_output
from onnxq.graph.kinds import mostly_stored_in
from onnxq.graph.nodes import NodeBuilder, behind
from onnxq.graph.passes.float_islands import bodies, computed_in_float32, islands
from onnxq.graph.widened import OTHER, OWN_FLOAT32, STORED_IN, Widened
from onnxq.kernels.record import BOTH

_FLOAT = ir.TensorType(ir.DataType.FLOAT)
# What picks elements of its first input and does not compute with them: a Cast may go before it as well as behind.
_PICKS = (
    *("Gather", "GatherND", "GatherElements", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Flatten"),
    *("Identity", "Expand", "Tile"),
)
# Attributes that say in which type to compute or what to write.
_TYPES = ("to", "dtype", "output_datatype", "stash_type", "softmax_precision")
_OTHER_NUMBERS = frozenset(kind.value for kind in OTHER)


def widen_stored(model: ir.Model) -> int:
    """Constants behind a Cast to float32 become float32 constants; returns how many Casts went.

    They remember how their file stores them (``Widened``). A Cast behind a row of operators that pick elements of a
    constant, an embedding's Gather say, is moved to the front of them.
    """
    stored_in = mostly_stored_in(model)
    if stored_in is not None:
        model.meta[STORED_IN] = stored_in
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
                value.meta[OWN_FLOAT32] = True
    count = 0
    made: dict[ir.Value, ir.Value] = {}
    for graph in all_graphs(model):
        for node in tuple(graph):
            if _to_float32(node) and _is_other(node.inputs[0]) and _picked_of_constant(node):
                _move_to_constant(node, made)
                count += 1
    return count


def _to_float32(node: ir.Node) -> bool:
    return is_op(node, "Cast") and integer(node, "to", 0) == ir.DataType.FLOAT.value


def _is_other(value: ir.Value | None) -> bool:
    """Whether ``value`` is a tensor of a float type that is not float32."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype in OTHER


def _picked_of_constant(cast: ir.Node) -> bool:
    """Whether ``cast`` reads a constant, or what is picked of one for nothing but Casts to float32."""
    value = cast.inputs[0]
    readers: Iterable[ir.Node] = [cast]
    while value is not None and not is_constant(value):
        node = value.producer()
        if node is None or not is_op(node, *_PICKS) or value.is_graph_output():
            return False
        used = [use.node for use in value.uses()]
        if any(reader not in readers and not _to_float32(reader) for reader in used):
            return False
        value, readers = node.inputs[0], [node]
    return value is not None


def _move_to_constant(cast: ir.Node, made: dict[ir.Value, ir.Value]) -> None:
    value, reader, index = cast.inputs[0], cast, 0
    while value is not None and not is_constant(value):
        node = value.producer()
        assert node is not None
        value.type = _FLOAT
        value, reader = node.inputs[0], node
    assert value is not None
    reader.replace_input_with(index, _constant_in_float32(value, made))
    bypass(cast, keep=_first(cast))


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _constant_in_float32(value: ir.Value, made: dict[ir.Value, ir.Value]) -> ir.Value:
    """The constant ``value`` in float32, made once."""
    if value not in made:
        graph, tensor = value.graph, value.const_value
        assert isinstance(graph, ir.Graph)
        assert tensor is not None
        name, count = f"{value.name}_float32", 1
        while name in graph.initializers:
            name, count = f"{value.name}_float32_{count}", count + 1
        new = ir.Value(
            name=name, type=_FLOAT, shape=ir.Shape(tensor.shape.numpy()), const_value=Widened(tensor, name=name)
        )
        graph.register_initializer(new)
        made[value] = new
    return made[value]


def compute_in_float32(model: ir.Model, *, everywhere: bool = False) -> int:
    """What a model of another float type computes, it computes in float32; returns how many values were of another.

    Left: models of which float32 is the greater part, unless ``everywhere``; and nodes that need the type, with Casts
    around them: sequences, operators of unknown domains, numbers that only become sizes, indices or text
    (``float_islands``). Needs types.
    """
    if not everywhere and computed_in_float32(model):
        return 0
    turn = _Turn(model, islands(model, known=BOTH))
    nodes = [node for graph in all_graphs(model) for node in graph]
    inside = [v for graph in turn.bodies for v in graph.inputs]
    constants = [v for graph in all_graphs(model) for v in graph.initializers.values()]
    made = {node: [v for v in node.outputs if _is_other(v)] for node in nodes}
    stay = [v for v in model.graph.inputs if not v.is_initializer()]
    stay += [v for node in nodes if node in turn.kept for v in node.outputs]
    count = 0
    for value in filter(_is_other, constants):
        count += turn.constant(value)
    for value in filter(_is_other, stay):
        count += turn.surrounding(value)
    for value in (*filter(_is_other, inside), *(v for node in nodes if node not in turn.kept for v in made[node])):
        count += turn.value(value)
    for node in nodes:
        if node not in turn.kept:
            _retype(node)
            source = node.inputs[0] if _to_float32(node) else None
            if source is not None and source.dtype == ir.DataType.FLOAT:
                bypass(node, keep=source)
    return count


class _Turn:
    """A model whose values become float32; nodes in ``kept`` go on with the type that they have."""

    def __init__(self, model: ir.Model, kept: Collection[ir.Node]) -> None:
        self.model, self.kept = model, set(kept)
        closed = {id(body) for node in kept for body in bodies(node)}
        # If, Loop and Scan hand over what their bodies do.
        self.bodies = [g for g in all_graphs(model) if g is not model.graph and id(g) not in closed]
        self._constants: dict[ir.Value, ir.Value] = {}

    def constant(self, value: ir.Value) -> bool:
        """Whether a constant is read in float32 now."""
        if not is_constant(value) or not self._wanted(value):
            return False
        self._read(value, _constant_in_float32(value, self._constants))
        return True

    def surrounding(self, value: ir.Value) -> bool:
        """Whether ``value``, which keeps its type, is read through a Cast now."""
        if not self._wanted(value):
            return False
        self._read(value, self._cast(value, ir.DataType.FLOAT, f"{value.name}_float32"))
        return True

    def value(self, value: ir.Value) -> bool:
        """True: ``value`` is float32 now; what is to read it in its own type reads a Cast, and so does the caller."""
        kind = value.dtype
        assert kind is not None
        readers = [use for use in value.uses() if use.node in self.kept]
        given_back = value.is_graph_output() and value.graph is self.model.graph
        if readers or given_back:
            cast = self._cast(value, kind, f"{value.name}_{kind.name.lower()}")
            for use in readers:
                use.node.replace_input_with(use.idx, cast)
            if given_back:
                redirect_output(value, cast)
        value.type = _FLOAT
        return True

    def _wanted(self, value: ir.Value) -> bool:
        return any(use.node not in self.kept for use in value.uses()) or any(value in g.outputs for g in self.bodies)

    def _read(self, value: ir.Value, new: ir.Value) -> None:
        for use in tuple(value.uses()):
            if use.node not in self.kept:
                use.node.replace_input_with(use.idx, new)
        for body in self.bodies:
            for index, output in enumerate(body.outputs):
                if output is value:
                    body.outputs[index] = new

    def _cast(self, value: ir.Value, kind: ir.DataType, name: str) -> ir.Value:
        """``value`` as ``kind``, right behind where it is made."""
        graph = value.graph
        assert isinstance(graph, ir.Graph)
        made = NodeBuilder(behind(value, graph)).node(
            "Cast", [value], name=f"{name}_Cast", outputs=[name], to=kind.value
        )
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(kind), value.shape
        self.kept.add(made)
        return made.outputs[0]


def _retype(node: ir.Node) -> None:
    """Makes ``node`` write float32 where an attribute has it write another float type."""
    for name, attribute in tuple(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in OTHER:
            tensor = Widened(attribute.value, name=attribute.value.name or "")
            node.attributes[name] = ir.AttrTensor(name, tensor)
        elif name in _TYPES and attribute.type == ir.AttributeType.INT and attribute.value in _OTHER_NUMBERS:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT.value)
