"""Cutting and tapping graphs: inner tensors as outputs, and one layer alone as a model of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.errors import ModelError
from onnxq.runtime.proto import used_names

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Cut:
    """``model``: the nodes between the values ``inputs`` and the value ``output`` and nothing else."""

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    output: str


def made_names(graph: onnx.GraphProto) -> set[str]:
    """The values that nodes of the main graph compute; those inside If/Loop bodies cannot be observed."""
    return {name for node in graph.node for name in node.output if name}


def tapped(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of ``model`` that also gives the inner values ``names`` as outputs (their types left to onnxruntime).

    Raises ``ModelError`` for a name that no node of the main graph makes.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made = made_names(copy.graph)
    present = {v.name for v in copy.graph.output}
    for name in dict.fromkeys(names):
        if name not in made:
            raise ModelError(f"no node of the main graph makes a tensor {name}; inner tensors of If/Loop stay hidden")
        if name not in present:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


def boundary(model: onnx.ModelProto, output: str, *, known: Collection[str], own: str) -> tuple[str, ...]:
    """The values of ``known`` nearest upstream of ``output``, in sorted order.

    ``own`` is passed through, not stopped at. Graph inputs end the search too, whether known or not.
    """
    _, stops = _upstream(model.graph, output, known=known, own=own)
    return tuple(sorted(stops))


def cut(model: onnx.ModelProto, output: str, *, inputs: Mapping[str, onnx.ValueInfoProto], own: str) -> Cut:
    """The ``Cut`` of ``model`` between ``inputs`` (with their types) and ``output``; weights are taken along."""
    import onnx

    graph = model.graph
    nodes, stops = _upstream(graph, output, known=inputs, own=own)
    used = {name for node in nodes for name in used_names(node)}
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = "cut"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(t for t in graph.initializer if t.name in used)
    part.graph.input.extend(inputs[name] for name in sorted(stops))
    part.graph.output.append(onnx.ValueInfoProto(name=output))
    return Cut(part, tuple(sorted(stops)), output)


def _upstream(
    graph: onnx.GraphProto, output: str, *, known: Collection[str], own: str
) -> tuple[list[onnx.NodeProto], set[str]]:
    """(nodes in graph order between the stops and ``output``, the stops)."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    constants = {t.name for t in graph.initializer}
    through = {output, own}
    nodes, stops, pending = set[int](), set[str](), [output]
    while pending:
        name = pending.pop()
        if name in constants:
            continue
        if name not in makers or (name in known and name not in through):
            stops.add(name)
        elif (i := makers[name]) not in nodes:
            nodes.add(i)
            pending += used_names(graph.node[i])
    return [graph.node[i] for i in sorted(nodes)], stops
