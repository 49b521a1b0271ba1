"""Writes a plan into a copy of the float graph: QuantizeLinear and DequantizeLinear, integer weights, int32 biases.

What the patterns must look like for onnxruntime to fuse them is in ``plan``; here they are only spelled out:
scalar scales of rank 0 and explicit zero points for activations, 1-D ones of equal shape for weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.emit.elided import keeps_codes, pass_codes
from onnxq.emit.enlarged import repeat_codes, repeated
from onnxq.emit.fences import fence
from onnxq.emit.fused import fuse_matmul
from onnxq.emit.gates import gate_on_codes, read_by_gates
from onnxq.emit.half import store_half
from onnxq.emit.operands import Operands
from onnxq.emit.padded import pad_input
from onnxq.emit.pieces import graph_of, home_of
from onnxq.emit.pinned import clipped, float_pooling
from onnxq.emit.short_names import shorten
from onnxq.emit.stored import WeightKey
from onnxq.emit.sums import spell_sums
from onnxq.files.scratch import Scratch
from onnxq.graph.copying import copy_model
from onnxq.graph.nodes import After, Before
from onnxq.kernels.operators import operator
from onnxq.numerics import PerAxis, QuantParams
from onnxq.plan.types import Plan, Point, Storage
from onnxq.plan.units import read
from onnxq.query import array
from onnxq.weights import StoredWeight

F32 = npt.NDArray[np.float32]


def emit(
    model: ir.Model,
    plan: Plan,
    *,
    tensors: Mapping[str, QuantParams],
    weights: Mapping[WeightKey, StoredWeight],
    biases: Mapping[tuple[str, int], F32],
    scratch: Scratch | None = None,
    steer: bool = True,
) -> ir.Model:
    """A quantized copy of ``model``, which stays as it is.

    ``tensors`` holds the parameters of every point that owns some and of every constant operand; ``weights`` every
    weight in integers, by ``weight_key``; ``biases``, by node and input, float constants that differ from the model's
    (see ``Parameters``); ``scratch`` holds the constants of the copy. Without ``steer``, what computes the same and
    only makes onnxruntime take another kernel, or the file smaller, is left out. Raises ``ModelError`` naming the
    tensor where a parameter is missing.
    """
    writer = _Writer(copy_model(model), scratch, tensors, weights, biases, plan)
    if steer:
        writer.pooling = float_pooling(writer.model, plan.integer)
    known = frozenset(writer.names)
    # Biases first: a node that measures its input at run time is replaced together with its weight.
    for bias in plan.biases:
        writer.bias(bias)
    for node, index in biases:
        writer.normalisation(node, index)
    for weight in plan.weights:
        writer.weight(weight)
    passing = writer.passing(plan) if steer else []
    for constant in plan.constants:
        writer.constant(constant)
    gates = read_by_gates(writer, plan.integer) if steer else {}
    narrow = {w.node: read(writer.nodes[w.node])[0].name or "" for w in plan.weights if w.padded_input_channels}
    enlarging = repeated(writer, plan.integer) if steer else {}
    for point in plan.points:
        writer.point(point)
    for name, (tensor, own) in gates.items():
        gate_on_codes(writer, name, tensor, writer.tensor_params(tensor), writer.tensor_params(own))
    for name in passing:
        pass_codes(writer, name)
    for weight in plan.weights:
        if weight.padded_input_channels:
            pad_input(writer, weight.node, weight.padded_input_channels, writer.tensor_params(narrow[weight.node]))
    for name, how in enlarging.items():
        repeat_codes(writer, name, how)
    biases_of = {b.weight_node: b for b in plan.biases if b.storage is Storage.FUSED}
    for weight in plan.weights:
        if weight.storage is Storage.FUSED:
            fuse_matmul(writer, weight.node, biases_of.get(weight.node))
    writer.drop_unused_initializers()
    if plan.integer:
        fence(writer)
    if steer:
        spell_sums(writer.model)
        store_half(writer)
    if any(w.stored.packed for w in plan.weights):
        shorten(writer.model, known)
    return writer.model


class _Writer(Operands):
    """``Operands`` with quantizers around activations."""

    pooling: frozenset[str] = frozenset()  # what pooling in float writes, whose quantizer must stay behind it

    def passing(self, plan: Plan) -> list[str]:
        """The nodes that add or multiply a constant, between tensors that are quantized, and keep the codes."""
        whole = {p.tensor for p in plan.points if p.consumers is None}
        found = []
        for constant in plan.constants:
            node = self.nodes[constant.node]
            tensors = [v.name or "" for v in (node.inputs[1 - constant.index], node.outputs[0]) if v is not None]
            if whole.issuperset(tensors):
                before, after = (self.tensor_params(tensor) for tensor in tensors)
                if keeps_codes(node, constant.index, before, after):
                    found.append(constant.node)
        return found

    def point(self, point: Point) -> None:
        value = self.values[point.tensor]
        chosen = self.tensor_params(point.tensor)
        graph = home_of(value, self.model)
        uses = list(value.uses())
        if point.consumers is not None:
            uses = [u for u in uses if (u.node.name or "") in point.consumers]
        producer = value.producer()
        if producer is None:
            first = next(iter(graph))
            codes = self.quantize(value, chosen, point.tensor, place=Before(first))
            real = self.dequantize(codes, chosen, point.tensor, place=Before(first))
        else:
            source, maker = value, producer
            if point.tensor in self.pooling:
                source = clipped(self, value, chosen, place=After(producer))
                maker = source.producer() or producer
            codes = self.quantize(source, chosen, point.tensor, place=After(maker))
            quantizer = codes.producer()
            assert quantizer is not None
            real = self.dequantize(codes, chosen, point.tensor, place=After(quantizer))
        # Kernels are fused only with a DequantizeLinear of their own graph: every If or Loop body gets one.
        reals = {id(real.graph): real}
        for use in uses:
            channels = self._guarded_channels(use.node, use.idx)
            body = graph_of(use.node)
            if channels is not None:
                found = self._spread(codes, chosen, point.tensor, use.node, channels)
            elif id(body) in reals:
                found = reals[id(body)]
            else:
                found = self.dequantize(codes, chosen, point.tensor, place=Before(next(iter(body))))
                reals[id(body)] = found
            use.node.replace_input_with(use.idx, found)
        if point.consumers is None and value.is_graph_output():
            self.take_over_output(value, real)
        elif not real.uses():
            idle = real.producer()
            assert idle is not None
            graph.remove(idle, safe=True)

    def _guarded_channels(self, node: ir.Node, index: int) -> tuple[int, int] | None:
        """(axis, size) of the channels of input ``index`` where the runtime must not quantize the weight of ``node``.

        From 1.21 on onnxruntime's WeightBiasQuantization rounds the float weight of a Conv, ConvTranspose or Gemm to
        int8 per tensor where it lies between a DequantizeLinear with one scale and a QuantizeLinear; so it does that
        of a MatMul whose sum with a bias it has made a Gemm of.
        """
        channels = operator(node).rounded_at_load
        if index != 0 or channels is None or node.name in self._weight_of:
            return None
        weight = array(node.inputs[1])
        if weight is None:
            weight = self._packed.get(node.name or "")
        if weight is None or weight.ndim < 2:
            return None
        return channels(node, weight.shape)

    def _spread(
        self, codes: ir.Value, chosen: QuantParams, name: str, reader: ir.Node, channels: tuple[int, int]
    ) -> ir.Value:
        """``codes`` dequantized by one scale for each channel, all equal: the same numbers, yet no pattern to fuse."""
        axis, size = channels
        scale, zero = np.full(size, chosen.scale), np.full(size, chosen.zero_point)
        each = QuantParams(chosen.qtype, scale, zero, PerAxis(axis))
        return self.dequantize(codes, each, name, place=Before(reader))
