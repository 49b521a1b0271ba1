"""Small models for the tests of onnxq.graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from equivalence import equivalent
from onnx import TensorProto, helper, numpy_helper

from onnxq.graph.prepare import Prepared, prepare
from onnxq.kernels.targets import USUAL

ROUNDING = 2e-5  # float32 sums of a few hundred terms, in another order


def make(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 13,
    types: dict[str, int] | None = None,
    ir_version: int = 8,
    functions: list[onnx.FunctionProto] = (),
    extra_opsets: dict[str, int] | None = None,
    output_ranks: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of ``nodes``; inputs are float32 unless ``types`` says otherwise, outputs have no declared shape."""
    types = types or {}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value(name, types.get(name, TensorProto.FLOAT), shape) for name, shape in inputs.items()],
        [value(name, types.get(name, TensorProto.FLOAT), None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (extra_opsets or {}).items())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions))


def node(op_type: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """``node("Add", "a b", "c")``; a ``-`` stands for an input that is not there."""
    split = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, split, outputs.split(), **attributes)


def check(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], *, tolerance: float = ROUNDING) -> Prepared:
    """Prepares ``proto`` and asserts that it was not changed and that the result computes the same."""
    before = proto.SerializeToString(deterministic=True)
    source = ir.from_proto(proto)
    prepared = prepare(source, target=USUAL)
    deviation = equivalent(source, prepared.model, feeds)
    assert deviation <= tolerance, f"deviation {deviation}"
    assert ir.to_proto(source).graph.node == proto.graph.node
    assert proto.SerializeToString(deterministic=True) == before
    return prepared


def ops(model: ir.Model) -> list[str]:
    """The operator types of ``model``, sorted, bodies included."""
    return sorted(n.op_type for n in model.graph.all_nodes())


def ops_in_order(model: ir.Model) -> list[str]:
    """The operator types of the main graph, in its order."""
    return [n.op_type for n in model.graph]


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
