"""The constants of a plan in integers: weights in every form of storage, biases, operands of elementwise nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.emit.nbits import block_matmul
from onnxq.emit.packed import Writing, expanded
from onnxq.emit.padded import pad_weight, widened
from onnxq.emit.pieces import Pieces, graph_of
from onnxq.emit.recurrent import Gates, gates, integer_lstm
from onnxq.errors import ModelError
from onnxq.files.scratch import Scratch
from onnxq.graph.edit import is_op
from onnxq.graph.nodes import Before
from onnxq.numerics import Granularity, PerAxis, QuantParams, bias_params
from onnxq.plan.types import Bias, Constant, Plan, Storage, Weight
from onnxq.query import array
from onnxq.weights import Foldable, StoredWeight, WeightFormat

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WeightKey:
    """A weight of a plan: nodes that agree in all of this share one integer tensor."""

    tensor: str
    granularity: Granularity
    stored: WeightFormat


def weight_key(weight: Weight) -> WeightKey:
    """What identifies the parameters of ``weight`` in ``Parameters.weights``."""
    return WeightKey(weight.tensor, weight.granularity, weight.stored)


class Operands(Pieces):
    """A model whose constants become what a plan says (arguments: see ``emit``)."""

    def __init__(
        self,
        model: ir.Model,
        scratch: Scratch | None,
        tensors: Mapping[str, QuantParams],
        weights: Mapping[WeightKey, StoredWeight],
        biases: Mapping[tuple[str, int], F32],
        plan: Plan,
    ) -> None:
        super().__init__(model, scratch)
        self._tensors = tensors
        self._weights = weights
        self._biases = biases
        self._roots = plan.roots
        self._weight_of = {w.node: w for w in plan.weights if w.storage.computes}
        self._accuracy_level, self._native = plan.accuracy_level, plan.native
        self._packed: dict[str, npt.NDArray[np.integer]] = {}
        self._recurrent: dict[str, dict[int, Gates]] = {}

    def weight(self, weight: Weight) -> None:
        node = self.nodes[weight.node]
        quantized = self._quantized(weight)
        chosen = quantized.params
        graph = graph_of(node)
        spelled = Storage.INTEGER if weight.storage.computes else weight.storage
        key = (id(graph), weight_key(weight), spelled, weight.shift, weight.padded_input_channels)
        if weight.storage is Storage.GATHERED:
            self._gather(node, weight, quantized)
            return
        if weight.storage is Storage.DYNAMIC and is_op(node, "LSTM"):
            self._gates(node, weight, quantized)
            return
        if weight.storage is Storage.DYNAMIC:
            self._dynamic(node, weight, quantized)
            return
        if weight.storage is Storage.BLOCKS:
            block_matmul(self, node, weight.tensor, quantized, accuracy_level=self._accuracy_level)
            return
        if key not in self.made:
            chosen = self._shifted(weight)
            stored, padded = quantized.representation, weight.padded_input_channels
            late = not (isinstance(stored, Foldable) and stored.extensible)  # such codes grow when they are unpacked
            codes = expanded(
                self._writing(node, weight),
                widened(quantized.codes, 0 if late else padded),
                stored,
                axis=_channel_axis(weight),
                shift=weight.shift,
            )
            if late and padded:
                codes = pad_weight(self, codes, padded, weight.tensor, place=Before(node))
            if weight.storage is Storage.PACKED:
                scale = chosen.granularity.expand(chosen.scale, quantized.codes.shape)
                if chosen.scale.ndim == scale.ndim:  # one block along the last axis: broadcasting does the rest
                    scale = chosen.scale
                floats = self.node("Cast", [codes], f"{weight.tensor}_codes", place=Before(node), to=ir.DataType.FLOAT)
                factor = self.initializer(graph, f"{weight.tensor}_scale", np.ascontiguousarray(scale))
                self.made[key] = self.node("Mul", [floats, factor], f"{weight.tensor}_expanded", place=Before(node))
            else:
                self.made[key] = self.dequantize(codes, chosen, weight.tensor, place=Before(node))
        shared = self.made[key]
        if weight.storage is Storage.PACKED:
            self._packed[weight.node] = quantized.codes
        node.replace_input_with(weight.index, shared)

    def _gather(self, node: ir.Node, weight: Weight, quantized: StoredWeight) -> None:
        """``Cast(Gather(codes, i)) * Gather(scale, i)``: only the rows that are read become float."""
        graph, tensor = graph_of(node), weight.tensor
        key, scale_key = (id(graph), weight_key(weight), "table"), (id(graph), weight_key(weight), "table scale")
        if key not in self.made:
            self.made[key] = expanded(self._writing(node, weight), quantized.codes, quantized.representation)
            self.made[scale_key] = self.initializer(graph, f"{tensor}_scale", quantized.params.scale)
        index = node.inputs[1]
        codes = self.node("Gather", [self.made[key], index], f"{tensor}_row_codes", place=Before(node), axis=0)
        floats = self.node("Cast", [codes], f"{tensor}_row_values", place=Before(node), to=ir.DataType.FLOAT)
        scales = self.made[scale_key]
        factor = self.node("Gather", [scales, index], f"{tensor}_row_scales", place=Before(node), axis=0)
        rows = self.node("Mul", [floats, factor], f"{tensor}_rows", place=Before(node))
        self.take_over(node.outputs[0], rows)
        graph.remove(node, safe=True)

    def _gates(self, node: ir.Node, weight: Weight, quantized: StoredWeight) -> None:
        """One weight of an LSTM, ``[directions, 4 units, inputs]``; with the other one the node becomes integer."""
        key = (id(graph_of(node)), weight_key(weight), "gates")
        if key not in self.made:
            codes = np.ascontiguousarray(quantized.codes.transpose(0, 2, 1))
            self.made[key] = expanded(self._writing(node, weight), codes, quantized.representation, axis=2)
        known = self._recurrent.setdefault(weight.node, {})
        known[weight.index] = gates(self, node, self.made[key], quantized.params, weight.tensor)
        if len(known) == 2:
            integer_lstm(self, node, known)

    def _dynamic(self, node: ir.Node, weight: Weight, quantized: StoredWeight) -> None:
        """``(q(x) W_q) * (s_x s_w) + bias``, the range of ``x`` measured at every run.

        Spelled as onnxruntime's dynamic quantization is, so that it becomes one DynamicQuantizeMatMul.
        """
        graph, name, x = graph_of(node), weight.tensor, node.inputs[0]
        assert x is not None
        key, scale_key, zero_key = (
            (id(graph), weight_key(weight), part) for part in ("matrix", "matrix scale", "matrix zero")
        )
        if key not in self.made:
            codes, chosen = quantized.codes, quantized.params
            rows = weight.granularity == PerAxis(0)  # a Gemm with transB: MatMulInteger takes columns
            across = np.ascontiguousarray(codes.T if rows else codes)
            self.made[key] = expanded(self._writing(node, weight), across, quantized.representation, axis=1)
            self.made[scale_key] = self.initializer(graph, f"{name}_scale", chosen.scale)
            self.made[zero_key] = self.initializer(graph, f"{name}_zero_point", chosen.zero_point)
        place = Before(node)
        input_key = (id(graph), x.name or "", "dynamic")
        if input_key not in self.made:
            parts = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=self.fresh(f"{x.name}_dynamic"))
            for output, part in zip(parts.outputs, ("codes", "scale", "zero_point"), strict=True):
                output.name = self.fresh(f"{x.name}_dynamic_{part}")
                self.made[(id(graph), x.name or "", f"dynamic {part}")] = output
            graph.insert_before(node, parts)
            self.made[input_key] = parts.outputs[0]
        scale, zero = (self.made[(id(graph), x.name or "", f"dynamic {part}")] for part in ("scale", "zero_point"))
        inputs = [self.made[input_key], self.made[key], zero, self.made[zero_key]]
        sums = self.node("MatMulInteger", inputs, f"{name}_sums", place=place)
        floats = self.node("Cast", [sums], f"{name}_products", place=place, to=ir.DataType.FLOAT)
        factor = self.node("Mul", [scale, self.made[scale_key]], f"{name}_factor", place=place)
        result = self.node("Mul", [floats, factor], f"{name}_result", place=place)
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            result = self.node("Add", [result, node.inputs[2]], f"{name}_biased", place=place)
        self.take_over(node.outputs[0], result)
        graph.remove(node, safe=True)

    def bias(self, bias: Bias) -> None:
        node = self.nodes[bias.node]
        data = self._biases.get((bias.node, bias.index))
        if bias.storage is not Storage.INTEGER:
            if data is not None:
                node.replace_input_with(bias.index, self.initializer(graph_of(node), f"{bias.tensor}_shifted", data))
            return
        data = (self._constant(bias.tensor) if data is None else data).reshape(-1)
        weight, source = self._weight_of[bias.weight_node], self.tensor_params(bias.input)
        chosen = bias_params(source, self._quantized(weight).params)
        codes = self.initializer(graph_of(node), f"{bias.tensor}_quantized", chosen.quantize(data))
        product = np.float32(source.scale) * self._quantized(weight).params.scale
        if weight.stored.packed and product.ndim and np.array_equal(product, chosen.scale):
            # Small beside packed weights: the runtime multiplies the scales when it folds constants.
            factors = [(source, bias.input), (self._shifted(weight), weight.tensor)]
            scales = [self.parameters(graph_of(node), params, name)[0] for params, name in factors]
            scale = self.node("Mul", scales, f"{bias.tensor}_scale", place=Before(node))
            real = self.node("DequantizeLinear", [codes, scale], f"{bias.tensor}_real", place=Before(node), axis=0)
        else:
            real = self.dequantize(codes, chosen, bias.tensor, place=Before(node))
        node.replace_input_with(bias.index, real)

    def normalisation(self, name: str, index: int) -> None:
        """The scale or shift of a layer normalisation; nothing where ``name`` is no such node."""
        node = self.nodes.get(name)
        if node is not None and is_op(node, "LayerNormalization"):
            new = self.initializer(graph_of(node), f"{name}_input_{index}", self._biases[name, index])
            node.replace_input_with(index, new)

    def _shifted(self, weight: Weight) -> QuantParams:
        """The parameters of ``weight`` as they are written."""
        chosen = self._quantized(weight).params
        if not weight.shift:
            return chosen
        moved = chosen.zero_point + chosen.zero_point.dtype.type(weight.shift)
        return replace(chosen, zero_point=moved.astype(chosen.zero_point.dtype))

    def constant(self, constant: Constant) -> None:
        node = self.nodes[constant.node]
        chosen = self.tensor_params(constant.tensor)
        codes = self.initializer(
            graph_of(node), f"{constant.tensor}_quantized", chosen.quantize(self._constant(constant.tensor))
        )
        node.replace_input_with(constant.index, self.dequantize(codes, chosen, constant.tensor, place=Before(node)))

    # -- what the plan's names stand for ----------------------------------------------------------------------------

    def _constant(self, tensor: str) -> F32:
        data = array(self.values[tensor])
        if data is None:
            raise ModelError(f"tensor '{tensor}' is not a constant; the plan does not belong to this model")
        return data.astype(np.float32, copy=False)

    def tensor_params(self, tensor: str) -> QuantParams:
        """The parameters of the tensor or of the one that it shares them with."""
        root = self._roots.get(tensor, tensor)
        if root not in self._tensors:
            raise ModelError(f"tensor '{root}' has no quantization parameters; observe it before emitting")
        return self._tensors[root]

    def _writing(self, node: ir.Node, weight: Weight) -> Writing:
        """What spells ``weight`` in front of ``node``."""
        return Writing(self, weight.tensor, Before(node), self._native)

    def _quantized(self, weight: Weight) -> StoredWeight:
        key = weight_key(weight)
        if key not in self._weights:
            raise ModelError(f"weight '{weight.tensor}' was not quantized")
        return self._weights[key]


def _channel_axis(weight: Weight) -> int:
    """The axis of the output channels; 0 where rows have a scale each."""
    return weight.granularity.axis if isinstance(weight.granularity, PerAxis) else 0
