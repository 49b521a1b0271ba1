"""From a float proto to an emitted model, and the same computed in numpy from the plan alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper
from zoo import feeds, prepared

from onnxq.calibrate.runner import run_observers
from onnxq.config import Config
from onnxq.emit import emit, weight_key
from onnxq.graph.io import serialize
from onnxq.kernels.targets import Target, resolve_target
from onnxq.numerics import bias_params, noise
from onnxq.parameters.choose import Parameters, choose
from onnxq.plan import KeptFloat, Plan, SharedWith, Storage, make_plan

# What runs here must be meant for this CPU: without VNNI, 8-bit weights overflow the 16-bit sums of vpmaddubsw.
HERE = resolve_target("auto")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Emitted:
    prepared: ir.Model
    plan: Plan
    parameters: Parameters
    model: ir.Model

    @property
    def content(self) -> bytes:
        return serialize(self.model)

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load_model_from_string(self.content)


def emitted(
    proto: onnx.ModelProto,
    *,
    config: Config | None = None,
    keep_float: dict[str, KeptFloat] | None = None,
    data: list[dict[str, Array]] | None = None,
    target: Target = HERE,
) -> Emitted:
    config = config or Config()
    model = prepared(proto)
    plan = make_plan(model, config, target, keep_float=keep_float)
    seen = run_observers(model, plan.observed, feeds(proto, 8) if data is None else data)
    chosen = choose(model, plan, seen, config)
    return Emitted(model, plan, chosen, emit(model, plan, **vars(chosen)))


def session(model: bytes | onnx.ModelProto, *, optimized: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def sqnr(reference: list[Array], test: list[Array]) -> float:
    """The worst over the outputs, dB."""
    return min(noise(r, t).sqnr_db for r, t in zip(reference, test, strict=True))


def simulate(e: Emitted, feed: dict[str, Array]) -> list[Array]:
    """The outputs of the plan by ``QuantParams.fake_quantize`` and one float operator after another."""
    graph = e.prepared.graph
    source = {p.tensor: p.source.tensor for p in e.plan.points if isinstance(p.source, SharedWith)}
    points = {p.tensor: p for p in e.plan.points}

    def params_of(tensor: str) -> Any:
        while tensor in source:
            tensor = source[tensor]
        return e.parameters.tensors[tensor]

    weight_of = {w.node: e.parameters.weights[weight_key(w)] for w in e.plan.weights}
    constants = {n: v.const_value.numpy() for n, v in graph.initializers.items() if v.const_value is not None}
    replaced: dict[tuple[str, int], Array] = {}
    for w in e.plan.weights:
        replaced[w.node, w.index] = e.parameters.weights[weight_key(w)].dequantize()
    for b in e.plan.biases:
        data = e.parameters.biases.get((b.node, b.index), constants[b.tensor])
        if b.storage is Storage.INTEGER:
            data = bias_params(params_of(b.input), weight_of[b.weight_node].params).fake_quantize(data.reshape(-1))
        replaced[b.node, b.index] = data
    for c in e.plan.constants:
        replaced[c.node, c.index] = e.parameters.tensors[c.tensor].fake_quantize(constants[c.tensor])

    values: dict[str, Array] = {**constants, **feed}

    def read(tensor: str, reader: str | None) -> Array:
        point = points.get(tensor)
        if point is None or (point.consumers is not None and reader not in point.consumers):
            return values[tensor]
        return params_of(tensor).fake_quantize(values[tensor])

    for node in graph:
        name = node.name or ""
        arrays = {
            f"i{k}": replaced[name, k] if (name, k) in replaced else read(v.name or "", name)
            for k, v in enumerate(node.inputs)
            if v is not None
        }
        proto = ir.to_proto(node)
        kept = [k for k, v in enumerate(node.inputs) if v is not None]
        del proto.input[:]
        proto.input.extend(f"i{k}" if k in kept else "" for k in range(len(node.inputs)))
        values.update(_one(proto, arrays, e.prepared.opset_imports[""]))
    return [read(v.name or "", None) for v in graph.outputs]


def _one(node: onnx.NodeProto, arrays: dict[str, Array], opset: int) -> dict[str, Array]:
    kinds = {n: helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype) for n, a in arrays.items()}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, k, np.shape(arrays[n])) for n, k in kinds.items()],
        [onnx.ValueInfoProto(name=n) for n in node.output if n],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    names = [n for n in node.output if n]
    return dict(zip(names, session(proto).run(names, arrays), strict=True))
