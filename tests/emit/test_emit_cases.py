"""Single patterns of emission, each with the trap that it must not fall into."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from emitting import Emitted, emitted, session, simulate, sqnr
from onnx import TensorProto
from zoo import Net, embedding, feeds, gemm, if_body, lstm, residual, shared_weight, transformer_mlp

from onnxq.calibrate.runner import Statistics
from onnxq.config import Config, Rule
from onnxq.emit import emit, weight_key
from onnxq.errors import DataError, ModelError
from onnxq.kernels.targets import TARGETS
from onnxq.measure.assignment import assignments
from onnxq.measure.kernels import kernel_map
from onnxq.numerics import INT32, QType, bias_params
from onnxq.plan import KeptFloat, Storage

DYNAMIC = KeptFloat("range at run time", Storage.DYNAMIC)
# dB. One linear layer with 8-bit weights and activations; a wrong scale or a missing zero point gives below 10.
ONE_LAYER = 35.0


def ops(proto: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in proto.graph.node]


def kernels(e: Emitted) -> dict[str, str | None]:
    return {f.node: f.kernel for f in assignments(e.content, kernel_map(e.content))}


# -- weights --------------------------------------------------------------------------------------------------------


def test_a_shared_weight_becomes_one_integer_tensor() -> None:
    e = emitted(shared_weight())
    integers = [t for t in e.proto.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert [t.name for t in integers] == ["w_quantized"]
    assert len(e.parameters.weights) == 1


def test_a_weight_that_others_read_as_float_stays_for_them() -> None:
    n = Net()
    w = n.weight("w", 16, 16)
    n("Add", n("MatMul", "x", w, name="mm"), n("Tanh", w, name="tanh"), name="add", out="y")
    proto = n.model({"x": [16, 16]}, {"y": [16, 16]})
    e = emitted(proto)
    # The Tanh of a constant is folded: its result is the float copy.
    (feed,) = feeds(proto, 1)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > ONE_LAYER


def test_a_weight_of_the_outer_graph_used_in_a_branch() -> None:
    proto = if_body()
    e = emitted(proto)
    (feed,) = feeds(proto, 1)
    for flag in (True, False):
        feed["flag"] = np.array(flag)
        assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 25.0
    branch = next(a.g for n in e.proto.graph.node if n.op_type == "If" for a in n.attribute if a.name == "then_branch")
    assert "shared_quantized" in {t.name for t in branch.initializer}
    assert "shared" not in {t.name for t in e.proto.graph.initializer}


def test_a_branch_dequantizes_outer_codes_itself() -> None:
    """Kernels are not fused with a DequantizeLinear of an outer graph; QuantizeLinear runs once, outside."""
    e = emitted(if_body(), config=Config(operators="standard"))
    node = next(n for n in e.proto.graph.node if n.op_type == "If")
    for attribute in node.attribute:
        codes = [n.input[0] for n in attribute.g.node if n.op_type == "DequantizeLinear"]
        assert codes.count("relu_out_codes") == 1
        assert "QuantizeLinear" not in [n.op_type for n in attribute.g.node]
    readers = [n for n in e.proto.graph.node if "relu_out_codes" in n.input]
    assert readers == []
    assert {kernels(e)[n] for n in ("inner_then", "inner_else")} <= {"QGemm", "MatMulIntegerToFloat"}


def test_packed_weights_are_the_dequantized_ones() -> None:
    proto = lstm()
    e = emitted(proto)
    packed = [w for w in e.plan.weights if w.storage is Storage.PACKED]
    assert [w.tensor for w in packed] == ["w", "r"]
    shown = e.proto
    for w in packed:
        shown.graph.output.append(onnx.ValueInfoProto(name=f"{w.tensor}_expanded"))
    (feed,) = feeds(proto, 1)
    for w, value in zip(packed, session(shown, optimized=False).run(None, feed)[1:], strict=True):
        np.testing.assert_array_equal(value, e.parameters.weights[weight_key(w)].dequantize())


def test_packed_weights_shrink_the_file() -> None:
    proto = lstm()
    assert len(emitted(proto).content) < 0.6 * len(proto.SerializeToString())


# -- embeddings -----------------------------------------------------------------------------------------------------


def test_gathered_rows_are_the_dequantized_table_exactly() -> None:
    n = Net()
    n("Gather", n.weight("table", 64, 32), "ids", name="lookup", out="y")
    proto = n.model({"ids": (TensorProto.INT64, ["n", 5])}, {"y": ["n", 5, 32]})
    e = emitted(proto, data=feeds(proto, 1))
    rows = e.parameters.weights[weight_key(e.plan.weights[0])].dequantize()
    ids = np.array([[0, 63, 5, 5, -1], [1, 2, 3, 4, 62]])
    for optimized in (True, False):
        (y,) = session(e.content, optimized=optimized).run(None, {"ids": ids})
        np.testing.assert_array_equal(y, rows[ids])
    assert "DequantizeLinear" not in ops(e.proto)  # it would run over the whole table


def test_two_lookups_share_one_table() -> None:
    n = Net()
    table = n.weight("table", 64, 32)
    n("Add", n("Gather", table, "a", name="one"), n("Gather", table, "b", name="two"), name="sum", out="y")
    ids = (TensorProto.INT64, [3])
    proto = n.model({"a": ids, "b": ids}, {"y": [3, 32]})
    e = emitted(proto, data=feeds(proto, 1))
    assert [t.name for t in e.proto.graph.initializer] == ["table_quantized", "table_scale"]


def test_an_embedding_keeps_its_place_in_the_graph() -> None:
    e = emitted(embedding())
    assert "lookup_out" in {o for n in e.proto.graph.node for o in n.output}
    assert kernels(e)["fc"] in ("QGemm", "MatMulIntegerToFloat")


# -- ranges measured at run time ------------------------------------------------------------------------------------


def dynamic(proto: onnx.ModelProto, *names: str) -> Emitted:
    return emitted(proto, keep_float=dict.fromkeys(names, DYNAMIC))


def test_dynamic_layers_become_one_kernel_each_and_agree() -> None:
    n = Net()
    h = n("Tanh", n("Gemm", "x", n.weight("w1", 48, 32), n.vector("b1", 48), name="fc1", transB=1), name="tanh")
    h = n("Tanh", n.linear(h, 48, 48, name="mm"), name="tanh2")
    n("Gemm", h, n.weight("w2", 48, 32, fan=48), name="fc2", out="y")
    proto = n.model({"x": ["n", 32]}, {"y": ["n", 32]})
    e = dynamic(proto, "fc1", "mm", "fc2")
    assert list(kernels(e).values()) == ["DynamicQuantizeMatMul"] * 3
    for scale in (0.01, 1.0, 100.0):  # no calibration: any magnitude does
        (feed,) = feeds(proto, 1, scale=scale)
        assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 22.0


def test_dynamic_layers_of_one_input_quantize_it_once() -> None:
    n = Net()
    outs = {}
    for name in "qkv":
        outs[n("MatMul", "x", n.weight(f"{name}_w", 64, 32, fan=64), name=name)] = ["b", 4, 32]
    e = dynamic(n.model({"x": ["b", 4, 64]}, outs), *"qkv")
    assert ops(e.proto).count("DynamicQuantizeLinear") == 1


def test_a_dynamic_layer_with_a_shared_weight() -> None:
    n = Net()
    w = n.weight("w", 48, 48)
    n("MatMul", n("Tanh", n("MatMul", "x", w, name="one"), name="tanh"), w, name="two", out="y")
    proto = n.model({"x": ["n", 48]}, {"y": ["n", 48]})
    e = dynamic(proto, "one", "two")
    assert [t.name for t in e.proto.graph.initializer if t.data_type == TensorProto.INT8 and t.dims != [48]] == [
        "w_quantized"
    ]
    (feed,) = feeds(proto, 1)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 30.0


# -- biases ---------------------------------------------------------------------------------------------------------


def test_a_dead_channel_with_a_large_bias_is_exact() -> None:
    """At the scale of weights of 1e-12 the bias 5 would be 10**15 steps: far beyond int32."""
    n = Net()
    w = n.rng.standard_normal((8, 16)).astype(np.float32)
    w[3] = 1e-12
    n("Gemm", "x", n.const("w", w), n.const("b", [0, 0.5, -0.5, 5.0, 1, 2, 3, -4]), name="fc", transB=1, out="y")
    proto = n.model({"x": ["n", 16]}, {"y": ["n", 8]})
    e = emitted(proto)
    (bias,) = [t for t in e.proto.graph.initializer if t.data_type == TensorProto.INT32]
    codes = onnx.numpy_helper.to_array(bias)
    assert np.abs(codes.astype(np.int64)).max() <= INT32.qmax // 2 + 1
    (feed,) = feeds(proto, 1)
    (y,) = session(e.content).run(None, feed)
    np.testing.assert_allclose(y[:, 3], 5.0, rtol=1e-6)


def test_biases_are_at_the_scale_that_the_kernel_checks() -> None:
    e = emitted(residual())
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in e.proto.graph.initializer}
    weights = {w.node: e.parameters.weights[weight_key(w)] for w in e.plan.weights}
    for bias in e.plan.biases[:3]:
        expected = bias_params(e.parameters.tensors[bias.input], weights[bias.weight_node].params)
        np.testing.assert_array_equal(stored[f"{bias.tensor}_scale"], expected.scale)
        assert stored[f"{bias.tensor}_quantized"].dtype == np.int32


# -- what stays float -----------------------------------------------------------------------------------------------


def sandwich(kind: str) -> onnx.ModelProto:
    n = Net(3)
    y = n("Relu", n.conv("x", 3, 16, name="before"), name="relu")
    if kind == "Conv":
        y = n.conv(y, 16, 16, name="middle")
    elif kind == "depthwise":
        y = n.conv(y, 16, 16, name="middle", group=16)
    else:
        w = n.weight("middle_w", 16, 16, 3, 3)
        y = n("ConvTranspose", y, w, n.vector("middle_b", 16), name="middle", pads=[1, 1, 1, 1])
    n.conv(n("Relu", y, name="relu2"), 16, 8, name="after", out="y")
    return n.model({"x": [1, 3, 8, 8]}, {"y": [1, 8, 8, 8]})


@pytest.mark.parametrize("kind", ["Conv", "depthwise", "ConvTranspose"])
def test_an_excluded_layer_between_integers_keeps_its_float_weights(kind: str) -> None:
    """onnxruntime rounds float weights between DequantizeLinear and QuantizeLinear to int8 per tensor on its own."""
    e = emitted(sandwich(kind), config=Config(rules=(Rule("middle"),)))
    assert kernels(e)["middle"] in ("Conv", "FusedConv", "ConvTranspose")
    assert {kernels(e)[n] for n in ("before", "after")} == {"QLinearConv"}
    assert "middle_w" in {t.name for t in e.proto.graph.initializer}
    (feed,) = feeds(sandwich(kind), 1, seed=5)
    assert sqnr(simulate(e, feed), session(e.content).run(None, feed)) > 40.0


def test_an_excluded_gemm_between_integers_keeps_its_float_weights() -> None:
    n = Net(4)

    def fc(x: str, name: str, out: str | None = None) -> str:
        return n("Gemm", x, n.weight(f"{name}_w", 16, 16), n.vector(f"{name}_b", 16), name=name, transB=1, out=out)

    fc(n("Relu", fc(n("Relu", fc("x", "before"), name="r1"), "middle"), name="r2"), "after", "y")
    proto = n.model({"x": ["n", 16]}, {"y": ["n", 16]})
    e = emitted(proto, config=Config(rules=(Rule("middle"),)))
    assert kernels(e)["middle"] in ("Gemm", "FusedGemm")
    assert {kernels(e)[n] for n in ("before", "after")} == {"QGemm"}
    (feed,) = feeds(proto, 1)
    assert sqnr(simulate(e, feed), session(e.content).run(None, feed)) > 40.0


def test_excluding_everything_leaves_the_model_as_it_was() -> None:
    proto = residual()
    e = emitted(proto, config=Config(rules=(Rule("*"),)), data=feeds(proto, 1))
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(e.proto))
    (feed,) = feeds(proto, 1)
    np.testing.assert_array_equal(
        session(proto, optimized=False).run(None, feed)[0], session(e.content, optimized=False).run(None, feed)[0]
    )


# -- outputs, names, metadata, opsets -------------------------------------------------------------------------------


def test_a_convolution_whose_result_is_an_output_and_read_on() -> None:
    n = Net()
    y = n.conv("x", 3, 4, name="one", out="middle")
    n.conv(y, 4, 4, name="two", out="y")
    proto = n.model({"x": [1, 3, 6, 6]}, {"middle": [1, 4, 6, 6], "y": [1, 4, 6, 6]})
    e = emitted(proto)
    assert [o.name for o in e.proto.graph.output] == ["middle", "y"]
    assert kernels(e) == {"one": "QLinearConv", "two": "QLinearConv"}
    (feed,) = feeds(proto, 1)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 25.0


def test_new_names_keep_clear_of_old_ones() -> None:
    n = Net()
    h = n(
        "Relu", n("MatMul", "x", n.weight("w", 8, 8), name="mm"), name="w_dequantized_DequantizeLinear", out="x_codes"
    )
    h = n("MatMul", h, n.weight("w_quantized", 8, 8), name="x_scale", out="x_dequantized")
    n("Tanh", h, name="t", out="w_scale")
    proto = n.model({"x": ["n", 8]}, {"w_scale": ["n", 8]})
    e = emitted(proto)
    onnx.checker.check_model(e.proto, full_check=True)
    assert [o.name for o in e.proto.graph.output] == ["w_scale"]
    (feed,) = feeds(proto, 1)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 25.0


def test_the_same_operand_twice() -> None:
    n = Net()
    y = n.conv("x", 3, 4, name="one")
    n.conv(n("Add", y, y, name="double"), 4, 4, name="two", out="y")
    proto = n.model({"x": [1, 3, 6, 6]}, {"y": [1, 4, 6, 6]})
    e = emitted(proto)
    assert "double" in e.plan.integer
    (feed,) = feeds(proto, 1)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 25.0


def test_metadata_and_doc_strings_survive() -> None:
    proto = gemm()
    proto.doc_string, proto.graph.doc_string, proto.graph.node[0].doc_string = "model", "graph", "node"
    proto.producer_name, proto.domain, proto.model_version = "somebody", "org.example", 7
    onnx.helper.set_model_props(proto, {"labels": "a,b,c"})
    q = emitted(proto).proto
    assert (q.doc_string, q.graph.doc_string, q.domain, q.model_version) == ("model", "graph", "org.example", 7)
    assert {p.key: p.value for p in q.metadata_props} == {"labels": "a,b,c"}
    assert next(n.doc_string for n in q.graph.node if n.name == "fc1") == "node"


@pytest.mark.parametrize("opset", range(13, 21))
def test_every_opset_from_13_to_20_stays_what_it_was(opset: int) -> None:
    proto = residual(opset)
    e = emitted(proto)
    assert [(o.domain, o.version) for o in e.proto.opset_import] == [("", opset)]
    assert set(kernels(e).values()) == {"QLinearConv", "QGemm"}
    (feed,) = feeds(proto, 1)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 30.0


# -- plans that do not fit ------------------------------------------------------------------------------------------


def test_missing_parameters_are_named() -> None:
    e = emitted(transformer_mlp())
    tensors = {k: v for k, v in e.parameters.tensors.items() if k != "act_out"}
    with pytest.raises(ModelError, match="'act_out'"):
        emit(e.prepared, e.plan, **{**vars(e.parameters), "tensors": tensors})
    weights = {k: v for k, v in e.parameters.weights.items() if k.tensor != "down_w"}
    with pytest.raises(ModelError, match="'down_w'"):
        emit(e.prepared, e.plan, **{**vars(e.parameters), "weights": weights})


def test_a_tensor_that_was_never_observed_is_named() -> None:
    from onnxq.parameters.choose import choose

    e = emitted(gemm())
    with pytest.raises(DataError, match="'x' was never computed"):
        choose(e.prepared, e.plan, Statistics(), Config())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(bad: float) -> None:
    n = Net()
    n("MatMul", "x", n.const("w", np.where(np.eye(4) > 0, bad, 1.0)), name="mm", out="y")
    proto = n.model({"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(ModelError, match="weight 'w'"):
        emitted(proto)


def test_known_parameters_are_not_chosen_again() -> None:
    from onnxq.parameters.choose import choose

    e = emitted(gemm())
    again = choose(e.prepared, e.plan, Statistics(), Config(), known=e.parameters)  # without statistics
    assert again == e.parameters


def test_the_input_model_is_independent_of_the_result() -> None:
    e = emitted(gemm())
    before = ir.to_proto(e.prepared).SerializeToString(deterministic=True)
    for value in e.model.graph.inputs:
        value.name = "renamed"
    for node in e.model.graph:
        node.name = "renamed"
    assert ir.to_proto(e.prepared).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("bits", [4, 6])
def test_activations_of_fewer_bits_are_clipped_to_their_codes(bits: int) -> None:
    """QuantizeLinear to uint8 knows 256 codes; of a 4-bit activation only 16 may leave it."""
    proto = residual()
    target = replace(TARGETS["x86-vnni"], activations=QType(bits, signed=False))
    e = emitted(proto, target=target)
    assert ops(e.proto).count("Clip") == ops(e.proto).count("QuantizeLinear") > 3
    for feed in feeds(proto, 2, seed=9, scale=3.0):  # beyond what calibration saw: codes saturate
        for got, want in zip(session(e.content).run(None, feed), simulate(e, feed), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.5), (1 / 6, 0.5), (0.3, 0.0), (0.25, -0.1)])
def test_a_hard_sigmoid_is_one_integer_sum(alpha: float, beta: float) -> None:
    n = Net(5)
    x = n.conv("x", 3, 8, name="one")
    y = n("Mul", x, n("HardSigmoid", x, name="gate", alpha=alpha, beta=beta), name="product")
    n.conv(y, 8, 4, name="two", out="y")
    proto = n.model({"x": [1, 3, 9, 9]}, {"y": [1, 4, 9, 9]})
    e = emitted(proto, data=feeds(proto, 8, scale=3.0))
    ops = [k.op for k in kernel_map(e.content).nodes]
    assert "HardSigmoid" not in ops
    assert ops.count("QLinearAdd") == 1
    (feed,) = feeds(proto, 1, seed=7, scale=3.0)
    expected = simulate(e, feed)  # HardSigmoid in float, then rounded: at most a tie apart
    assert sqnr(expected, session(e.content, optimized=False).run(None, feed)) >= 45.0
    assert sqnr(expected, session(e.content).run(None, feed)) >= 33.0
    # Nothing of the clipped ends is lost: codes of the gate from 0 to at most 1.
    (gate,) = (p for p in e.plan.points if p.ceiling is not None)
    chosen = e.parameters.tensors[gate.tensor]
    assert int(chosen.zero_point) == 0
    assert float(chosen.scale) * chosen.qtype.qmax <= 1.0
