"""Making nodes and constants in a graph under names that nobody has yet; what ``writer`` spells plans with."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.files.scratch import Scratch
from onnxq.graph.edit import redirect, redirect_output
from onnxq.graph.nodes import After, Before, NodeBuilder, Place
from onnxq.kernels.held import turned
from onnxq.kernels.operators import operator
from onnxq.numerics import INT32, PerAxis, QuantParams
from onnxq.query import nodes, values_by_name


@dataclass(frozen=True)
class First(Before):
    """In front of all that computes, behind what was put there before: ``Pieces.first``."""


class Pieces:
    """A model under construction. ``made`` remembers what was made, by whatever identifies it; ``scratch`` holds it."""

    def __init__(self, model: ir.Model, scratch: Scratch | None = None) -> None:
        self.model, self.scratch = model, scratch or Scratch()
        self.nodes = {n.name or "": n for n in nodes(model)}
        self.values = values_by_name(model)
        self.names = set(self.values) | set(self.nodes)
        self.made: dict[Hashable, ir.Value] = {}
        self._first: set[ir.Node] = set()

    def first(self, graph: ir.Graph) -> First:
        """The place in ``graph`` for what is made of constants and read by several nodes."""
        return First(next(node for node in graph if node not in self._first))

    def drop_unused_initializers(self) -> None:
        """Removes the constants that nothing reads any more, the float weights, and what turned them."""
        for node in list(nodes(self.model)):
            if turned(node.outputs[0] if node.outputs else None):
                self.drop_idle(node)
        for graph in self.model.graphs():
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[name]

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Puts ``new`` in the place of ``old`` for all that reads it, with its name and its type."""
        name = old.name or ""
        redirect(old, new)
        self._renamed(name, old, new)

    def take_over_output(self, old: ir.Value, new: ir.Value) -> None:
        """Makes ``new`` the output of the graph that ``old`` is, with its name; nodes go on reading ``old``."""
        name = old.name or ""
        redirect_output(old, new)
        self._renamed(name, old, new)

    def _renamed(self, name: str, old: ir.Value, new: ir.Value) -> None:
        new.shape, new.type = old.shape, old.type
        old.name = self.fresh(f"{name}_float")
        new.name = name
        self.values[name] = new

    def quantize(self, value: ir.Value, chosen: QuantParams, name: str, *, place: Place) -> ir.Value:
        """``value`` as codes: QuantizeLinear at ``place``, its parts named after ``name``.

        QuantizeLinear saturates where its storage type ends; a type with fewer codes (uint4 in uint8) needs a Clip
        behind it, which no integer kernel takes in: such a model says what fewer bits would do, at the speed of float.
        """
        graph, qtype = graph_of(place.node), chosen.qtype
        scale, zero = self.parameters(graph, chosen, name)
        codes = self.node("QuantizeLinear", [value, scale, zero], f"{name}_codes", place=place)
        storage = np.iinfo(qtype.storage)
        if (qtype.qmin, qtype.qmax) == (storage.min, storage.max):
            return codes
        quantizer = codes.producer()
        assert quantizer is not None
        ends = [
            self.initializer(graph, f"{name}_{end}", np.asarray(code, qtype.storage))
            for end, code in (("qmin", qtype.qmin), ("qmax", qtype.qmax))
        ]
        clipped = After(quantizer) if isinstance(place, After) else place
        return self.node("Clip", [codes, *ends], f"{name}_clipped", place=clipped)

    def dequantize(self, codes: ir.Value, chosen: QuantParams, name: str, *, place: Place) -> ir.Value:
        """``codes`` as floats: DequantizeLinear at ``place``, along the axis of ``chosen`` if it has one."""
        scale, zero = self.parameters(graph_of(place.node), chosen, name)
        # An absent zero point means 0. For int32 biases every fusion accepts that: four bytes a channel saved.
        inputs = [codes, scale] if zero is None else [codes, scale, zero]
        axis = {"axis": chosen.granularity.axis} if isinstance(chosen.granularity, PerAxis) else {}
        return self.node("DequantizeLinear", inputs, f"{name}_dequantized", place=place, **axis)

    def dequantized(self, node: ir.Node) -> tuple[ir.Node, ir.Value]:
        """The DequantizeLinear in front of ``node``, and its codes. Raises ``ModelError`` where there is none."""
        real = node.inputs[0]
        maker = None if real is None else real.producer()
        codes = maker.inputs[0] if maker is not None and operator(maker).kind == "dequantize" else None
        if maker is None or codes is None:
            raise ModelError(f"the input of '{node.name}' is not dequantized; the plan does not belong to this model")
        return maker, codes

    def drop_idle(self, node: ir.Node) -> None:
        """Removes ``node`` where nothing reads its output any more."""
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph_of(node).remove(node, safe=True)

    def parameters(self, graph: ir.Graph, chosen: QuantParams, name: str) -> tuple[ir.Value, ir.Value | None]:
        """Scale and zero point as constants of ``graph``, made once for each tensor; no zero point for int32.

        Zero points of 0 for each channel are shared by all tensors with as many channels.
        """
        key, zero = (id(graph), name, chosen, "scale"), chosen.zero_point
        if key not in self.made:
            self.made[key] = self.initializer(graph, f"{name}_scale", chosen.scale)
        if chosen.qtype == INT32:
            return self.made[key], None
        zero_key: Hashable = (id(graph), name, chosen, "zero point")
        zero_name = f"{name}_zero_point"
        if zero.ndim and not zero.any():
            zero_key, zero_name = (id(graph), zero.dtype.str, zero.shape, "zeros"), f"zero_points_{zero.size}"
        if zero_key not in self.made:
            self.made[zero_key] = self.initializer(graph, zero_name, zero)
        return self.made[key], self.made[zero_key]

    def initializer(self, graph: ir.Graph, name: str, data: npt.NDArray[np.generic]) -> ir.Value:
        """``data`` as a constant of ``graph`` called ``name``, or nearly so where that is taken."""
        name = self.fresh(name)
        value = ir.Value(name=name, const_value=ir.Tensor(self.scratch.kept(np.asarray(data)), name=name))
        value.shape, value.dtype = ir.Shape(data.shape), ir.DataType.from_numpy(data.dtype)
        graph.register_initializer(value)
        return value

    def node(
        self, op: str, inputs: Iterable[ir.Value | None], name: str, *, place: Place, **attributes: Any
    ) -> ir.Value:
        """The output of a new node ``op`` at ``place``; ``name`` is the output's."""
        name = self.fresh(name)
        made = NodeBuilder(place)(op, list(inputs), name=self.fresh(f"{name}_{op}"), output=name, **attributes)
        if isinstance(place, First):
            producer = made.producer()
            assert producer is not None
            self._first.add(producer)
        return made

    def fresh(self, name: str) -> str:
        """``name``, or the first of ``name_2``, ``name_3``, ... that is free; taken from now on."""
        candidate, count = name, 1
        while candidate in self.names:
            count += 1
            candidate = f"{name}_{count}"
        self.names.add(candidate)
        return candidate


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph or body that ``node`` lies in."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def home_of(value: ir.Value, model: ir.Model) -> ir.Graph:
    """The graph or body that ``value`` belongs to."""
    return value.graph if isinstance(value.graph, ir.Graph) else model.graph
