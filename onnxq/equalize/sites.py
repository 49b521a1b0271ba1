"""Tensors whose channels can be multiplied by positive factors that their readers divide by again.

Where what writes a tensor can multiply, factors cost nothing when the model runs. Elsewhere (a residual stream that
others read too, a GELU) a Mul on the way to the linear readers does it, which costs one pass over the tensor. There
channels may also be taken out (``equalize.outliers``): their factor is 0. HardSwish and SiLU let factors through at the
price of a pass too (``equalize.gates``).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.equalize.gates import gate_behind
from onnxq.equalize.scaling import Reader, Site, places_of
from onnxq.graph.edit import float_constant, integer, rank, sole_consumer
from onnxq.graph.linear import Linear, linear_ending_at, linear_reading
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Arithmetic, Homogeneous
from onnxq.query import trailing_ones

# A weight below this can be scaled by any factor and stay finite.
_LIMIT = float(np.finfo(np.float32).max) / 2**12


def find_sites(model: ir.Model, *, costly: bool = False) -> list[Site]:
    """All sites of the main graph of a prepared ``model``, in its order; weights that several nodes share stay.

    With ``costly`` also those that make the model compute more (``Site.costs``).
    """
    found = []
    for node in model.graph:
        value = node.outputs[0] if node.outputs else None
        if value is None or value.is_graph_output():
            continue
        channels, axis, layer, constants = _written(node)
        readers = _readers(value, axis) if channels else None
        if readers and all(reader.channels == channels for reader in readers):
            found.append(Site(value.name or "", axis, layer, constants, tuple(readers)))
        elif costly and layer is not None and axis == 1 and (gate := gate_behind(value)) is not None:
            shifts: list[tuple[ir.Node, int]] = []
            readers = _readers(gate.product.outputs[0], axis, shifts)
            if readers and all(reader.channels == channels for reader in readers):
                found.append(Site(value.name or "", axis, layer, (), tuple(readers), gate, tuple(shifts)))
    if costly:
        taken = {site.tensor for site in found} | {reader.tensor for site in found for reader in site.readers}
        values = (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
        found += [site for v in values if v.name and v.name not in taken and (site := _between(v)) is not None]
    return found


def _between(value: ir.Value) -> Site | None:
    """The site at ``value`` whose readers are the linear layers that read its last axis, if there are any."""
    uses = [use for use in value.uses() if use.idx == 0 and use.node.graph is value.graph and _reads(use.node, -1)]
    found = [linear_reading(use.node) for use in uses]
    readers = tuple(Reader(linear, value.name or "", -1) for linear in found if linear is not None)
    alike = len({reader.channels for reader in readers}) == 1
    return Site(value.name or "", -1, None, (), readers) if alike and readers[0].channels > 1 else None


def _written(node: ir.Node) -> tuple[int, int, Linear | None, tuple[tuple[ir.Node, int], ...]]:
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


def _affine(node: ir.Node) -> tuple[tuple[ir.Node, int], ...]:
    """The constants of ``x * scale`` or ``x * scale + shift`` that ``node`` ends, as it ends a layer normalisation."""
    index = next((i for i in range(len(node.inputs)) if float_constant(node.inputs[i]) is not None), None)
    if index is None or operator(node).arithmetic is None:
        return ()
    if _multiplies(node):
        return ((node, index),)
    other = node.inputs[1 - index]
    before = None if other is None else other.producer()
    if before is None or other is None or not _multiplies(before) or sole_consumer(other) is not node:
        return ()
    scale = _affine(before)
    return (*scale, (node, index)) if scale else ()


def _vectors(places: tuple[tuple[ir.Node, int], ...]) -> int:
    """How many numbers each of these constants has, if all are vectors of one length above 1; else 0."""
    sizes = set()
    for node, index in places:
        array = float_constant(node.inputs[index])
        width = rank(node.outputs[0])
        plain = array is not None and array.dtype == np.float32 and array.ndim == 1 and (width or 0) > 1
        sizes.add(array.size if plain and array is not None and np.abs(array).max(initial=0.0) < _LIMIT else 0)
    return sizes.pop() if len(sizes) == 1 and not sizes & {0, 1} else 0


def _readers(value: ir.Value, axis: int, shifts: list[tuple[ir.Node, int]] | None = None) -> list[Reader] | None:
    """All that reads ``value``, or homogeneous operators on it; None unless that is only linear layers.

    What is added for each channel on the way goes into ``shifts``, if there is such a list.
    """
    found: list[Reader] = []
    if value.is_graph_output() or not tuple(value.uses()):
        return None
    for use in value.uses():
        node = use.node
        if _multiplies(node) and axis == 1 and _is_gate_of(node.inputs[1 - use.idx], value):
            behind = _readers(node.outputs[0], axis, shifts)
        elif shifts is not None and axis == 1 and _adds(node) and _is_shift(node.inputs[1 - use.idx], value):
            shifts.append((node, 1 - use.idx))
            behind = _readers(node.outputs[0], axis, shifts)
        elif use.idx != 0:
            return None
        elif _passes(node, axis):
            behind = _readers(node.outputs[0], axis, shifts)
        elif operator(node).flattens and axis == 1 and _is_pooled(value) and integer(node, "axis", 1) == 1:
            behind = _readers(node.outputs[0], -1)
        else:
            linear = linear_reading(node) if _reads(node, axis) else None
            behind = None if linear is None else [Reader(linear, value.name or "", axis)]
        if behind is None:
            return None
        found += behind
    return found


def _multiplies(node: ir.Node) -> bool:
    return operator(node).arithmetic is Arithmetic.PRODUCT


def _adds(node: ir.Node) -> bool:
    return operator(node).arithmetic is Arithmetic.SUM


def _passes(node: ir.Node, axis: int) -> bool:
    """Whether factors of channels on ``axis`` pass through ``node``."""
    which = operator(node).homogeneous
    of_channels = which is Homogeneous.CHANNELS and axis == 1 and len(node.outputs) == 1
    return which is Homogeneous.NUMBERS or of_channels


def _reads(node: ir.Node, axis: int) -> bool:
    """Whether ``node`` is a linear layer that reads channels on ``axis`` with a weight of its own."""
    linear = None if operator(node).slot is None else linear_reading(node)
    if linear is None or linear.axis != axis or integer(node, "transA", 0) or not _alone(node):
        return False
    return bool(np.abs(linear.weight).max(initial=0.0) < _LIMIT)


def _alone(node: ir.Node) -> bool:
    """Whether the weight of the linear ``node`` is read by nothing else: scaled for one, it would be stored twice."""
    weight = node.inputs[1]
    return weight is not None and len(tuple(weight.uses())) == 1


def _is_gate_of(value: ir.Value | None, other: ir.Value) -> bool:
    """Whether ``value`` is a factor for each channel of the map ``other``: squeeze and excite.

    Its own path back to ``other`` begins with a pooling, which is among the readers of ``other`` by itself.
    """
    return value is not None and value is not other and places_of(other) > 0 and trailing_ones(value, places_of(other))


def _is_shift(value: ir.Value | None, other: ir.Value) -> bool:
    """Whether ``value`` is a constant for each channel, or one for all, of the map ``other``."""
    array, places = float_constant(value), places_of(other)
    if array is None or places < 1 or array.ndim > places + 2:
        return False
    channels = array.shape[-places - 1] if array.ndim > places else 1
    return array.dtype == np.float32 and array.size == channels and np.abs(array).max(initial=0.0) < _LIMIT


def _is_pooled(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and operator(producer).pools_all
