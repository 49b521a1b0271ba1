"""Weights that several nodes read, from end to end: stored once, no file larger than its source, outputs as apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from sharing import NETWORKS, VOCABULARY, WIDTH, Network, branches, language_model, run, towers, weight_bytes

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


@pytest.mark.parametrize("head", ["transpose", "gemm", "copy"])
def test_excluding_what_shares_leaves_the_model_as_it_was_given(head: str) -> None:
    network = language_model(head)
    result = quantized(network, replace(EVERYWHERE, rules=(Rule("MatMul", "float"), Rule("Gemm", "float"))))
    assert size(result.proto()) <= size(network[0])
    assert not result.plan.weights
    np.testing.assert_array_equal(run(result.proto(), network[1])[0], run(*network)[0])
    assert any(note.startswith("nothing can be gained") for note in result.report.notes)


@pytest.mark.parametrize(
    ("config", "bits"), [("int8", 8), ("w4", 8), ("int4", 4), ("int4:32", 4), ("w4 everywhere", 4)]
)
@pytest.mark.parametrize("head", ["transpose", "gemm", "copy"])
def test_a_table_that_is_the_head_too_is_stored_once(head: str, config: str, bits: int) -> None:
    proto, data = language_model(head)
    table = VOCABULARY * WIDTH
    found = weight_bytes(quantized((proto, data), CONFIGS[config]).proto())
    scales = VOCABULARY * (4 * -(-WIDTH // 32) if config.startswith("w4 ") else 4 if "32" not in config else 6)
    others = 2 * WIDTH * 96
    assert table * bits / 8 <= found <= table * bits / 8 * (4 / 3 if config == "w4 everywhere" else 1) + scales + others


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
        for k, node in enumerate(proto.graph.node):
            if node.output[0] == "embed_out":
                proto.graph.output.append(onnx.helper.make_tensor_value_info("embed_out", 1, ["n", "t", WIDTH]))
        result = quantized((proto, data), config)
        (weight,) = {(w.tensor, w.granularity, w.stored) for w in result.plan.weights if w.tensor == "table"}
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
    assert {k.op for k in kernels} <= {"QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"}


def test_a_tower_in_float_and_a_tower_on_integers_read_one_weight() -> None:
    """The floats are stored; the codes are made of them at load, the same as offline."""
    network = towers()
    excluded = replace(PLAIN, rules=(Rule("b*", "float"),))
    result = quantized(network, excluded)
    made = [w for w in result.plan.weights if w.at_load]
    if made:
        assert {w.node for w in made} == {"a1", "a2"}
    assert size(result.proto()) <= size(network[0])
