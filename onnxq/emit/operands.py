"""The constants of a plan in integers: weights in every form of storage, biases, operands of elementwise nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.emit import recurrent
from onnxq.emit.nbits import block_matmul, gathered_blocks
from onnxq.emit.pieces import graph_of
from onnxq.emit.recurrent import Gates, gates, integer_lstm, widened
from onnxq.emit.stored import Held, WeightKey, weight_key
from onnxq.emit.two_parts import Columns, in_two_parts, rounded_at_run
from onnxq.errors import ModelError
from onnxq.files.scratch import Scratch
from onnxq.graph.edit import is_op
from onnxq.graph.nodes import Before, NodeBuilder
from onnxq.kernels.held import across
from onnxq.numerics import PerAxis, QuantParams, bias_params
from onnxq.plan.types import Bias, Constant, Plan, Storage, Weight
from onnxq.query import array
from onnxq.weights import StoredWeight
from onnxq.weights.representation import Nibbles

F32 = npt.NDArray[np.float32]


class Operands(Held):
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
        super().__init__(model, scratch, weights, plan)
        self._tensors = tensors
        self._biases = biases
        self._roots = plan.roots
        self._weight_of = {w.node: w for w in plan.weights if w.storage.computes}
        self._bias_of = {b.weight_node: b for b in plan.biases if b.storage is Storage.TWO_PARTS}
        self._accuracy_level = plan.accuracy_level
        self._packed: dict[str, npt.NDArray[np.integer]] = {}
        self._recurrent: dict[str, dict[int, Gates]] = {}
        self._made_gates: dict[tuple[WeightKey, bool], Gates] = {}

    def weight(self, weight: Weight) -> None:
        node = self.nodes[weight.node]
        if weight.storage is Storage.GATHERED:
            self._gather(node, weight)
        elif weight.storage.measures and is_op(node, "LSTM"):
            self._gates(node, weight)
        elif weight.storage is Storage.DYNAMIC:
            self._dynamic(node, weight)
        elif weight.storage is Storage.TWO_PARTS:
            in_two_parts(self, node, self._columns(weight), self._bias_of.get(weight.node))
        elif weight.storage is Storage.BLOCKS:
            place, level = self.place(weight), self._accuracy_level
            block_matmul(self, node, weight.tensor, self.quantized(weight), place, accuracy_level=level)
        elif weight.storage is Storage.PACKED:
            self._packed[weight.node] = self.quantized(weight).codes
            order = across(self.quantized(weight).codes.ndim) if weight.turned else ()
            node.replace_input_with(weight.index, self.in_order(weight, self.real(weight), order))
        else:
            node.replace_input_with(weight.index, self._dequantized(weight))

    def _dequantized(self, weight: Weight) -> ir.Value:
        """The values of ``weight`` for an integer kernel, out of a DequantizeLinear in the graph of its node."""
        node, chosen = self.nodes[weight.node], self.shifted(weight)
        outer = (weight_key(weight), weight.shift, weight.padded_input_channels, weight.turned)
        key = (id(graph_of(node)), outer, "dequantized")
        if key not in self.made:
            codes = self.codes(weight, order=across(2) if weight.turned else ())
            scale, zero = self.weight_parameters(weight, chosen)
            of = chosen.granularity
            axis = {"axis": 1 - of.axis if weight.turned else of.axis} if isinstance(of, PerAxis) else {}
            inputs, place = [codes, scale, zero], Before(node) if self.alone(weight) else self.first(graph_of(node))
            self.made[key] = self.node("DequantizeLinear", inputs, f"{weight.tensor}_dequantized", place=place, **axis)
        return self.made[key]

    def _gather(self, node: ir.Node, weight: Weight) -> None:
        """``Cast(Gather(codes, i)) * Gather(scale, i)``: only the rows that are read become float."""
        quantized, tensor, index = self.quantized(weight), weight.tensor, node.inputs[1]
        assert index is not None
        if isinstance(quantized.representation, Nibbles):
            rows = gathered_blocks(self, index, tensor, quantized, self.place(weight), Before(node))
        else:
            table, scales = self._table(weight)
            place = Before(node)
            codes = self.node("Gather", [table, index], f"{tensor}_row_codes", place=place, axis=0)
            floats = self.node("Cast", [codes], f"{tensor}_row_values", place=place, to=ir.DataType.FLOAT)
            factor = self.node("Gather", [scales, index], f"{tensor}_row_scales", place=place, axis=0)
            rows = self.node("Mul", [floats, factor], f"{tensor}_rows", place=place)
        self.take_over(node.outputs[0], rows)
        graph_of(node).remove(node, safe=True)

    def _table(self, weight: Weight) -> tuple[ir.Value, ir.Value]:
        """Codes of the rows of a table, and a column of their scales."""
        return self.codes(weight), self.scale_as(weight, (len(self.quantized(weight).codes), 1))

    def _gates(self, node: ir.Node, weight: Weight) -> None:
        """One weight of an LSTM, ``[directions, 4 units, inputs]``; with the other one the node becomes integer."""
        twice = weight.storage is Storage.TWO_PARTS
        key, quantized = (weight_key(weight), twice), self.quantized(weight)
        if key not in self._made_gates:
            graph = graph_of(self.place(weight).node)
            if twice:
                codes = self.initializer(graph, f"{weight.tensor}_twice", widened(quantized.codes))
            else:
                codes = self.codes(weight, order=(0, 2, 1))
            self._made_gates[key] = gates(self, graph, codes, quantized.params, weight.tensor)
        if twice:
            recurrent.in_two_parts(self, node)
        known = self._recurrent.setdefault(weight.node, {})
        known[weight.index] = self._made_gates[key]
        if len(known) == 2:
            integer_lstm(self, node, known)

    def _columns(self, weight: Weight) -> Columns:
        """The codes of ``weight`` as products of integers take them, inputs first, and their parameters."""
        rows = weight.granularity == PerAxis(0)
        codes = self.codes(weight, order=across(2) if rows else ())
        quantized = self.quantized(weight)
        outputs = quantized.codes.shape[0 if rows else 1]
        return Columns(codes, *self.weight_parameters(weight, quantized.params), outputs)

    def _dynamic(self, node: ir.Node, weight: Weight) -> None:
        """``(q(x) W_q) * (s_x s_w) + bias``, the range of ``x`` measured at every run.

        Spelled as onnxruntime's dynamic quantization is, so that it becomes one DynamicQuantizeMatMul.
        """
        graph, name, x = graph_of(node), weight.tensor, node.inputs[0]
        assert x is not None
        place = Before(node)
        codes, weight_scale, weight_zero, _ = self._columns(weight)
        x_codes, scale, zero = rounded_at_run(self, x, node)
        inputs = [x_codes, codes, zero, weight_zero]
        # Under the layer's own name, by which reports speak of it.
        product = NodeBuilder(place).node(
            "MatMulInteger", inputs, name=node.name or "", outputs=(self.fresh(f"{name}_sums"),)
        )
        sums = product.outputs[0]
        floats = self.node("Cast", [sums], f"{name}_products", place=place, to=ir.DataType.FLOAT)
        factor = self.node("Mul", [scale, weight_scale], f"{name}_factor", place=place)
        result = self.node("Mul", [floats, factor], f"{name}_result", place=place)
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            result = self.node("Add", [result, node.inputs[2]], f"{name}_biased", place=place)
        self.take_over(node.outputs[0], result)
        graph.remove(node, safe=True)
        self.nodes[node.name or ""] = product

    def bias(self, bias: Bias) -> None:
        node = self.nodes[bias.node]
        data = self._biases.get((bias.node, bias.index))
        if bias.storage is not Storage.INTEGER:
            if data is not None:
                node.replace_input_with(bias.index, self.initializer(graph_of(node), f"{bias.tensor}_shifted", data))
            return
        data = (self._constant(bias.tensor) if data is None else data).reshape(-1)
        weight, source = self._weight_of[bias.weight_node], self.tensor_params(bias.input)
        chosen = bias_params(source, self.quantized(weight).params)
        codes = self.initializer(graph_of(node), f"{bias.tensor}_quantized", chosen.quantize(data))
        product = np.float32(source.scale) * self.quantized(weight).params.scale
        if weight.stored.packed and product.ndim and np.array_equal(product, chosen.scale):
            # Small beside packed weights: the runtime multiplies the scales when it folds constants.
            of_input = self.parameters(graph_of(node), source, bias.input)[0]
            scales = [of_input, self.weight_parameters(weight, self.shifted(weight))[0]]
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
            raise ModelError(f"tensor '{root}' has no quantization parameters", hint="observe it before emitting")
        return self._tensors[root]
