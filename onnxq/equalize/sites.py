"""Tensors whose channels can be multiplied by positive factors that their readers divide by again.

Where what writes a tensor can multiply, factors cost nothing when the model runs (``equalize.region``). Elsewhere (a
residual stream that others read too, a GELU) a Mul on the way to the readers does it, which costs one pass over the
tensor. There channels may also be taken out (``equalize.outliers``): their factor is 0. HardSwish and SiLU let factors
through at the price of a pass too (``equalize.gates``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxq.equalize.arranged import Marks
from onnxq.equalize.gates import Gate, gate_behind
from onnxq.equalize.region import LIMIT, Region, region
from onnxq.equalize.scaling import WEIGHT, Bound, Reader, Site
from onnxq.graph.edit import float_constant, integer, rank, sole_consumer
from onnxq.graph.linear import Linear, linear_ending_at, linear_reading
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Arithmetic

# Constants, as (node, input).
Places = tuple[tuple[ir.Node, int], ...]


def find_sites(model: ir.Model, *, costly: bool = False) -> list[Site]:
    """All sites of the main graph of a prepared ``model``, in its order; weights that several nodes share stay.

    With ``costly`` also those that make the model compute more (``Site.costs``).
    """
    found: list[Site] = []
    written: set[ir.Node] = set()
    refused: set[ir.Value] = set()
    for node in model.graph:
        value = node.outputs[0] if node.outputs else None
        if value is None or value.is_graph_output():
            continue
        channels, axis, layer, constants = _written(node)
        if not channels or (layer is not None and layer.node in written):
            continue
        whole = None
        if layer is None or value not in refused:
            # What is before a tensor that no layer writes is none of its region, so that it has one of its own.
            whole = region(value, axis, channels, _reads, _writer, refused=None if layer is None else refused)
        if whole is not None:
            found.append(_site(value, axis, channels, whole, constants))
        elif costly and layer is not None and axis == 1 and (gate := gate_behind(value)) is not None:
            behind = gate.product.outputs[0]
            whole = region(behind, axis, channels, _reads, _none)
            if whole is not None:
                whole.writers.append(layer)
                found.append(_site(value, axis, channels, whole, (), gate))
        written.update(layer.node for layer in (() if whole is None else whole.writers))
    if costly:
        taken = {site.tensor for site in found} | {reader.tensor for site in found for reader in site.readers}
        values = (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
        found += [site for v in values if v.name and v.name not in taken and (site := _between(v)) is not None]
    return found


def _site(
    value: ir.Value, axis: int, channels: int, whole: Region, constants: Places, gate: Gate | None = None
) -> Site:
    """The site at ``value``, whose ``channels`` on ``axis`` are those of the region ``whole``."""
    readers = tuple(_reader(node, read, whole.marks[read]) for node, read in whole.readers)
    bounds = tuple(
        Bound(node, ceiling, node.outputs[0].name or "", (marks := whole.marks[node.outputs[0]]).axis, marks.of)
        for node, ceiling in whole.bounds.items()
    )
    return Site(
        value.name or "",
        axis,
        tuple(whole.writers),
        constants,
        readers,
        gate,
        tuple(whole.shifts),
        bounds,
        tuple(_summed(whole)),
        channels,
    )


def _summed(whole: Region) -> list[Reader]:
    """What is added up in the region ``whole`` and not read by a layer itself, each as what first reads the sum."""
    read = {value: node for node, value in reversed(whole.readers)}
    found = []
    for value in whole.marks:
        if value in read:
            continue
        sums = [u.node for u in value.uses() if _is(u.node, Arithmetic.SUM) and whole.marks.keys() >= {*u.node.inputs}]
        node = next((r for s in sums if (r := _first_reader(s.outputs[0], whole, read)) is not None), None)
        if node is not None:
            found.append(_reader(node, value, whole.marks[value]))
    return found


def _first_reader(value: ir.Value, whole: Region, read: Mapping[ir.Value, ir.Node]) -> ir.Node | None:
    """The layer that reads ``value``, or the first that reads what is made of it without leaving its shape."""
    shape = value.shape
    for _ in range(len(whole.marks)):
        if value in read:
            return read[value]
        after = [u.node.outputs[0] for u in value.uses() if u.node.outputs and u.node.outputs[0] in whole.marks]
        after = [v for v in after if v.shape is not None and shape is not None and list(v.shape) == list(shape)]
        if not after:
            return None
        value = after[0]
    return None


def _reader(node: ir.Node, value: ir.Value, marks: Marks) -> Reader:
    linear = None if operator(node).recurrence is not None else linear_reading(node)
    return Reader(node, value.name or "", marks.axis, linear, None if marks.whole else marks.of)


def _between(value: ir.Value) -> Site | None:
    """The site at ``value`` whose readers are the layers that read its last axis, if there are any."""
    uses = [use for use in value.uses() if use.idx == 0 and use.node.graph is value.graph]
    marks = Marks(-1, np.arange(0))
    readers = tuple(_reader(use.node, value, marks) for use in uses if _layer_reads(use.node, -1))
    alike = len({reader.channels for reader in readers}) == 1
    wide = alike and readers[0].channels > 1
    return Site(value.name or "", -1, (), (), readers, channels=readers[0].channels) if wide else None


def _written(node: ir.Node) -> tuple[int, int, Linear | None, Places]:
    """(channels, axis, layer, constants) of what ``node`` writes, as in ``Site``; 0 channels: it cannot be scaled."""
    scales = operator(node).channel_inputs
    if scales:
        over_last = integer(node, "axis", -1) in (-1, (rank(node.inputs[0]) or 0) - 1)
        places = tuple((node, i) for i in scales if i < len(node.inputs) and node.inputs[i] is not None)
        return (_vectors(places) if over_last else 0), -1, None, places
    linear = linear_ending_at(node)
    if linear is not None:
        alone = _alone(linear.node) and not integer(linear.node, "transA", 0)
        return (linear.channels if alone else 0), linear.axis, linear, ()
    places = _affine(node)
    return _vectors(places), -1, None, places


def _affine(node: ir.Node) -> Places:
    """The constants of ``x * scale`` or ``x * scale + shift`` that ``node`` ends, as it ends a layer normalisation."""
    index = next((i for i in range(len(node.inputs)) if float_constant(node.inputs[i]) is not None), None)
    if index is None or operator(node).arithmetic is None:
        return ()
    if _is(node, Arithmetic.PRODUCT):
        return ((node, index),)
    other = node.inputs[1 - index]
    before = None if other is None else other.producer()
    if before is None or other is None or not _is(before, Arithmetic.PRODUCT) or sole_consumer(other) is not node:
        return ()
    scale = _affine(before)
    return (*scale, (node, index)) if scale else ()


def _vectors(places: Places) -> int:
    """How many numbers each of these constants has, if all are vectors of one length above 1; else 0."""
    sizes = set()
    for node, index in places:
        array = float_constant(node.inputs[index])
        width = rank(node.outputs[0])
        plain = array is not None and array.dtype == np.float32 and array.ndim == 1 and (width or 0) > 1
        sizes.add(array.size if plain and array is not None and np.abs(array).max(initial=0.0) < LIMIT else 0)
    return sizes.pop() if len(sizes) == 1 and not sizes & {0, 1} else 0


def _writer(node: ir.Node) -> Linear | None:
    """The layer that ends at ``node`` and whose output channels may be multiplied."""
    return _written(node)[2]


def _none(_: ir.Node) -> Linear | None:
    return None


def _is(node: ir.Node, which: Arithmetic) -> bool:
    return operator(node).arithmetic is which


def _reads(value: ir.Value, node: ir.Node, marks: Marks) -> bool:
    """Whether ``node`` is a layer that reads channels of ``value`` with ``marks`` and a weight of its own."""
    return any(marks.on(axis, rank(value)) and _layer_reads(node, axis, marks.channels) for axis in (1, -1))


def _layer_reads(node: ir.Node, axis: int, channels: int | None = None) -> bool:
    """Whether ``node`` is a layer that reads channels on ``axis`` with a weight of its own, ``channels`` if given."""
    if operator(node).recurrence is not None:
        weight = float_constant(node.inputs[WEIGHT])
        plain = weight is not None and weight.ndim == 3 and weight.dtype == np.float32 and _alone(node)
        fits = plain and weight is not None and channels in (None, weight.shape[2])
        return axis == -1 and fits and weight is not None and bool(np.abs(weight).max(initial=0.0) < LIMIT)
    linear = None if operator(node).slot is None else linear_reading(node)
    if linear is None or linear.axis != axis or integer(node, "transA", 0) or not _alone(node):
        return False
    if channels not in (None, linear.inner_channels):
        return False
    return bool(np.abs(linear.weight).max(initial=0.0) < LIMIT)


def _alone(node: ir.Node) -> bool:
    """Whether the weight of ``node`` is read by nothing else: scaled for one, it would be stored twice."""
    weight = node.inputs[WEIGHT]
    return weight is not None and len(tuple(weight.uses())) == 1
