"""Weights as the file holds them, once for all that read them, and what the runtime makes of them when it loads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.emit.nbits import real_blocks
from onnxq.emit.packed import Writing, expanded
from onnxq.emit.padded import pad_weight, widened
from onnxq.emit.pieces import Pieces, graph_of, home_of
from onnxq.errors import ModelError
from onnxq.files.scratch import Scratch
from onnxq.graph.nodes import Before, Place
from onnxq.numerics import Granularity, PerAxis, QuantParams
from onnxq.plan.types import Plan, Weight
from onnxq.weights import Foldable, StoredWeight, WeightFormat
from onnxq.weights.representation import Nibbles


@dataclass(frozen=True)
class WeightKey:
    """A weight of a plan: nodes that agree in all of this share one integer tensor."""

    tensor: str
    granularity: Granularity
    stored: WeightFormat
    at_load: bool = False


def weight_key(weight: Weight) -> WeightKey:
    """What identifies the parameters of ``weight`` in ``Parameters.weights``."""
    return WeightKey(weight.tensor, weight.granularity, weight.stored, weight.at_load)


class Held(Pieces):
    """A model under construction in which each weight is held once, in the graph that all of its readers see."""

    def __init__(
        self, model: ir.Model, scratch: Scratch | None, weights: Mapping[WeightKey, StoredWeight], plan: Plan
    ) -> None:
        super().__init__(model, scratch)
        self._weights, self._native = weights, plan.native
        self._readers = Counter(w.tensor for w in plan.weights)
        self._owners = {w.tensor: w for w in plan.weights if not w.at_load}

    def quantized(self, weight: Weight) -> StoredWeight:
        """``weight`` in integers. Raises ``ModelError`` where it has none."""
        key = weight_key(weight)
        if key not in self._weights:
            raise ModelError(f"weight '{weight.tensor}' was not quantized")
        return self._weights[key]

    def alone(self, weight: Weight) -> bool:
        """Whether its node alone reads ``weight``, so that it can lie in the file as that wants it."""
        return self._readers[weight.tensor] == 1 and not weight.at_load

    def place(self, weight: Weight) -> Place:
        """Where what is made of ``weight`` at load stands: in front of its reader, or of all where there are more."""
        if self.alone(weight):
            return Before(self.nodes[weight.node])
        return self.first(home_of(self.values[weight.tensor], self.model))

    def codes(self, weight: Weight, *, order: tuple[int, ...] = ()) -> ir.Value:
        """The codes of ``weight``, int8, their axes in ``order`` (those of the tensor where it is empty)."""
        if self.alone(weight):
            return self._spelled(weight, order)
        padded, bare = weight.padded_input_channels, replace(weight, padded_input_channels=0)
        key = (id(graph_of(self.place(weight).node)), weight_key(weight), weight.shift)
        wide = (*key, padded)
        if key not in self.made:
            self.made[key] = self._rounded(bare) if weight.at_load else self._spelled(bare)
        if padded and wide not in self.made:
            self.made[wide] = pad_weight(self, self.made[key], padded, weight.tensor, place=self.place(weight))
        return self.in_order(weight, self.made[wide if padded else key], order)

    def real(self, weight: Weight) -> ir.Value:
        """The values of ``weight`` in float, as they are in the tensor."""
        owner = self._owners.get(weight.tensor)
        if owner is None:  # something else needs them
            return self.values[weight.tensor]
        place = self.place(owner)
        key = (id(graph_of(place.node)), weight_key(owner), "real")
        if key not in self.made:
            quantized, name = self.quantized(owner), weight.tensor
            if isinstance(quantized.representation, Nibbles):
                self.made[key] = real_blocks(self, name, quantized, place)
            else:
                codes, factor = self.codes(replace(owner, padded_input_channels=0)), self.factor(owner)
                floats = self.node("Cast", [codes], f"{name}_codes", place=self.place(owner), to=ir.DataType.FLOAT)
                self.made[key] = self.node("Mul", [floats, factor], f"{name}_expanded", place=self.place(owner))
        return self.made[key]

    def in_order(self, weight: Weight, value: ir.Value, order: tuple[int, ...]) -> ir.Value:
        """``value``, made of ``weight`` in front of all readers, with its axes in ``order``."""
        if not order:
            return value
        key = (value.name, order)
        if key not in self.made:
            name = f"{weight.tensor}_in_order"
            self.made[key] = self.node("Transpose", [value], name, place=self.place(weight), perm=list(order))
        return self.made[key]

    def factor(self, weight: Weight) -> ir.Value:
        """The scales of ``weight`` in a shape that multiplies its codes."""
        quantized = self.quantized(weight)
        chosen, shape = quantized.params, quantized.codes.shape
        spread = chosen.scale
        if isinstance(chosen.granularity, PerAxis):
            spread = np.asarray(chosen.granularity.expand(chosen.scale, shape), np.float32)
        return self.scale_as(weight, tuple(spread.shape))

    def scale_as(self, weight: Weight, shape: tuple[int, ...]) -> ir.Value:
        """The scales of ``weight`` in ``shape``."""
        chosen, place = self.quantized(weight).params, self.place(weight)
        graph, name = graph_of(place.node), f"{weight.tensor}_scale"
        if self.alone(weight):
            return self.initializer(graph, name, np.ascontiguousarray(chosen.scale.reshape(shape)))
        scale = self.weight_parameters(weight, chosen)[0]
        if chosen.scale.shape == shape:
            return scale
        key = (id(graph), weight_key(weight), "scale", shape)
        if key not in self.made:
            target = self.initializer(graph, f"{name}_shape", np.asarray(shape, np.int64))
            self.made[key] = self.node("Reshape", [scale, target], name, place=self.place(weight))
        return self.made[key]

    def weight_parameters(self, weight: Weight, chosen: QuantParams) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of ``weight``, ``chosen`` for it, as constants that all of its readers see."""
        scale, zero = self.parameters(graph_of(self.place(weight).node), chosen, weight.tensor)
        assert zero is not None
        return scale, zero

    def shifted(self, weight: Weight) -> QuantParams:
        """The parameters of ``weight`` as they are written."""
        chosen = self.quantized(weight).params
        if not weight.shift:
            return chosen
        moved = chosen.zero_point + chosen.zero_point.dtype.type(weight.shift)
        return replace(chosen, zero_point=moved.astype(chosen.zero_point.dtype))

    def _spelled(self, weight: Weight, order: tuple[int, ...] = ()) -> ir.Value:
        """The codes of ``weight`` out of what the file holds."""
        quantized, place = self.quantized(weight), self.place(weight)
        stored, codes, padded = quantized.representation, quantized.codes, weight.padded_input_channels
        by: Granularity = weight.granularity
        if order:
            codes = np.ascontiguousarray(codes.transpose(order))
            by = PerAxis(order.index(by.axis)) if isinstance(by, PerAxis) else PerAxis(codes.ndim - 1)
        late = not (isinstance(stored, Foldable) and stored.extensible)  # such codes grow when they are unpacked
        writing = Writing(self, weight.tensor, place, self._native)
        wide = widened(codes, 0 if late else padded)
        value = expanded(writing, wide, stored, by, shift=weight.shift)
        return pad_weight(self, value, padded, weight.tensor, place=place) if late and padded else value

    def _rounded(self, weight: Weight) -> ir.Value:
        """The codes of ``weight`` out of floats."""
        real, chosen = self.real(weight), self.shifted(weight)
        scale, zero = self.weight_parameters(weight, chosen)
        axis = {"axis": chosen.granularity.axis} if isinstance(chosen.granularity, PerAxis) else {}
        place = self.place(weight)
        return self.node("QuantizeLinear", [real, scale, zero], f"{weight.tensor}_rounded", place=place, **axis)
