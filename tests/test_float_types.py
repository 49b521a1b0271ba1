"""``quantize`` and its neighbours on models of half and double precision."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from onnxq import Config, Result, Rule, evaluate, inspect, quantize, run_model
from onnxq.cli import app
from onnxq.graph.io import load
from onnxq.graph.signature import signature
from onnxq.measure import model_size
from onnxq.runtime.session import open_session, run

INTEGERS = Config(placement="all", latency_seconds=0.0)
KINDS = {T.FLOAT16: np.float16, T.BFLOAT16: ml_dtypes.bfloat16, T.DOUBLE: np.float64}
NAMES = {T.FLOAT16: "float16", T.BFLOAT16: "bfloat16", T.DOUBLE: "double"}
IN_FLOAT32 = "its float32 form is run instead"
# How much less SQNR than the same network in float32 may have: half precision rounds its own answers too.
AS_GOOD_DB = 3.0


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), outputs.split()[0], **attributes)


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, tuple[int, list[int | str]]],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:
    ends = [[helper.make_tensor_value_info(n, *what) for n, what in of.items()] for of in (inputs, outputs)]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"k1": (48, 3, 3, 3), "k2": (48, 48, 3, 3), "k3": (10, 48)}
    found = {n: (rng.standard_normal(s) * 1.4 / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    return found | {f"b{i}": rng.standard_normal(s).astype(np.float32) / 10 for i, s in ((1, 48), (2, 48), (3, 10))}


CONVNET = [
    node("Conv", "x k1 b1", "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
    node("Relu", "c1", "r1"),
    node("Conv", "r1 k2 b2", "c2", pads=[1, 1, 1, 1]),
    node("Relu", "c2", "r2"),
    node("GlobalAveragePool", "r2", "p"),
    node("Flatten", "p", "f"),
    node("Gemm", "f k3 b3", "y", transB=1),
]


def convnet(kind: int) -> onnx.ModelProto:
    """All of it in ``kind``."""
    held = {name: array.astype(KINDS.get(kind, np.float32)) for name, array in weights().items()}
    return model(CONVNET, {"x": (kind, ["N", 3, 16, 16])}, {"y": (kind, ["N", 10])}, held)


def convnet_of_stored(kind: int) -> onnx.ModelProto:
    """Computed in float32, stored in ``kind``."""
    held = {f"{name}_": array.astype(KINDS[kind]) for name, array in weights().items()}
    casts = [node("Cast", name, name[:-1], to=T.FLOAT) for name in held]
    return model([*casts, *CONVNET], {"x": (T.FLOAT, ["N", 3, 16, 16])}, {"y": (T.FLOAT, ["N", 10])}, held)


def convnet_with_a_block(kind: int) -> onnx.ModelProto:
    """In float32 but for one product in the middle."""
    held = weights() | {"w": (np.eye(48) + np.random.default_rng(1).standard_normal((48, 48)) / 9).astype(KINDS[kind])}
    block = [node("Cast", "f", "h", to=kind), node("MatMul", "h w", "m"), node("Cast", "m", "g", to=T.FLOAT)]
    nodes = [*CONVNET[:-1], *block, node("Gemm", "g k3 b3", "y", transB=1)]
    return model(nodes, {"x": (T.FLOAT, ["N", 3, 16, 16])}, {"y": (T.FLOAT, ["N", 10])}, held)


def images(count: int = 40) -> dict[str, np.ndarray]:
    x = np.cumsum(np.cumsum(np.random.default_rng(1).standard_normal((count, 3, 16, 16)), 2), 3)
    x -= x.mean(axis=(2, 3), keepdims=True)
    return {"x": (x / x.std(axis=(2, 3), keepdims=True)).astype(np.float32)}


def ends(proto: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(v.name, v.type.tensor_type.elem_type) for v in (*proto.graph.input, *proto.graph.output)]


def sqnr(result: Result) -> float:
    assert result.comparison is not None
    found = result.comparison.primary.sqnr_db
    assert found is not None
    return found


@pytest.fixture(scope="module")
def single() -> Result:
    return quantize(convnet(T.FLOAT), images(), config=INTEGERS)


# -- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_is_quantized_and_keeps_its_ends(kind: int, single: Result) -> None:
    proto = convnet(kind)
    result = quantize(proto, images(), config=INTEGERS)
    assert result.good
    assert len(result.plan.layers) == len(single.plan.layers) == 3
    assert ends(result.proto()) == ends(proto) == [("x", kind), ("y", kind)]
    assert sqnr(result) > sqnr(single) - AS_GOOD_DB
    # Beside the file as it is, not what it would be in float32.
    assert result.report.source.file_bytes == proto.ByteSize()
    assert result.report.result.file_bytes < 1.05 * single.report.result.file_bytes
    # onnxruntime computes half precision in float32, and convolves neither of the others.
    told = [note for note in result.report.notes if IN_FLOAT32 in note]
    assert len(told) == (kind != T.FLOAT16)
    assert all(NAMES[kind] in note for note in told)


def test_half_precision_is_compared_with_the_model_as_given() -> None:
    proto, data = convnet(T.FLOAT16), images()
    result = quantize(proto, data, config=INTEGERS)
    fed = {"x": data["x"].astype(np.float16)}
    first, second = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, fed)[0]
        for m in (proto, result.proto())
    )
    assert first.dtype == second.dtype == np.float16
    error = np.abs(first.astype(np.float64) - second).max() / np.abs(first).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize("kind", [T.FLOAT16, T.BFLOAT16])
@pytest.mark.parametrize("changes", [{"weights": "int4"}, {"adapt": "fast"}], ids=str)
def test_other_ways_to_quantize(kind: int, changes: dict[str, str]) -> None:
    config = Config(placement="all", latency_seconds=0.0, **changes)
    proto = convnet(kind)
    result = quantize(proto, images(), config=config)
    beside = quantize(convnet(T.FLOAT), images(), config=config)
    assert ends(result.proto()) == ends(proto)
    assert sqnr(result) > sqnr(beside) - AS_GOOD_DB
    assert result.report.result.file_bytes < 1.05 * beside.report.result.file_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_without_data(kind: int) -> None:
    result = quantize(convnet(kind), config=INTEGERS)
    beside = quantize(convnet(T.FLOAT), config=INTEGERS)
    assert ends(result.proto()) == [("x", kind), ("y", kind)]
    assert len(result.plan.weights) == len(beside.plan.weights) > 0


# -- parts of models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stored_weights_are_those_of_the_network_in_float32(kind: int, single: Result) -> None:
    result = quantize(convnet_of_stored(kind), images(), config=INTEGERS)
    assert len(result.plan.layers) == 3
    assert sqnr(result) > sqnr(single) - AS_GOOD_DB
    assert not any(IN_FLOAT32 in note for note in result.report.notes)
    # The float weights of this network are a hundred times what its nodes are.
    assert result.report.result.file_bytes < 0.35 * single.report.source.file_bytes


@pytest.mark.parametrize("kind", [T.FLOAT16, T.DOUBLE])
def test_one_block_stays(kind: int) -> None:
    result = quantize(convnet_with_a_block(kind), images(), config=INTEGERS)
    block = next(n for n in result.model.graph if n.name == "m")
    assert [v.dtype.value for v in block.inputs if v is not None and v.dtype is not None] == [kind] * 2
    assert {"c1", "c2", "y"} == set(result.plan.layers)
    assert sqnr(result) > 30


def test_a_block_that_nothing_runs_changes() -> None:
    """onnxruntime has no product of bfloat16 on CPUs: nobody could have run this file."""
    result = quantize(convnet_with_a_block(T.BFLOAT16), images(), config=INTEGERS)
    assert {"c1", "c2", "m", "y"} == set(result.plan.layers)
    assert any(IN_FLOAT32 in note for note in result.report.notes)
    assert sqnr(result) > 30


def table(kind: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """An embedding of 400 rows and a layer behind it."""
    rng = np.random.default_rng(0)
    held = {
        "table": rng.standard_normal((400, 64)),
        "w": rng.standard_normal((64, 256)) / 8,
        "b": rng.standard_normal(256),
    }
    nodes = [
        node("Gather", "table i", "e"),
        node("MatMul", "e w", "m"),
        node("Add", "m b", "s"),
        node("Relu", "s", "y"),
    ]
    held = {name: array.astype(KINDS.get(kind, np.float32)) for name, array in held.items()}
    proto = model(nodes, {"i": (T.INT64, ["N", 7])}, {"y": (kind, ["N", 7, 256])}, held)
    return proto, {"i": rng.integers(0, 400, (40, 7))}


@pytest.mark.parametrize("kind", [T.FLOAT16, T.BFLOAT16])
@pytest.mark.parametrize("kept", ["e", "m"])
def test_what_stays_float_is_stored_as_in_the_source(kind: int, kept: str) -> None:
    """Half of what float32 takes, cast when the model is loaded, rows when they are gathered."""
    config = Config(placement="all", latency_seconds=0.0, rules=(Rule(kept, "float"),))
    proto, data = table(kind)
    result = quantize(proto, data, config=config)
    found = result.proto()
    held = {t.name: t for t in found.graph.initializer}
    name = {"e": "table", "m": "w"}[kept]
    half = next(t for t in held.values() if t.name.startswith(f"{name}_"))
    assert half.data_type == kind
    assert not any(t.data_type == T.FLOAT and np.prod(t.dims) > 512 for t in held.values())
    assert result.report.result.file_bytes < result.report.source.file_bytes
    assert sqnr(result) > 30
    gather = next(n for n in found.graph.node if n.op_type == "Gather")
    assert (held[gather.input[0]].data_type == kind) == (kept == "e")


def test_what_the_source_has_in_float32_is_not_rounded() -> None:
    """Positions in float32 beside weights in half precision, as converters leave what they are told to."""
    proto, data = table(T.FLOAT16)
    positions = np.random.default_rng(2).standard_normal((400, 1)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(positions, "positions"))
    last = proto.graph.node.pop()
    last.input[0] = "h"
    more = [node("Cast", "s", "f", to=T.FLOAT), node("Gather", "positions i", "p"), node("Add", "f p", "a")]
    proto.graph.node.extend([*more, node("Cast", "a", "h", to=T.FLOAT16), last])
    config = Config(placement="all", latency_seconds=0.0, rules=(Rule("p", "float"), Rule("m", "float")))
    held = {t.name: t for t in quantize(proto, data, config=config).proto().graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(held["positions"]), positions)
    assert next(t for n, t in held.items() if n.startswith("w_")).data_type == T.FLOAT16


# -- feeding and looking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_data_of_any_float_type_feeds_any(kind: int, given: type) -> None:
    data = {"x": images(16)["x"].astype(given)}
    assert quantize(convnet(kind), data, config=INTEGERS).good


def test_bfloat16_goes_in_and_comes_out_as_float32() -> None:
    x = np.array([[1.0, -2.5, 3.14159, 1e38]], np.float32)
    proto = model(
        [node("Cast", "x", "a", to=T.FLOAT), node("Neg", "a", "b"), node("Cast", "b", "y", to=T.BFLOAT16)],
        {"x": (T.BFLOAT16, ["N", 4]), "i": (T.INT64, [1])},
        {"y": (T.BFLOAT16, ["N", 4]), "b": (T.FLOAT, ["N", 4])},
        {},
    )
    session = open_session(proto.SerializeToString())
    y, b = run(session, {"x": x, "i": np.zeros(1, np.int64)})
    rounded = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert y.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(y, -rounded)
    np.testing.assert_array_equal(b, -rounded)
    (only,) = run(session, {"x": x, "i": np.zeros(1, np.int64)}, outputs=["b"])
    np.testing.assert_array_equal(only, b)
    spec = signature(load(proto)).inputs[0]
    assert (spec.dtype, str(spec)) == (np.dtype(np.float32), "x: bfloat16[N, 4]")


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_of_quantize(kind: int, tmp_path: Path) -> None:
    proto, data = convnet(kind), images(16)
    path, made = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx.save(proto, path)
    result = quantize(path, data, config=INTEGERS)
    result.save(made)
    found = inspect(path, kernels="always")
    assert found.inputs[0].dtype == {T.DOUBLE: "float64"}.get(kind, NAMES[kind])
    assert found.outlook is not None
    assert found.size.file_bytes == path.stat().st_size == model_size(path).file_bytes
    assert inspect(path, made).node_table is not None
    assert inspect(made).quantized
    compared = evaluate(path, made, data)
    assert compared.comparison.primary.sqnr_db == pytest.approx(sqnr(result), abs=6)
    assert {layer.node for layer in compared.layers} >= {"c1", "c2"}
    assert any(IN_FLOAT32 in note for note in compared.notes) == (kind != T.FLOAT16)
    first, second = (run_model(m, data)["y"] for m in (path, made))
    assert np.abs(np.asarray(first, np.float64) - second).max() < 0.1


def test_the_command_line(tmp_path: Path) -> None:
    path, made, data = tmp_path / "m.onnx", tmp_path / "q.onnx", tmp_path / "d.npz"
    onnx.save(convnet(T.BFLOAT16), path)
    np.savez(data, **images(16))
    call = CliRunner(env={"COLUMNS": "200"}).invoke
    done = call(app, ["quantize", str(path), "-o", str(made), "-c", str(data), "--latency", "0", "--json"])
    assert done.exit_code == 0, done.output
    assert any(IN_FLOAT32 in note for note in json.loads(done.stdout)["notes"])
    done = call(app, ["benchmark", str(path), str(made), "--data", str(data), "--seconds", "0.01"])
    assert done.exit_code == 0, done.output
    assert "m_in_float32.onnx" in done.stdout  # what was timed in its place
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["d.npz", "m.onnx", "q.onnx"]
