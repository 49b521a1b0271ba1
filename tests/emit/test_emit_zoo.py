"""Every network of the zoo, emitted: it loads, runs on integer kernels, and computes what its plan says."""

from __future__ import annotations

from functools import lru_cache

import onnx
import onnx_ir as ir
import pytest
from emitting import Emitted, emitted, session, simulate, sqnr
from zoo import ZOO, feeds

from onnxq.measure.assignment import assignments
from onnxq.measure.kernels import kernel_map

# Static models without bodies: what the simulation can follow.
FLAT = sorted(set(ZOO) - {"if_body", "loop_body"})

# dB. Eight bits give 30 to 45 dB on these networks of up to five layers; a wrong scale, axis or bias gives 5 or less.
CLOSE_TO_FLOAT = 20.0
# dB. Unoptimised, the emitted model computes exactly the simulation up to the order of float sums, which flips a code
# where a value falls on a tie. Integer kernels requantize in one step and so differ by a code more often.
SAME_AS_SIMULATED = 45.0
SAME_ON_INTEGERS = 33.0


@lru_cache
def made(name: str) -> Emitted:
    return emitted(ZOO[name]())


@pytest.mark.parametrize("name", ZOO)
def test_every_anchor_runs_in_an_integer_kernel(name: str) -> None:
    e = made(name)
    found = {f.node: f for f in assignments(e.content, kernel_map(e.content))}
    assert {n: found[n].kernel for n in e.plan.anchors if not found[n].integer} == {}
    assert "MatMulNBits" not in {found[n].kernel for n in e.plan.anchors}  # weights only: activations stay float


@pytest.mark.parametrize("name", ZOO)
def test_no_weight_is_dequantized_on_every_run(name: str) -> None:
    assert [k.name for k in kernel_map(made(name).content).waste if k.waste >= 64] == []


@pytest.mark.parametrize("name", ZOO)
def test_close_to_float(name: str) -> None:
    proto = ZOO[name]()
    (feed,) = feeds(proto, 1, seed=99)
    level = sqnr(session(proto).run(None, feed), session(made(name).content).run(None, feed))
    assert level >= CLOSE_TO_FLOAT


@pytest.mark.parametrize("name", FLAT)
def test_computes_what_the_plan_says(name: str) -> None:
    e = made(name)
    (feed,) = feeds(ZOO[name](), 1, seed=98)
    expected = simulate(e, feed)
    assert sqnr(expected, session(e.content, optimized=False).run(None, feed)) >= SAME_AS_SIMULATED
    assert sqnr(expected, session(e.content).run(None, feed)) >= SAME_ON_INTEGERS


@pytest.mark.parametrize("name", ZOO)
def test_inputs_and_outputs_are_those_of_the_float_model(name: str) -> None:
    proto, quantized = ZOO[name](), made(name).proto
    onnx.checker.check_model(quantized, full_check=True)
    assert list(quantized.graph.input) == list(proto.graph.input)
    assert [(o.name, o.type.tensor_type.elem_type) for o in quantized.graph.output] == [
        (o.name, o.type.tensor_type.elem_type) for o in proto.graph.output
    ]


@pytest.mark.parametrize("name", ZOO)
def test_names_are_unique(name: str) -> None:
    values: list[str] = []
    labels: list[str] = []
    graphs = [made(name).proto.graph]
    while graphs:
        graph = graphs.pop()
        values += [t.name for t in graph.initializer] + [o for n in graph.node for o in n.output if o]
        values += [i.name for i in graph.input]
        labels += [n.name for n in graph.node]
        graphs += [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    assert len(values) == len(set(values))
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize("name", ZOO)
def test_no_float_weight_is_left_beside_its_integers(name: str) -> None:
    e = made(name)
    left: set[str] = set()
    for graph in e.model.graphs():
        left |= {n for n, v in graph.initializers.items() if not v.uses()}
    assert left == set()
    assert not {w.tensor for w in e.plan.weights} & {n for g in e.model.graphs() for n in g.initializers}


def test_emitting_changes_neither_the_model_nor_the_parameters() -> None:
    from onnxq.emit import emit

    for name in ("residual", "if_body", "embedding", "shared_weight"):
        e = made(name)
        before = ir.to_proto(e.prepared).SerializeToString(deterministic=True)
        before_parameters = {name: dict(part) for name, part in vars(e.parameters).items()}
        again = emit(e.prepared, e.plan, **vars(e.parameters))
        assert ir.to_proto(e.prepared).SerializeToString(deterministic=True) == before
        assert before_parameters == vars(e.parameters)
        assert ir.to_proto(again).SerializeToString(deterministic=True) == (
            ir.to_proto(e.model).SerializeToString(deterministic=True)
        )


def test_activation_parameters_are_scalars_and_weight_parameters_vectors() -> None:
    graph = made("residual").proto.graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    types = {t.name: t.data_type for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert [shapes[n] for n in node.input[1:]] == [[], []]
            assert types[node.input[2]] == onnx.TensorProto.UINT8
        if node.op_type == "DequantizeLinear" and types.get(node.input[0]) == onnx.TensorProto.INT8:
            channels = shapes[node.input[0]][0]
            assert [shapes[n] for n in node.input[1:]] == [[channels], [channels]]
            assert onnx.helper.get_attribute_value(node.attribute[0]) == 0


def test_relu_and_clip_are_gone_from_the_optimised_graph() -> None:
    for name in ("residual", "mobilenet", "gemm", "relu_then_float"):
        assert not {"Relu", "Clip"} & {k.op for k in kernel_map(made(name).content).nodes}, name


def test_codes_of_a_relu6_end_at_six() -> None:
    chosen = made("mobilenet").parameters.tensors["clip1_out"]
    assert int(chosen.zero_point) == 0
    assert 5.5 < float(chosen.bounds()[1]) <= 6.0
