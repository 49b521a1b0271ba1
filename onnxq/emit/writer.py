"""Writes a plan into a copy of the float graph: QuantizeLinear and DequantizeLinear, integer weights, int32 biases.

What the patterns must look like for onnxruntime to fuse them is in ``plan``; here they are only spelled out:
scalar scales of rank 0 and explicit zero points for activations, 1-D ones of equal shape for weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.copying import copy_model
from onnxq.graph.query import array, attribute, nodes, values_by_name
from onnxq.numerics import INT32, PerAxis, QuantParams, bias_params
from onnxq.plan.types import Bias, Constant, Plan, Point, SharedWith, Storage, Weight

WeightKey = tuple[str, str]  # tensor and granularity: nodes that agree in both share one integer tensor


def weight_key(weight: Weight) -> WeightKey:
    """What identifies the parameters of ``weight`` in ``Parameters.weights``."""
    return weight.tensor, str(weight.granularity)


@dataclass(frozen=True)
class _Before:
    """New nodes go in front of ``node``."""

    node: ir.Node


@dataclass(frozen=True)
class _After:
    """New nodes go behind ``node``."""

    node: ir.Node


_Place = _Before | _After

# Operators whose float weights onnxruntime may quantize on its own when it loads a model.
_ROUNDED_AT_LOAD = frozenset({"Conv", "ConvTranspose", "Gemm"})


def emit(
    model: ir.Model,
    plan: Plan,
    *,
    tensors: dict[str, QuantParams],
    weights: dict[WeightKey, QuantParams],
) -> ir.Model:
    """A quantized copy of ``model``, which stays as it is.

    ``tensors`` holds the parameters of every point that owns some and of every constant operand; ``weights`` those of
    every weight, by ``weight_key``. Raises ``ModelError`` naming the tensor where one is missing.
    """
    writer = _Writer(copy_model(model), tensors, weights, plan)
    for weight in plan.weights:
        writer.weight(weight)
    for bias in plan.biases:
        writer.bias(bias)
    for constant in plan.constants:
        writer.constant(constant)
    for point in plan.points:
        writer.point(point)
    writer.drop_unused_initializers()
    return writer.model


class _Writer:
    def __init__(
        self, model: ir.Model, tensors: dict[str, QuantParams], weights: dict[WeightKey, QuantParams], plan: Plan
    ) -> None:
        self.model = model
        self._tensors = tensors
        self._weights = weights
        self._nodes = {n.name or "": n for n in nodes(model)}
        self._values = values_by_name(model)
        self._names = set(self._values) | set(self._nodes)
        self._source = {p.tensor: p.source.tensor for p in plan.points if isinstance(p.source, SharedWith)}
        self._weight_of = {w.node: w for w in plan.weights if w.storage is Storage.INTEGER}
        self._packed: dict[str, npt.NDArray[np.float32]] = {}
        self._made: dict[tuple[int, str, str], ir.Value] = {}

    # -- the parts of a plan ---------------------------------------------------------------------------------------

    def weight(self, weight: Weight) -> None:
        node = self._nodes[weight.node]
        chosen = self._weight_params(weight)
        data = self._constant(weight.tensor)
        graph = _graph(node)
        key = (id(graph), weight.tensor, f"{weight.granularity} {weight.storage.value}")
        if weight.storage is Storage.GATHERED:
            self._gather(node, weight.tensor, data, chosen)
            return
        if weight.storage is Storage.DYNAMIC:
            self._dynamic(node, weight, chosen, data)
            return
        if key not in self._made:
            codes = self._initializer(graph, f"{weight.tensor}_quantized", chosen.quantize(data))
            if weight.storage is Storage.PACKED:
                scale = chosen.granularity.expand(chosen.scale, data.shape)
                if chosen.scale.ndim == data.ndim:  # one block along the last axis: broadcasting does the rest
                    scale = chosen.scale
                floats = self._node(
                    "Cast", [codes], f"{weight.tensor}_codes", place=_Before(node), to=ir.DataType.FLOAT
                )
                factor = self._initializer(graph, f"{weight.tensor}_scale", np.ascontiguousarray(scale))
                self._made[key] = self._node("Mul", [floats, factor], f"{weight.tensor}_expanded", place=_Before(node))
            else:
                self._made[key] = self._dequantize(codes, chosen, weight.tensor, place=_Before(node))
        shared = self._made[key]
        if weight.storage is Storage.PACKED:
            self._packed[weight.node] = data
        node.replace_input_with(weight.index, shared)

    def _gather(self, node: ir.Node, tensor: str, data: npt.NDArray[np.float32], chosen: QuantParams) -> None:
        """``Cast(Gather(codes, i)) * Gather(scale, i)``: only the rows that are read become float."""
        graph = _graph(node)
        key, scale_key = (id(graph), tensor, "table"), (id(graph), tensor, "table scale")
        if key not in self._made:
            self._made[key] = self._initializer(graph, f"{tensor}_quantized", chosen.quantize(data))
            self._made[scale_key] = self._initializer(graph, f"{tensor}_scale", chosen.scale)
        index = node.inputs[1]
        codes = self._node("Gather", [self._made[key], index], f"{tensor}_row_codes", place=_Before(node), axis=0)
        floats = self._node("Cast", [codes], f"{tensor}_row_values", place=_Before(node), to=ir.DataType.FLOAT)
        scales = self._made[scale_key]
        factor = self._node("Gather", [scales, index], f"{tensor}_row_scales", place=_Before(node), axis=0)
        rows = self._node("Mul", [floats, factor], f"{tensor}_rows", place=_Before(node))
        for use in list(node.outputs[0].uses()):
            use.node.replace_input_with(use.idx, rows)
        self._take_over(node.outputs[0], rows)
        graph.remove(node, safe=True)

    def _dynamic(self, node: ir.Node, weight: Weight, chosen: QuantParams, data: npt.NDArray[np.float32]) -> None:
        """``(q(x) W_q) * (s_x s_w) + bias``, the range of ``x`` measured at every run.

        Spelled as onnxruntime's dynamic quantization is, so that it becomes one DynamicQuantizeMatMul.
        """
        graph, name, x = _graph(node), weight.tensor, node.inputs[0]
        assert x is not None
        key, scale_key = (id(graph), name, f"{weight.granularity} matrix"), (id(graph), name, "matrix scale")
        zero_key = (id(graph), name, "matrix zero")
        if key not in self._made:
            codes = chosen.quantize(data)
            rows = weight.granularity == PerAxis(0)  # a Gemm with transB: MatMulInteger takes columns
            self._made[key] = self._initializer(
                graph, f"{name}_quantized", np.ascontiguousarray(codes.T if rows else codes)
            )
            self._made[scale_key] = self._initializer(graph, f"{name}_scale", chosen.scale)
            self._made[zero_key] = self._initializer(graph, f"{name}_zero_point", chosen.zero_point)
        place = _Before(node)
        quantized = (id(graph), x.name or "", "dynamic")
        if quantized not in self._made:
            parts = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=self._fresh(f"{x.name}_dynamic"))
            for output, part in zip(parts.outputs, ("codes", "scale", "zero_point"), strict=True):
                output.name = self._fresh(f"{x.name}_dynamic_{part}")
                self._made[(id(graph), x.name or "", f"dynamic {part}")] = output
            graph.insert_before(node, parts)
            self._made[quantized] = parts.outputs[0]
        scale, zero = (self._made[(id(graph), x.name or "", f"dynamic {part}")] for part in ("scale", "zero_point"))
        inputs = [self._made[quantized], self._made[key], zero, self._made[zero_key]]
        sums = self._node("MatMulInteger", inputs, f"{name}_sums", place=place)
        floats = self._node("Cast", [sums], f"{name}_products", place=place, to=ir.DataType.FLOAT)
        factor = self._node("Mul", [scale, self._made[scale_key]], f"{name}_factor", place=place)
        result = self._node("Mul", [floats, factor], f"{name}_result", place=place)
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            result = self._node("Add", [result, node.inputs[2]], f"{name}_biased", place=place)
        for use in list(node.outputs[0].uses()):
            use.node.replace_input_with(use.idx, result)
        self._take_over(node.outputs[0], result)
        graph.remove(node, safe=True)

    def bias(self, bias: Bias) -> None:
        node = self._nodes[bias.node]
        data = self._constant(bias.tensor).reshape(-1)
        chosen = bias_params(self._tensor_params(bias.input), self._weight_params(self._weight_of[bias.weight_node]))
        codes = self._initializer(_graph(node), f"{bias.tensor}_quantized", chosen.quantize(data))
        node.replace_input_with(bias.index, self._dequantize(codes, chosen, bias.tensor, place=_Before(node)))

    def constant(self, constant: Constant) -> None:
        node = self._nodes[constant.node]
        chosen = self._tensor_params(constant.tensor)
        codes = self._initializer(
            _graph(node), f"{constant.tensor}_quantized", chosen.quantize(self._constant(constant.tensor))
        )
        node.replace_input_with(constant.index, self._dequantize(codes, chosen, constant.tensor, place=_Before(node)))

    def point(self, point: Point) -> None:
        value = self._values[point.tensor]
        chosen = self._tensor_params(point.tensor)
        graph = _home(value, self.model)
        uses = list(value.uses())
        if point.consumers is not None:
            uses = [u for u in uses if (u.node.name or "") in point.consumers]
        producer = value.producer()
        if producer is None:
            first = next(iter(graph))
            codes = self._quantize(value, chosen, point.tensor, place=_Before(first))
            real = self._dequantize(codes, chosen, point.tensor, place=_Before(first))
        else:
            codes = self._quantize(value, chosen, point.tensor, place=_After(producer))
            quantizer = codes.producer()
            assert quantizer is not None
            real = self._dequantize(codes, chosen, point.tensor, place=_After(quantizer))
        # Kernels are fused only with a DequantizeLinear of their own graph: every If or Loop body gets one.
        reals = {id(real.graph): real}
        for use in uses:
            channels = self._guarded_channels(use.node, use.idx)
            body = _graph(use.node)
            if channels is not None:
                found = self._spread(codes, chosen, point.tensor, use.node, channels)
            elif id(body) in reals:
                found = reals[id(body)]
            else:
                found = self._dequantize(codes, chosen, point.tensor, place=_Before(next(iter(body))))
                reals[id(body)] = found
            use.node.replace_input_with(use.idx, found)
        if point.consumers is None and value.is_graph_output():
            self._take_over(value, real)
        elif not real.uses():
            idle = real.producer()
            assert idle is not None
            graph.remove(idle, safe=True)

    def _guarded_channels(self, node: ir.Node, index: int) -> tuple[int, int] | None:
        """(axis, size) of the channels of input ``index`` where the runtime must not quantize the weight of ``node``.

        From 1.21 on onnxruntime's WeightBiasQuantization rounds the float weight of a Conv, ConvTranspose or Gemm to
        int8 per tensor where it lies between a DequantizeLinear with one scale and a QuantizeLinear.
        """
        if index != 0 or node.domain or node.op_type not in _ROUNDED_AT_LOAD or node.name in self._weight_of:
            return None
        weight = array(node.inputs[1])
        if weight is None:
            weight = self._packed.get(node.name or "")
        if weight is None or weight.ndim < 2:
            return None
        if node.op_type == "Gemm":
            return 1 - int(attribute(node, "transA", 0)), weight.shape[1 if attribute(node, "transB", 0) else 0]
        group = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
        return 1, weight.shape[1 if node.op_type == "Conv" else 0] * group

    def _spread(
        self, codes: ir.Value, chosen: QuantParams, name: str, reader: ir.Node, channels: tuple[int, int]
    ) -> ir.Value:
        """``codes`` dequantized by one scale for each channel, all equal: the same numbers, yet no pattern to fuse."""
        axis, size = channels
        scale, zero = np.full(size, chosen.scale), np.full(size, chosen.zero_point)
        each = QuantParams(chosen.qtype, scale, zero, PerAxis(axis))
        return self._dequantize(codes, each, name, place=_Before(reader))

    # -- pieces ------------------------------------------------------------------------------------------------------

    def drop_unused_initializers(self) -> None:
        for graph in self.model.graphs():
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[name]

    def _take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Gives ``new`` the name of ``old``, its type, and its place among the outputs of the graph."""
        graph = _home(old, self.model)
        name, new.shape, new.type = old.name or "", old.shape, old.type
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        old.name = self._fresh(f"{name}_float")
        new.name = name
        self._values[name] = new

    def _quantize(self, value: ir.Value, chosen: QuantParams, name: str, *, place: _Place) -> ir.Value:
        scale, zero = self._parameters(_graph(place.node), chosen, name)
        return self._node("QuantizeLinear", [value, scale, zero], f"{name}_codes", place=place)

    def _dequantize(self, codes: ir.Value, chosen: QuantParams, name: str, *, place: _Place) -> ir.Value:
        scale, zero = self._parameters(_graph(place.node), chosen, name)
        # An absent zero point means 0. For int32 biases every fusion accepts that: four bytes a channel saved.
        inputs = [codes, scale] if zero is None else [codes, scale, zero]
        axis = {"axis": chosen.granularity.axis} if isinstance(chosen.granularity, PerAxis) else {}
        return self._node("DequantizeLinear", inputs, f"{name}_dequantized", place=place, **axis)

    def _parameters(self, graph: ir.Graph, chosen: QuantParams, name: str) -> tuple[ir.Value, ir.Value | None]:
        key, zero_key = (id(graph), name, f"{hash(chosen)} scale"), (id(graph), name, f"{hash(chosen)} zero")
        if key not in self._made:
            self._made[key] = self._initializer(graph, f"{name}_scale", chosen.scale)
            if chosen.qtype != INT32:
                self._made[zero_key] = self._initializer(graph, f"{name}_zero_point", chosen.zero_point)
        return self._made[key], self._made.get(zero_key)

    def _initializer(self, graph: ir.Graph, name: str, data: npt.NDArray[np.generic]) -> ir.Value:
        name = self._fresh(name)
        value = ir.Value(name=name, const_value=ir.Tensor(np.asarray(data), name=name))
        value.shape, value.dtype = ir.Shape(data.shape), ir.DataType.from_numpy(data.dtype)
        graph.register_initializer(value)
        return value

    def _node(
        self, op: str, inputs: Iterable[ir.Value | None], name: str, *, place: _Place, **attributes: int
    ) -> ir.Value:
        name = self._fresh(name)
        node = ir.node(op, list(inputs), attributes or None, name=self._fresh(f"{name}_{op}"))
        node.outputs[0].name = name
        if isinstance(place, _Before):
            _graph(place.node).insert_before(place.node, node)
        else:
            _graph(place.node).insert_after(place.node, node)
        return node.outputs[0]

    def _fresh(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate

    def _constant(self, tensor: str) -> npt.NDArray[np.float32]:
        data = array(self._values[tensor])
        if data is None:
            raise ModelError(f"tensor '{tensor}' is not a constant; the plan does not belong to this model")
        return data.astype(np.float32, copy=False)

    def _tensor_params(self, tensor: str) -> QuantParams:
        root = tensor
        while root in self._source:
            root = self._source[root]
        if root not in self._tensors:
            raise ModelError(f"tensor '{root}' has no quantization parameters; observe it before emitting")
        return self._tensors[root]

    def _weight_params(self, weight: Weight) -> QuantParams:
        key = weight_key(weight)
        if key not in self._weights:
            raise ModelError(f"weight '{weight.tensor}' has no quantization parameters")
        return self._weights[key]


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _home(value: ir.Value, model: ir.Model) -> ir.Graph:
    return value.graph if isinstance(value.graph, ir.Graph) else model.graph
