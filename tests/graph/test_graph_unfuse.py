"""Operators that other optimizers fused, and Einsum, spelled out: the same numbers, and weights within reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.emit.sums import spell_sums
from onnxq.graph.io import serialize
from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL
from onnxq.query import nodes

Array = npt.NDArray[Any]
MS = "com.microsoft"
BATCH, LENGTH, WIDTH, HEADS = 2, 6, 32, 4
RNG = np.random.default_rng(11)
_START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws from the start, whichever ran before it."""
    RNG.bit_generator.state = _START


def model(
    made: list[onnx.NodeProto],
    inputs: dict[str, tuple[Any, list[Any]]],
    outputs: dict[str, list[Any]],
    constants: dict[str, Array],
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(data, name) for name, data in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def ran(content: bytes, feed: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feed)


def spelled(proto: onnx.ModelProto, feed: dict[str, Array]) -> list[str]:
    """The operators after preparing; what they compute must be the same."""
    found = prepare(onnx_ir(proto), target=USUAL).model
    for old, new in zip(ran(proto.SerializeToString(), feed), ran(serialize(found), feed), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=2e-5)
    return [n.op_type for n in nodes(found)]


def onnx_ir(proto: onnx.ModelProto) -> Any:
    import onnx_ir as ir

    return ir.from_proto(proto)


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [("Relu", []), ("Clip", [-0.5, 0.7]), ("LeakyRelu", [0.2]), ("HardSigmoid", [0.3, 0.4]), ("Tanh", []), ("", [])],
)
@pytest.mark.parametrize("summed", [False, True])
def test_convolutions(activation: str, parameters: list[float], summed: bool) -> None:
    how: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1], "dilations": [1, 1], "group": 1}
    if activation:
        how["activation"] = activation
    if parameters:
        how["activation_params"] = parameters
    given = ["x", "w", "b"] + (["z"] if summed else [])
    node = helper.make_node("FusedConv", given, ["y"], "conv", domain=MS, **how)
    maps = (TensorProto.FLOAT, [1, 4, 7, 7])
    proto = model(
        [node],
        {"x": maps, **({"z": maps} if summed else {})},
        {"y": [1, 4, 7, 7]},
        {"w": floats(4, 4, 3, 3), "b": floats(4)},
    )
    feed = {"x": floats(1, 4, 7, 7), "z": floats(1, 4, 7, 7)}
    found = spelled(proto, {i.name: feed[i.name] for i in proto.graph.input})
    assert found == ["Conv", *(["Add"] if summed else []), *([activation] if activation else [])]


def test_an_activation_that_is_not_known_stays() -> None:
    how = {"kernel_shape": [1, 1], "activation": "Wiggle"}
    node = helper.make_node("FusedConv", ["x", "w"], ["y"], "conv", domain=MS, **how)
    proto = model([node], {"x": (TensorProto.FLOAT, [1, 4, 7, 7])}, {"y": [1, 4, 7, 7]}, {"w": floats(4, 4, 1, 1)})
    assert [n.op_type for n in nodes(prepare(onnx_ir(proto), target=USUAL).model)] == ["FusedConv"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_products(transposed: int) -> None:
    w = floats(5, 7)
    made = [
        helper.make_node("FusedMatMul", ["x", "w"], ["h"], "mm", domain=MS, transB=transposed, alpha=0.25),
        helper.make_node("FusedGemm", ["h", "v", "b"], ["y"], "gemm", domain=MS, activation="Relu", transB=1),
    ]
    constants = {"w": w.T.copy() if transposed else w, "v": floats(3, 7), "b": floats(3)}
    proto = model(made, {"x": (TensorProto.FLOAT, [4, 5])}, {"y": [4, 3]}, constants)
    assert spelled(proto, {"x": floats(4, 5)}) == ["MatMul", "Gemm", "Relu"]


def test_products_of_two_activations_stay() -> None:
    node = helper.make_node("FusedMatMul", ["x", "z"], ["y"], "mm", domain=MS, transB=1, alpha=0.25)
    kind = (TensorProto.FLOAT, [4, 5])
    proto = model([node], {"x": kind, "z": kind}, {"y": [4, 4]}, {})
    assert spelled(proto, {"x": floats(4, 5), "z": floats(4, 5)}) == ["FusedMatMul"]


def attention(mask: str = "", **how: Any) -> tuple[onnx.ModelProto, dict[str, Array]]:
    sizes = how.get("qkv_hidden_sizes", [WIDTH] * 3)
    constants = {"w": floats(WIDTH, sum(sizes)) / 6, "b": floats(sum(sizes))}
    inputs: dict[str, Any] = {"x": (TensorProto.FLOAT, [BATCH, LENGTH, WIDTH])}
    feed: dict[str, Array] = {"x": floats(BATCH, LENGTH, WIDTH)}
    if mask == "keys":
        inputs["mask"] = (TensorProto.INT32, [BATCH, LENGTH])
        feed["mask"] = np.array([[1] * LENGTH, [1, 1, 1, 0, 0, 0]], np.int32)
    if mask == "lengths":
        inputs["mask"] = (TensorProto.INT32, [BATCH])
        feed["mask"] = np.array([LENGTH, 3], np.int32)
    given = ["x", "w", "b", *(["mask"] if mask else [])]
    node = helper.make_node("Attention", given, ["y"], "att", domain=MS, num_heads=HEADS, **how)
    return model([node], inputs, {"y": [BATCH, LENGTH, sizes[2]]}, constants), feed


@pytest.mark.parametrize("mask", ["", "keys"])
@pytest.mark.parametrize("how", [{}, {"unidirectional": 1}, {"qkv_hidden_sizes": [16, 16, 32]}], ids=str)
def test_attention(mask: str, how: dict[str, Any]) -> None:
    proto, feed = attention(mask, **how)
    assert spelled(proto, feed) == ["MatMul", "Add"] * 3 + ["MultiHeadAttention"]


def test_masks_of_unknown_meaning_stay() -> None:
    assert spelled(*attention("lengths")) == ["Attention"]


def embedded(
    *, segments: bool, positions: bool, mask: bool, opset: int = 17
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    constants = {"words": floats(50, WIDTH), "places": floats(12, WIDTH), "g": floats(WIDTH), "b": floats(WIDTH)}
    ids = (TensorProto.INT32, ["N", "T"])
    feed: dict[str, Array] = {"ids": RNG.integers(0, 50, (BATCH, LENGTH)).astype(np.int32)}
    if segments:
        constants["kinds"] = floats(2, WIDTH)
        feed["segments"] = RNG.integers(0, 2, (BATCH, LENGTH)).astype(np.int32)
    if mask:
        feed["mask"] = np.array([[1] * LENGTH, [1, 1, 1, 0, 0, 0]], np.int32)
    if positions:
        feed["at"] = RNG.integers(0, 12, (BATCH, LENGTH)).astype(np.int32)
    given = ["ids", "segments" if segments else "", "words", "places", "kinds" if segments else "", "g", "b"]
    given += ["mask" if mask else "", "at" if positions else ""]
    outputs = ["x", "counts"] if mask else ["x", ""]
    made = [helper.make_node("EmbedLayerNormalization", given, outputs, "embed", domain=MS, epsilon=1e-6)]
    constants.update({"w": floats(WIDTH, 3 * WIDTH) / 6, "o": floats(3 * WIDTH)})
    heads = ["x", "w", "o", *(["counts"] if mask else [])]
    made.append(helper.make_node("Attention", heads, ["y"], "att", domain=MS, num_heads=HEADS))
    return model(made, dict.fromkeys(feed, ids), {"y": ["N", "T", WIDTH]}, constants, opset), feed


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_embeddings_and_the_number_of_keys_that_they_count(segments: bool, positions: bool, mask: bool) -> None:
    found = spelled(*embedded(segments=segments, positions=positions, mask=mask))
    assert "EmbedLayerNormalization" not in found
    assert found.count("Gather") == 1 + segments + 1  # words, segments; positions or the length
    assert found.count("LayerNormalization") == found.count("MultiHeadAttention") == 1


def test_an_older_opset_is_no_obstacle() -> None:
    assert "LayerNormalization" in spelled(*embedded(segments=True, positions=False, mask=True, opset=13))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("read", [False, True])
def test_sums_and_normalisation(biased: bool, read: bool) -> None:
    kind = (TensorProto.FLOAT, [BATCH, LENGTH, WIDTH])
    given = ["x", "z", "g", "b", *(["c"] if biased else [])]
    outputs = ["y", "", "", "s"] if read else ["y"]
    node = helper.make_node("SkipLayerNormalization", given, outputs, "skip", domain=MS, epsilon=1e-5)
    constants = {"g": floats(WIDTH), "b": floats(WIDTH), **({"c": floats(WIDTH)} if biased else {})}
    shapes: dict[str, list[Any]] = {o: [BATCH, LENGTH, WIDTH] for o in outputs if o}
    proto = model([node], {"x": kind, "z": kind}, shapes, constants)
    feed = {"x": floats(BATCH, LENGTH, WIDTH), "z": floats(BATCH, LENGTH, WIDTH)}
    assert spelled(proto, feed) == ["Add"] * (1 + biased) + ["LayerNormalization"]


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_gelu(op: str) -> None:
    node = helper.make_node(op, ["x", "b"], ["y"], "gelu", domain=MS)
    proto = model([node], {"x": (TensorProto.FLOAT, [4, WIDTH])}, {"y": [4, WIDTH]}, {"b": floats(WIDTH)})
    assert spelled(proto, {"x": floats(4, WIDTH)}) == ["Add", "Gelu" if op == "BiasGelu" else "FastGelu"]


@pytest.mark.parametrize(
    ("equation", "weight", "found"),
    [
        ("abc,cd->abd", (32, 5), ["MatMul"]),
        ("abc,dc->abd", (5, 32), ["MatMul"]),
        ("abc,cde->abde", (32, 4, 3), ["MatMul", "Reshape"]),
        ("abc,dce->abde", (4, 32, 3), ["MatMul", "Reshape"]),
        ("ab c, cd -> abd", (32, 5), ["MatMul"]),
        ("abc,bcd->ad", (6, 32, 5), ["Reshape", "MatMul"]),
        ("abc,cd->adb", (32, 5), ["Einsum"]),
        ("abc,bd->acd", (6, 5), ["Einsum"]),
        ("abc,c->ab", (32,), ["Einsum"]),
        ("abc,bc->abc", (6, 32), ["Einsum"]),
        ("...c,cd->...d", (32, 5), ["Einsum"]),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_einsum(equation: str, weight: tuple[int, ...], found: list[str], swapped: bool) -> None:
    x, w = floats(BATCH, LENGTH, WIDTH), floats(*weight)
    shape = np.einsum(equation, x, w).shape
    given = ["x", "w"]
    if swapped:
        sides = equation.split("->")
        equation, given = ",".join(reversed(sides[0].split(","))) + "->" + sides[1], ["w", "x"]
    node = helper.make_node("Einsum", given, ["y"], "dense", equation=equation)
    proto = model([node], {"x": (TensorProto.FLOAT, ["N", LENGTH, WIDTH])}, {"y": ["N", *shape[1:]]}, {"w": w})
    assert spelled(proto, {"x": x}) == found


def bert() -> tuple[onnx.ModelProto, Callable[[int], dict[str, Array]]]:
    """Two layers as onnxruntime's optimizer for transformers leaves them."""
    proto, _ = embedded(segments=True, positions=False, mask=True)
    made, constants = list(proto.graph.node)[:1], {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    x = "x"
    for i in range(2):
        for name, shape in {"w": (WIDTH, 96), "p": (WIDTH, WIDTH), "u": (WIDTH, 64), "d": (64, WIDTH)}.items():
            constants[f"{name}{i}"] = floats(*shape) / np.float32(np.sqrt(shape[0]))
        constants.update({f"o{i}": floats(96) / 5, f"c{i}": floats(64) / 5})
        made += [
            helper.make_node("Attention", [x, f"w{i}", f"o{i}", "counts"], [f"a{i}"], domain=MS, num_heads=HEADS),
            helper.make_node("MatMul", [f"a{i}", f"p{i}"], [f"q{i}"]),
            helper.make_node("SkipLayerNormalization", [f"q{i}", x, "g", "b"], [f"n{i}"], domain=MS, epsilon=1e-6),
            helper.make_node("MatMul", [f"n{i}", f"u{i}"], [f"h{i}"]),
            helper.make_node("BiasGelu", [f"h{i}", f"c{i}"], [f"e{i}"], domain=MS),
            helper.make_node("MatMul", [f"e{i}", f"d{i}"], [f"f{i}"]),
            helper.make_node("SkipLayerNormalization", [f"f{i}", f"n{i}", "g", "b"], [f"x{i}"], domain=MS),
        ]
        x = f"x{i}"
    used = {name for node in made for name in node.input}
    whole = model(
        made,
        {i.name: (TensorProto.INT32, ["N", "T"]) for i in proto.graph.input},
        {x: ["N", "T", WIDTH]},
        {k: v for k, v in constants.items() if k in used},
    )

    def feed(seed: int) -> dict[str, Array]:
        rng = np.random.default_rng(seed)
        mask = np.ones((1, LENGTH), np.int32)
        mask[0, rng.integers(3, LENGTH + 1) :] = 0
        ids, kinds = (rng.integers(0, most, (1, LENGTH)).astype(np.int32) for most in (50, 2))
        return {"ids": ids, "segments": kinds, "mask": mask}

    return whole, feed


def test_a_model_from_the_transformer_optimizer_runs_on_integers_all_through() -> None:
    proto, feed = bert()
    config = onnxq.Config(placement="all")
    result = onnxq.quantize(proto, [feed(seed) for seed in range(24)], config=config)
    ops = [n.op_type for n in nodes(result.model)]
    assert ops.count("MatMulIntegerToFloat") == 12
    assert ops.count("MatMul") == 0
    assert ops.count("Sum") == ops.count("LayerNormalization") == 5
    assert len(serialize(result.model)) < 0.5 * proto.ByteSize()
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 25.0


def test_only_sums_of_activations_that_are_normalised_are_respelled() -> None:
    kind = (TensorProto.FLOAT, [4, WIDTH])
    made = [
        helper.make_node("Add", ["x", "z"], ["s"], "first"),
        helper.make_node("LayerNormalization", ["s", "g", "b"], ["n"], "norm"),
        helper.make_node("Add", ["n", "b"], ["t"], "biased"),
        helper.make_node("LayerNormalization", ["t", "g", "b"], ["m"], "again"),
        helper.make_node("Add", ["m", "s"], ["u"], "second"),
        helper.make_node("ReduceMean", ["u"], ["mean"], "mean", axes=[-1]),
        helper.make_node("Sub", ["u", "mean"], ["d"], "less"),
        helper.make_node("Add", ["d", "x"], ["y"], "last"),
    ]
    proto = model(made, {"x": kind, "z": kind}, {"y": [4, WIDTH]}, {"g": floats(WIDTH), "b": floats(WIDTH)})
    found = onnx_ir(proto)
    spell_sums(found)
    assert {n.name: n.op_type for n in found.graph if n.op_type in ("Add", "Sum")} == {
        "first": "Sum",
        "biased": "Add",
        "second": "Sum",
        "last": "Add",
    }
    feed = {"x": floats(4, WIDTH), "z": floats(4, WIDTH)}
    (old,), (new,) = ran(proto.SerializeToString(), feed), ran(serialize(found), feed)
    np.testing.assert_array_equal(new, old)
