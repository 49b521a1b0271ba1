"""Weights that several nodes read, from end to end: stored once, no file larger than its source, outputs as apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from sharing import NETWORKS, VOCABULARY, WIDTH, Network, branches, language_model, normal, run, weight_bytes
from zoo import Net

from onnxq import Config, Result, quantize
from onnxq.config import Rule, preset
from onnxq.measure import kernel_map
from onnxq.numerics import noise

EVERYWHERE = Config(placement="all", min_agreement=0.0, guard_sqnr=-99.0)
# Nothing that would tell a weight with one reader from one with two.
PLAIN = replace(EVERYWHERE, equalize="none", restore="none", objective="tensor", rounding="nearest")

CONFIGS: dict[str, Config] = {
    "int8": EVERYWHERE,
    "int4": replace(EVERYWHERE, weights="int4", first_last="int4"),
    "int4:32": replace(EVERYWHERE, weights="int4:32", first_last="int4:32"),
    "codebook3": replace(EVERYWHERE, weights="codebook3", first_last="codebook3"),
    "w4a8": replace(preset("w4a8"), placement="all", min_agreement=0.0),
    "w4": preset("w4"),
    "w4 everywhere": replace(preset("w4"), first_last="int4:32"),
    "uint4": replace(preset("w4"), weights="uint4:16", first_last="uint4:64"),
    "native": replace(EVERYWHERE, weights="int4", int4_storage="native"),
    "standard": replace(EVERYWHERE, operators="standard"),
    "no MatMul": replace(EVERYWHERE, rules=(Rule("MatMul", "float"),)),
    "no Gather": replace(EVERYWHERE, rules=(Rule("Gather", "float"),)),
    "MatMul stored": replace(EVERYWHERE, rules=(Rule("MatMul", "stored"),)),
    "adapted": replace(EVERYWHERE, weights="int4", adapt="fast"),
}


def quantized(network: Network, config: Config) -> Result:
    proto, data = network
    return quantize(proto, data, config=config)


def size(proto: onnx.ModelProto) -> int:
    return len(proto.SerializeToString())


@pytest.mark.parametrize("config", [c for c in CONFIGS if c != "no MatMul"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_result_is_larger_than_its_source(name: str, config: str) -> None:
    network = NETWORKS[name]()
    result = quantized(network, CONFIGS[config])
    assert size(result.proto()) <= size(network[0])
    onnx.checker.check_model(result.proto())
    found = noise(np.concatenate(run(*network)), np.concatenate(run(result.proto(), network[1])))
    assert found.sqnr_db > (30.0 if config in ("int8", "standard", "no Gather", "MatMul stored") else 8.0)


@pytest.mark.parametrize("head", ["transpose", "gemm"])
def test_excluding_what_shares_leaves_the_model_as_it_was_given(head: str) -> None:
    network = language_model(head)
    result = quantized(network, replace(EVERYWHERE, rules=(Rule("MatMul", "float"), Rule("Gemm", "float"))))
    assert size(result.proto()) <= size(network[0])
    assert not result.plan.weights
    np.testing.assert_array_equal(run(result.proto(), network[1])[0], run(*network)[0])
    assert any(note.startswith("nothing can be gained") for note in result.report.notes)


# Bytes of a row of 48: codes in whole blocks, and what each block has beside them.
ROWS = {"int8": 48, "w4": 48, "int4": 24, "int4:32": 32 + 2, "w4 everywhere": 32 + 2 * 4}


@pytest.mark.parametrize("config", ROWS)
@pytest.mark.parametrize("head", ["transpose", "gemm", "copy"])
def test_a_table_that_is_the_head_too_is_stored_once(head: str, config: str) -> None:
    found = weight_bytes(quantized(language_model(head), CONFIGS[config]).proto())
    table, beside = VOCABULARY * ROWS[config], VOCABULARY * (4 + 1)  # a scale and a zero point a row
    bias = VOCABULARY * 8 if head == "gemm" else 0
    others = 2 * WIDTH * 96 + 3072  # the other layers, and what unpacks them
    assert table <= found <= table + beside + bias + others


@pytest.mark.parametrize("config", ["int8", "int4", "codebook3", "standard"])
def test_one_table_computes_what_two_do(config: str) -> None:
    chosen = CONFIGS[config]
    plain = replace(PLAIN, weights=chosen.weights, first_last=chosen.first_last, operators=chosen.operators)
    shared, apart = (quantized(language_model(head), plain) for head in ("copy", "another"))
    kinds = [sorted(k.op for k in kernel_map(r.proto().SerializeToString()).integer_compute) for r in (shared, apart)]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 3
    data = language_model()[1]
    np.testing.assert_allclose(run(shared.proto(), data)[0], run(apart.proto(), data)[0], rtol=0, atol=2e-4)
    codes = VOCABULARY * WIDTH * shared.plan.weights[-1].stored.bits // 8
    assert weight_bytes(apart.proto()) - weight_bytes(shared.proto()) >= codes


def test_blocks_of_the_head_are_the_rows_of_the_table() -> None:
    """MatMulNBits and a lookup read the same bytes: both say the same of every row."""
    for text in ("int4:32", "uint4:16", "int4:64"):  # 48 inputs: blocks that are full, and that are not
        config = replace(preset("w4"), weights=text, first_last=text, accuracy_level=1)
        proto, data = language_model()
        proto.graph.output.append(onnx.helper.make_tensor_value_info("embed_out", 1, ["n", "t", WIDTH]))
        result = quantized((proto, data), config)
        assert len({(w.granularity, w.stored) for w in result.plan.weights if w.tensor == "table"}) == 1
        assert [k.op for k in kernel_map(result.proto().SerializeToString()).integer_compute].count("MatMulNBits") == 3
        session = onnx_session(result.proto())
        rows = session.run(["embed_out"], {"ids": np.arange(VOCABULARY, dtype=np.int64)[None]})[0][0]
        head = next(i for i in result.proto().graph.node if i.name == "head")
        eye = np.eye(WIDTH, dtype=np.float32)
        np.testing.assert_allclose(alone(result.proto(), head, eye), rows.T, rtol=0, atol=1e-5)
        assert noise(onnx.numpy_helper.to_array(proto.graph.initializer[0]), rows).sqnr_db > 18


def onnx_session(proto: onnx.ModelProto) -> object:
    import onnxruntime as ort

    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def alone(proto: onnx.ModelProto, node: onnx.NodeProto, x: np.ndarray) -> np.ndarray:
    """What ``node`` of ``proto`` makes of ``x`` with its own constants."""
    held = [t for t in proto.graph.initializer if t.name in node.input]
    one = onnx.NodeProto()
    one.CopyFrom(node)
    one.input[0], one.output[0] = "x", "y"
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([one], "g", [value("x", 1, x.shape)], [value("y", 1, None)], held)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return onnx_session(model).run(None, {"x": x})[0]


@pytest.mark.parametrize("config", ["int8", "int4", "w4", "w4 everywhere", "standard"])
@pytest.mark.parametrize("equal", [False, True])
def test_branches_share_one_weight_and_keep_their_kernels(config: str, equal: bool) -> None:
    result = quantized(branches(equal=equal), CONFIGS[config])
    weights = [w for w in result.plan.weights if w.node.startswith("product")]
    assert len({w.tensor for w in weights}) == 1
    whole = 96 * 128 + 128 * 32
    assert weight_bytes(result.proto()) <= whole * (1.0 if "8" in str(weights[0].stored) else 0.75)
    kernels = kernel_map(result.proto().SerializeToString()).integer_compute
    assert len(kernels) == 3
    assert not {k.op for k in kernels} & {"MatMul", "Gemm"}


def test_codes_that_the_runtime_makes_are_those_that_were_chosen() -> None:
    """One tower in float, the other on integers: the file holds floats, and reads of them what codes would say."""
    n = Net(7)
    weight = n.weight("w", 96, 192, fan=96)
    for name in ("a", "b"):
        n("MatMul", name, weight, name=f"{name}1")
    x = n("Relu", n("Concat", "a1_out", "b1_out", name="join", axis=1), name="relu")
    n.linear(x, 384, 96, name="last", out="y")
    proto = n.model({"a": ["n", 96], "b": ["n", 96]}, {"y": ["n", 96]})
    data = {"a": normal(48, 96), "b": normal(48, 96, seed=2)}
    config = replace(PLAIN, rules=(Rule("b1", "float"),))
    result = quantized((proto, data), config)
    (made,) = [w for w in result.plan.weights if w.at_load]
    assert made.node == "a1"
    assert size(result.proto()) <= size(proto)
    assert [t.data_type for t in result.proto().graph.initializer if list(t.dims) == [96, 192]] == [1]
    assert len(kernel_map(result.proto().SerializeToString()).integer_compute) == 2
    apart = onnx.ModelProto()
    apart.CopyFrom(proto)  # the same with a weight of its own for each tower
    changed = onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "w")).copy()
    changed[0, 0] += 1e-6
    apart.graph.initializer.append(onnx.numpy_helper.from_array(changed, "w2"))
    next(node for node in apart.graph.node if node.name == "b1").input[1] = "w2"
    other = quantized((apart, data), config)
    assert not any(w.at_load for w in other.plan.weights)
    float_output = run(proto, data)[0]
    levels = [noise(float_output, run(r.proto(), data)[0]).sqnr_db for r in (result, other)]
    assert min(levels) > 35.0
    assert abs(levels[0] - levels[1]) < 1.0
