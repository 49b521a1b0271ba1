"""Making interior tensors visible: a copy of a model with more outputs, tensors inside bodies included.

A tensor of a body becomes an output of the body and of the node that holds it. Of an If, the other branch gives an
empty tensor in its place. Of a Loop or Scan, the values of all iterations are stacked along a new first axis.
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


def loops_around(model: ir.Model) -> dict[ir.Graph, int]:
    """By body graph, in how many Loop and Scan bodies, one in another, it lies; only of those that lie in some."""
    owner = owners(model)
    found: dict[ir.Graph, int] = {}
    for graph in model.graphs():
        count, outer = 0, owner.get(id(graph))
        while outer is not None:
            count += outer.op_type != "If"
            outer = owner.get(id(outer.graph))
        if count:
            found[graph] = count
    return found


def repeated(model: ir.Model) -> set[str]:
    """Names of the nodes inside Loop and Scan bodies, at any depth."""
    return {node.name or "" for graph in loops_around(model) for node in graph}


def expose(model: ir.Model, tensors: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """A copy of ``model`` whose only outputs are ``tensors``, and the output's name for each of them.

    An empty array of shape ``[0]`` means that the branch of the If which holds the tensor did not run. Each Loop or
    Scan around a tensor gives it one more axis in front, of iterations. Names that do not exist are left out.
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
        lifted, level, outer = value, 0, owner.get(id(value.graph))
        while outer is not None:
            lifted = _lift(lifted, outer, f"{name}_shown{level or ''}")
            level, outer = level + 1, owner.get(id(outer.graph))
        shown[name] = lifted
    copy.graph.outputs.clear()
    for value in shown.values():
        if value not in copy.graph.outputs:
            copy.graph.outputs.append(value)
    return copy, {name: value.name or "" for name, value in shown.items()}


def _lift(value: ir.Value, outer: ir.Node, name: str) -> ir.Value:
    """``value`` of a body of ``outer`` as a new output of ``outer``."""
    inner = value.graph
    dtype = value.dtype or ir.DataType.FLOAT
    for attr in outer.attributes.values():
        if attr.type != ir.AttributeType.GRAPH:
            continue
        body = attr.as_graph()
        if body is inner:
            # onnxruntime leaves the second of two outputs of one name empty: an output of the body needs a twin. What
            # a body is given is no output of its nodes.
            taken = value.is_graph_output() or value.producer() is None
            body.outputs.append(_twin(value, body, name) if taken else value)
            continue
        empty = ir.tensor(np.zeros(0, dtype.numpy()), name=f"{name}_absent")
        absent = f"{name}_{attr.name}_absent"
        build = NodeBuilder(AtEnd(body))
        stand_in = build("Constant", [], name=absent, output=absent, value=empty)
        stand_in.dtype = dtype
        stand_in.shape = ir.Shape([0])
        body.outputs.append(stand_in)
    for key in _OF_EACH_SCAN_OUTPUT:
        if key in outer.attributes:
            outer.attributes[key] = ir.AttrInt64s(key, [*outer.attributes[key].as_ints(), 0])
    outer.resize_outputs(len(outer.outputs) + 1)
    lifted = outer.outputs[-1]
    lifted.name = name
    lifted.dtype = dtype
    return lifted


# Attributes of Scan that have one entry for each stacked output; left out, they are all 0.
_OF_EACH_SCAN_OUTPUT = ("scan_output_axes", "scan_output_directions")


def _twin(value: ir.Value, body: ir.Graph, name: str) -> ir.Value:
    """``value`` under another name, at the end of ``body``."""
    build = NodeBuilder(AtEnd(body))
    return build("Identity", [value], name=f"{name}_twin", output=f"{name}_twin", like=value)
