"""What forces onnxruntime's kernels: MatMulIntegerToFloat with its bias, shifted zero points, standard operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from emitting import emitted, session, simulate, sqnr
from zoo import ZOO, Net, attention, feeds, prepared, residual, transformer_mlp

from onnxq.config import Config, Rule
from onnxq.emit import emit
from onnxq.graph.io import serialize
from onnxq.kernels.targets import TARGETS
from onnxq.measure import kernel_map
from onnxq.plan import Storage, make_plan

SAME = 100.0  # the same arithmetic: float32 rounding at most
ON_INTEGERS = 33.0  # requantized in float32 by another order of operations
STANDARD = Config(operators="standard")


def domains(model: onnx.ModelProto) -> set[str]:
    return {n.domain for n in model.graph.node}


def linear(rank: int, *, bias: bool = True, relu: bool = False) -> onnx.ModelProto:
    n = Net(3)
    x = n.linear("x", 12, 20, name="mm", bias=bias, out=None if relu else "y")
    if relu:
        n.linear(n("Relu", x, name="relu"), 20, 8, name="next", out="y")
    shape = [5, 12] if rank == 2 else ["n", 5, 12]
    return n.model({"x": shape}, {"y": [*shape[:-1], 8 if relu else 20]})


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_with_float_output_is_one_node(rank: int, bias: bool) -> None:
    proto = linear(rank, bias=bias)
    e = emitted(proto)
    assert [w.storage for w in e.plan.weights] == [Storage.FUSED]
    assert [n.op_type for n in e.proto.graph.node] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert e.proto.graph.node[1].name == "mm"
    assert len(e.proto.graph.node[1].input) == (7 if bias else 6)
    (feed,) = feeds(proto, 1, seed=5)
    expected = simulate(e, feed)
    for optimized in (True, False):
        assert sqnr(expected, session(e.content, optimized=optimized).run(None, feed)) >= SAME


def test_the_bias_stays_float_and_is_corrected_all_the_same() -> None:
    e = emitted(linear(3))
    (bias,) = (t for t in e.proto.graph.initializer if t.name == e.proto.graph.node[1].input[6])
    assert bias.data_type == onnx.TensorProto.FLOAT
    assert bias.dims == [20]


def test_where_codes_are_wanted_everywhere_a_matrix_product_writes_them() -> None:
    e = emitted(linear(2, relu=True))
    storages = {w.node: w.storage for w in e.plan.weights}
    assert storages == {"mm": Storage.INTEGER, "next": Storage.FUSED}
    assert {k.op for k in kernel_map(e.content).integer_compute} == {"QGemm", "MatMulIntegerToFloat"}


def test_with_a_bias_and_an_open_batch_the_product_takes_the_bias_and_a_quantizer_the_relu() -> None:
    proto = linear(3, relu=True)
    e = emitted(proto)
    assert {w.storage for w in e.plan.weights} == {Storage.FUSED}
    kernels = kernel_map(e.content)
    assert [k.op for k in kernels.integer_compute] == ["MatMulIntegerToFloat"] * 2
    assert not {"Relu", "Add"} & {k.op for k in kernels.nodes}
    (feed,) = feeds(proto, 1, seed=6)
    assert sqnr(simulate(e, feed), session(e.content).run(None, feed)) >= ON_INTEGERS


@pytest.mark.parametrize("make", [attention, transformer_mlp])
def test_standard_operators_only(make: Any) -> None:
    e = emitted(make(), config=STANDARD)
    assert domains(e.proto) == {""}
    assert Storage.FUSED not in {w.storage for w in e.plan.weights}
    assert "com.microsoft" in domains(emitted(make()).proto)


def shifted(proto: onnx.ModelProto, names: set[str]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The emitted model as it is, and with the convolutions called ``names`` force_gemm to matrix products."""
    e = emitted(proto)
    plan = make_plan(prepared(proto), Config(), TARGETS["x86-vnni"], force_gemm=names)
    model = emit(e.prepared, plan, **vars(e.parameters))
    return e.proto, onnx.load_model_from_string(serialize(model))


def test_a_shifted_zero_point_changes_no_number() -> None:
    proto = residual()
    plain, force_gemm = shifted(proto, {"stem", "conv2"})
    zeros = {t.name: onnx.numpy_helper.to_array(t) for t in force_gemm.graph.initializer if "zero_point" in t.name}
    assert sum(bool((z == -1).all()) for z in zeros.values() if z.dtype == np.int8) == 2
    for feed in feeds(proto, 2, seed=8):
        for optimized in (False, True):
            runs = [session(m, optimized=optimized).run(None, feed) for m in (plain, force_gemm)]
            for a, b in zip(*runs, strict=True):
                np.testing.assert_array_equal(a, b)


def test_steering_by_rule_and_of_convolutions_only() -> None:
    config = Config(rules=(Rule("conv1", "int8-gemm"), Rule("fc", "int8-gemm")))
    plan = make_plan(prepared(residual()), config, TARGETS["x86-vnni"])
    assert {w.node: w.shift for w in plan.weights if w.shift} == {"conv1": -1}
    assert "zero point -1" in str(plan)


def test_every_network_of_the_zoo_is_emitted_with_standard_operators_too() -> None:
    for name, make in ZOO.items():
        proto = make()
        e = emitted(proto, config=STANDARD)
        session(e.content).run(None, feeds(proto, 1)[0])
        assert domains(e.proto) <= {""}, name


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("activation", ["Relu", "Tanh"])
def test_pooling_in_float_stays_in_float(activation: str, moved: bool) -> None:
    """onnxruntime would move the quantizer of the second convolution in front of MaxPool."""
    n = Net(7)
    y = n(activation, n.conv("x", 3, 8, name="stem"), name="act")
    y = n("MaxPool", y, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    if moved:
        y = n("Transpose", y, name="turn", perm=[0, 1, 3, 2])
    n.conv(y, 8, 4, name="conv", out="y")
    proto = n.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 4, 4]})
    e = emitted(proto, config=Config(rules=(Rule("stem", "float"), Rule("turn", "float"))))
    plain = emit(e.prepared, e.plan, **vars(e.parameters), steer=False)
    kinds = [{k.op: k.kind for k in kernel_map(content).nodes} for content in (e.content, serialize(plain))]
    assert [found["MaxPool"] for found in kinds] == ["other", "integer movement"]
    assert "Clip" not in kinds[0]  # it has done its work and is gone
    for feed in feeds(proto, 3, seed=6, scale=3.0):  # beyond the range, too
        for optimized in (False, True):
            runs = [session(m, optimized=optimized).run(None, feed) for m in (e.content, serialize(plain))]
            np.testing.assert_array_equal(*(r[0] for r in runs))
