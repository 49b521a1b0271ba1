"""Making interior tensors visible: a copy of a model with more outputs, tensors inside If bodies included.

A tensor of an If branch becomes an output of the branch and of the If node; the other branch gives an empty tensor in
its place. Tensors inside Loop and Scan bodies have one value an iteration and cannot be shown this way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import copy_model
from onnxq.graph.nodes import AtEnd, NodeBuilder
from onnxq.query import nodes


def owners(model: ir.Model) -> dict[int, ir.Node]:
    """For each body graph, by ``id(graph)``: the If, Loop or Scan node it belongs to."""
    found: dict[int, ir.Node] = {}
    for node in nodes(model):
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.GRAPH:
                found[id(attr.as_graph())] = node
            elif attr.type == ir.AttributeType.GRAPHS:
                found.update({id(g): node for g in attr.as_graphs()})
    return found


def unobservable(model: ir.Model) -> set[str]:
    """Names of the nodes inside Loop and Scan bodies, at any depth."""
    owner = owners(model)
    hidden: set[str] = set()
    for node in nodes(model):
        graph = node.graph
        while graph is not None and id(graph) in owner:
            outer = owner[id(graph)]
            if outer.op_type != "If":
                hidden.add(node.name or "")
                break
            graph = outer.graph
    return hidden


def expose(model: ir.Model, tensors: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """A copy of ``model`` whose only outputs are ``tensors``, and the output's name for each of them.

    An empty array of shape ``[0]`` means that the branch of the If which holds the tensor did not run. Names that do
    not exist are left out of the mapping.
    """
    copy = copy_model(model)
    owner = owners(copy)
    wanted = set(tensors)
    found: dict[str, ir.Value] = {}
    for graph in copy.graphs():
        for value in (*graph.inputs, *(o for n in graph for o in n.outputs)):
            if value.name in wanted and value.name not in found:
                found[value.name or ""] = value
    shown: dict[str, ir.Value] = {}
    for name, value in found.items():
        lifted = value
        producer = value.producer()
        while producer is not None and producer.graph is not None and id(producer.graph) in owner:
            outer = owner[id(producer.graph)]
            lifted = _lift(lifted, outer, f"{name}_shown")
            producer = outer
        shown[name] = lifted
    copy.graph.outputs.clear()
    for value in shown.values():
        if value not in copy.graph.outputs:
            copy.graph.outputs.append(value)
    return copy, {name: value.name or "" for name, value in shown.items()}


def _lift(value: ir.Value, outer: ir.Node, name: str) -> ir.Value:
    """``value`` of a branch of the If node ``outer`` as a new output of ``outer``."""
    inner = value.graph
    dtype = value.dtype or ir.DataType.FLOAT
    for attr in outer.attributes.values():
        if attr.type != ir.AttributeType.GRAPH:
            continue
        branch = attr.as_graph()
        if branch is inner:
            # onnxruntime leaves the second of two outputs of one name empty: an output of the branch needs a twin.
            branch.outputs.append(_twin(value, branch, name) if value.is_graph_output() else value)
            continue
        empty = ir.tensor(np.zeros(0, dtype.numpy()), name=f"{name}_absent")
        absent = f"{name}_{attr.name}_absent"
        build = NodeBuilder(AtEnd(branch))
        stand_in = build("Constant", [], name=absent, output=absent, value=empty)
        stand_in.dtype = dtype
        stand_in.shape = ir.Shape([0])
        branch.outputs.append(stand_in)
    outer.resize_outputs(len(outer.outputs) + 1)
    lifted = outer.outputs[-1]
    lifted.name = name
    lifted.dtype = dtype
    return lifted


def _twin(value: ir.Value, branch: ir.Graph, name: str) -> ir.Value:
    """``value`` under another name, at the end of ``branch``."""
    build = NodeBuilder(AtEnd(branch))
    return build("Identity", [value], name=f"{name}_twin", output=f"{name}_twin", like=value)
