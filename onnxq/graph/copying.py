"""Copies of models that share the weights' memory and nothing else."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from onnxq.graph.widened import Widened
from onnxq.runtime.proto import IN_MEMORY

FILES = "onnxq.files"  # key of ``model.meta``: the files that a model was read from, as a tuple of absolute paths

NAME = "onnxq.name"  # key of ``model.meta``: what messages call a model

NO_BODIES = "onnxq.no_bodies"  # key of ``model.meta``: whether no node has a graph in an attribute; none gets one

INFERRED = "onnxq.inferred"  # key of ``value.meta``: type and shape can be inferred again and need not be stored


def called(model: ir.Model) -> str:
    """What messages call ``model``: the name of its file, and what was made of it."""
    name: str = model.meta.get(NAME, IN_MEMORY)
    return name


@contextmanager
def only_building() -> Iterator[None]:
    """Inside, nothing that is made is garbage: collecting would look through all of a large graph again and again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@only_building()
def copy_model(model: ir.Model) -> ir.Model:
    """A copy of ``model`` that shares only the memory of the weights; renaming in one never shows in the other."""
    try:
        copy = model.clone()
    except RuntimeError:  # nodes in the wrong order cannot be cloned, they can be written and read
        copy = ir.from_proto(ir.to_proto(model))
    for graph in all_graphs(copy):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = share(value.const_value)
    copy.meta.update(model.meta)
    return copy


def share(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor over the same data with a name of its own (renaming an ``ir.Value`` renames the tensor it holds)."""
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
            doc_string=tensor.doc_string,
            base_dir=tensor.base_dir,
        )
    if isinstance(tensor, Widened):
        return Widened(share(tensor.source), name=tensor.name or "")
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
    return ir.LazyTensor(
        lambda: tensor,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
    )


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every If/Loop/Scan body, outer graphs first (bodies of model-local functions not included)."""
    if model.meta.get(NO_BODIES):
        yield model.graph
        return
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    waiting.append(attribute.value)
                elif attribute.type == ir.AttributeType.GRAPHS:
                    waiting.extend(attribute.value)


def note_bodies(model: ir.Model) -> None:
    """Notes whether ``model`` has none: looking for them takes as long as a pass, and every pass looks."""
    model.meta.pop(NO_BODIES, None)
    model.meta[NO_BODIES] = not model.functions and sum(1 for _ in all_graphs(model)) == 1


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of ``model``: main graph, bodies and model-local functions."""
    for graph in all_graphs(model):
        yield from graph
    for function in model.functions.values():
        yield from function.all_nodes()
