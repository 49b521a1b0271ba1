"""Packed weights: what the runtime unpacks is what was packed, kernels are those of INT8, files as small as said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from emitting import emitted, session, simulate, sqnr
from onnx import TensorProto, helper
from zoo import Net, embedding, feeds, gemm, lstm, mobilenet, residual, squeeze_excite, transformer_mlp

import onnxq
from onnxq.config import Config, Rule
from onnxq.emit import weight_key
from onnxq.emit.packed import Writing, expanded
from onnxq.emit.pieces import Pieces
from onnxq.errors import ModelError, NumericsError
from onnxq.graph.io import serialize
from onnxq.graph.nodes import Before
from onnxq.measure.assignment import assignments
from onnxq.measure.kernels import kernel_map
from onnxq.numerics import PerAxis
from onnxq.plan import KeptFloat, Storage
from onnxq.weights import Levels, Representation, weight_format
from onnxq.weights.representation import BlockLevels, Nibbles, all_levels

RNG = np.random.default_rng(5)
_START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws from the start, whichever ran before it."""
    RNG.bit_generator.state = _START


FORMATS = (
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int2:16",
    "int3:32",
    "int4:64",
    "codebook2",
    "codebook3",
    "codebook4",
)


def codes_for(text: str, shape: tuple[int, ...], axis: int) -> tuple[np.ndarray, Representation]:
    """Random codes of a format, every level and multiple among them, and how they are stored."""
    bits, block = weight_format(text).bits, weight_format(text).block
    if text.startswith("codebook"):
        levels = np.sort(RNG.choice(np.arange(-127, 128), 2**bits, replace=False)).astype(np.int8)
        return RNG.choice(levels, shape), Levels(bits, levels)
    top = 2 ** (bits - 1) - 1
    codes = RNG.integers(-top, top + 1, shape)
    if not block:
        return codes.astype(np.int8), Levels(bits, all_levels(bits))
    rows = np.moveaxis(codes, axis, 0).reshape(shape[axis], -1)
    multiples = RNG.integers(1, 127 // top + 1, (shape[axis], -(-rows.shape[1] // block)))
    rows = rows * np.repeat(multiples, block, axis=1)[:, : rows.shape[1]]
    rest = tuple(n for i, n in enumerate(shape) if i != axis)
    codes = np.moveaxis(rows.reshape(shape[axis], *rest), 0, axis)
    return codes.astype(np.int8), BlockLevels(bits, all_levels(bits), block, multiples)


def unpacking(codes: np.ndarray, stored: Representation, axis: int, opset: int) -> bytes:
    """A model that gives back unpacked ``codes``."""
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"], name="end")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.INT8, None)],
            [helper.make_tensor_value_info("y", TensorProto.INT8, None)],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    model = ir.from_proto(proto)
    pieces = Pieces(model)
    value = expanded(Writing(pieces, "w", Before(pieces.nodes["end"])), codes, stored, PerAxis(axis))
    pieces.nodes["end"].replace_input_with(0, value)
    return serialize(model)


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("text", FORMATS)
def test_the_runtime_unpacks_what_was_packed(text: str, opset: int) -> None:
    for shape, axis in (((24, 10, 3, 3), 0), ((70, 12), 1), ((12, 70), 0), ((5, 1, 3, 3), 0), ((7, 11), 1)):
        codes, stored = codes_for(text, shape, axis)
        content = unpacking(codes, stored, axis, opset)
        np.testing.assert_array_equal(stored.unpack(stored.pack(codes, axis=axis), shape, axis=axis), codes)
        for optimized in (True, False):
            (found,) = session(content, optimized=optimized).run(None, {"x": np.zeros(1, np.int8)})
            np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("text", FORMATS)
def test_bytes_looked_up_in_pairs_give_the_same(monkeypatch: pytest.MonkeyPatch, text: str, opset: int) -> None:
    monkeypatch.setattr("onnxq.weights.unpacking.PAIRED", 1)
    monkeypatch.setattr("onnxq.weights.unpacking.PAIRED_ALONE", 1)
    for shape, axis in (((24, 10, 3, 3), 0), ((12, 70), 0), ((7, 11), 1)):  # 990 bytes of 4 bits, 420, an odd number
        codes, stored = codes_for(text, shape, axis)
        content = unpacking(codes, stored, axis, opset)
        inputs = {"x": np.zeros(1, np.int8)}
        for optimized in (True, False):
            np.testing.assert_array_equal(session(content, optimized=optimized).run(None, inputs)[0], codes)
        paired = any(i.data_type == TensorProto.UINT16 for i in onnx.load_from_string(content).graph.initializer)
        assert paired == (weight_format(text).bits in (2, 4) and not weight_format(text).block)


def test_a_large_weight_is_looked_up_in_pairs() -> None:
    content = unpacking(*codes_for("int4", (512, 512), 1), 1, 17)
    assert any(i.data_type == TensorProto.UINT16 for i in onnx.load_from_string(content).graph.initializer)


@pytest.mark.no_costs
@pytest.mark.parametrize("net", ["residual", "mobilenet", "gemm", "mlp", "embedding", "lstm"])
def test_native_int4_tensors_give_the_same_on_the_same_kernels(net: str) -> None:
    proto = {**NETS, "embedding": embedding, "lstm": lstm}[net]()
    choices = {"weights": "int4", "first_last": "int4"}
    (feed,) = feeds(proto, 1, seed=3)
    packed = onnxq.quantize(proto, feeds(proto, 16), config=Config(**choices))
    native = onnxq.quantize(proto, feeds(proto, 16), config=Config(**choices, int4_storage="native"))
    assert any(i.data_type == TensorProto.INT4 for i in native.proto().graph.initializer)
    assert native.model.opset_imports[""] == 21
    assert packed.model.opset_imports[""] < 21
    contents = [serialize(result.model) for result in (packed, native)]
    for optimized in (True, False):
        outputs = [session(content, optimized=optimized).run(None, feed) for content in contents]
        for one, other in zip(*outputs, strict=True):
            np.testing.assert_array_equal(one, other)
    kernels = [{f.node: f.kernel for f in assignments(content, kernel_map(content))} for content in contents]
    assert kernels[0] == kernels[1]
    assert any("onnxruntime 1.23" in note for note in native.report.notes)


@pytest.mark.no_costs
def test_what_is_no_int4_tensor_keeps_its_opset() -> None:
    """Codebooks and blocks have no native type; neither has a model without 4 bits."""
    proto = gemm()
    for weights in ("int8", "int3", "codebook4", "int4:32"):
        result = onnxq.quantize(
            proto, feeds(proto, 16), config=Config(weights=weights, first_last=weights, int4_storage="native")
        )
        assert result.model.opset_imports[""] < 21
        assert not any("onnxruntime 1.23" in note for note in result.report.notes)


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="weight 'w' has codes that 4 bits do not hold"):
        unpacking(np.asarray([[9, 0, -8]], np.int8), Levels(4, all_levels(4)), 0, 17)
    with pytest.raises(NumericsError, match="2 bits name 1 to 4 levels"):
        Levels(2, np.arange(5, dtype=np.int8))
    with pytest.raises(ModelError, match="weight 'w' has codes that 2 bits do not hold"):
        unpacking(np.arange(5, dtype=np.int8)[None], Levels(2, np.arange(4, dtype=np.int8)), 0, 17)
    with pytest.raises(ModelError, match="weight 'w' has blocks that 3 bits do not hold"):
        unpacking(np.asarray([[5] + [1] * 15], np.int8), BlockLevels(3, all_levels(3), 16, np.asarray([[1]])), 0, 17)
    with pytest.raises(ModelError, match="weight 'w' has blocks that 3 bits do not hold"):
        unpacking(np.asarray([[5] + [2] * 15], np.int8), BlockLevels(3, all_levels(3), 16, np.asarray([[2]])), 0, 17)
    with pytest.raises(ModelError, match="weight 'w' is stored for a kernel that unpacks it itself"):
        unpacking(np.zeros((1, 16), np.uint8), Nibbles(16, np.asarray([[8]], np.uint8)), 0, 17)


NETS = {
    "residual": residual,
    "mobilenet": mobilenet,
    "squeeze_excite": squeeze_excite,
    "gemm": gemm,
    "mlp": transformer_mlp,
}


@pytest.mark.parametrize("text", ["int2", "int3", "int4", "int6", "int4:32", "codebook4"])
@pytest.mark.parametrize("net", list(NETS))
def test_integer_kernels_compute_with_packed_weights(net: str, text: str) -> None:
    """On the kernels of INT8, and the numbers that the plan says."""
    proto = NETS[net]()
    usual = emitted(proto)
    packed = emitted(proto, config=Config(weights=text, first_last=text))
    assert all(str(w.stored) == text for w in packed.plan.weights)
    kernels = [{f.node: f.kernel for f in assignments(e.content, kernel_map(e.content))} for e in (usual, packed)]
    assert kernels[0] == kernels[1]
    assert not [k.name for k in kernel_map(packed.content).waste if k.waste >= 64]
    (feed,) = feeds(proto, 1, seed=3)
    run = [session(packed.content, optimized=optimized).run(None, feed) for optimized in (True, False)]
    assert sqnr(simulate(packed, feed), run[0]) > SAME
    assert sqnr(run[1], run[0]) > SAME


# dB: rounding of another code here and there, where float sums differ in their order.
SAME = 30.0


def wide_mlp() -> onnx.ModelProto:
    """Weights that are large enough to be worth storing as integers in front of a float kernel."""
    n = Net(8)
    x = n("Relu", n.linear("x", 64, 96, name="up"), name="relu")
    n.linear(x, 96, 64, name="down", out="y")
    return n.model({"x": ["n", 3, 64]}, {"y": ["n", 3, 64]})


@pytest.mark.parametrize("text", ["int8", "int4", "int3:16", "codebook4"])
def test_a_convolution_steered_to_matrix_products_is_packed_too(text: str) -> None:
    proto = residual()
    config = Config(weights=text, first_last=text, rules=(Rule("conv1", "int8-gemm"),))
    e = emitted(proto, config=config)
    (weight,) = (w for w in e.plan.weights if w.node == "conv1")
    assert weight.shift
    (feed,) = feeds(proto, 1, seed=3)
    assert sqnr(simulate(e, feed), session(e.content).run(None, feed)) > SAME


def test_weights_of_float_layers_are_packed_too() -> None:
    for proto in (lstm(), embedding()):
        e = emitted(proto, config=Config(weights="int4", first_last="int4"), data=feeds(proto, 2))
        assert any(not w.storage.computes and w.stored.bits == 4 for w in e.plan.weights)
        (feed,) = feeds(proto, 1)
        for w in e.plan.weights:
            assert np.abs(e.parameters.weights[weight_key(w)].codes).max() <= 7
        assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 8.0


def test_a_layer_that_measures_its_input_is_packed_too() -> None:
    proto = wide_mlp()
    names = [n.name for n in proto.graph.node if n.op_type == "MatMul"]
    back = dict.fromkeys(names, KeptFloat("range at run time", Storage.DYNAMIC))
    e = emitted(proto, config=Config(weights="int4:32", first_last="int4"), keep_float=back)
    assert {w.storage for w in e.plan.weights} == {Storage.DYNAMIC}
    (feed,) = feeds(proto, 1)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 8.0


@pytest.mark.parametrize(
    ("text", "bits"), [("int2", 2), ("int3", 3), ("int4", 4), ("int5", 5), ("int6", 6), ("codebook4", 4)]
)
def test_the_file_is_as_small_as_the_format_says(text: str, bits: int) -> None:
    n = Net()
    n("MatMul", "x", n.weight("w", 512, 512, fan=512), name="mm", out="y")
    proto = n.model({"x": ["n", 512]}, {"y": ["n", 512]})
    e = emitted(proto, config=Config(weights=text, first_last=text))
    table = {2: 1024, 3: 16384 + 2048, 4: 512, 5: 2048 + 4096, 6: 8192 + 2048}[bits]
    assert len(e.content) <= 512 * 512 * bits / 8 + 512 * 5 + table + 3000  # the rest are nodes and their names


def test_tables_are_shared() -> None:
    n = Net()
    x = n.linear("x", 64, 64, name="a", bias=False)
    n.linear(n("Relu", x, name="r"), 64, 64, name="b", bias=False, out="y")
    proto = n.model({"x": ["n", 64]}, {"y": ["n", 64]})
    e = emitted(proto, config=Config(weights="int3", first_last="int3"))
    tables = [t for t in e.proto.graph.initializer if list(t.dims) == [4096, 4]]
    assert len(tables) == 1


# -- MatMulNBits ----------------------------------------------------------------------------------------------------

WEIGHTS_ONLY = Config(weights="int4:32", first_last="int4:32", activations="none", accuracy_level=1)


@pytest.mark.parametrize("text", ["int4:32", "uint4:16", "uint4:32", "int4:128", "int4"])
@pytest.mark.parametrize("inputs", [64, 70])
def test_blocks_compute_what_the_weight_says(text: str, inputs: int) -> None:
    n = Net(2)
    x = n.linear("x", inputs, 48, name="mm")
    n("Gemm", x, n.weight("g_w", 40, 48, fan=48), n.vector("g_b", 40), name="gemm", out="y", transB=1)
    proto = n.model({"x": ["n", inputs]}, {"y": ["n", 40]})
    config = Config(weights=text, first_last=text, activations="none", accuracy_level=1)
    e = emitted(proto, config=config)
    assert [w.storage for w in e.plan.weights] == [Storage.BLOCKS] * 2
    assert e.plan.points == ()
    (feed,) = feeds(proto, 1)
    real = {w.node: e.parameters.weights[weight_key(w)].dequantize() for w in e.plan.weights}
    # The bias of the first layer is folded into that of the second, which is linear too.
    folded = e.prepared.graph.initializers["g_b_folded"].const_value
    assert folded is not None
    y = feed["x"] @ real["mm"] @ real["gemm"].T + folded.numpy()
    for optimized in (True, False):
        (found,) = session(e.content, optimized=optimized).run(None, feed)
        np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-4 * np.abs(y).max())
    assert [k for k in (f.kernel for f in assignments(e.content, kernel_map(e.content))) if k] == ["MatMulNBits"] * 2


def test_a_shared_weight_has_one_tensor_of_blocks() -> None:
    n = Net()
    w = n.weight("w", 64, 64, fan=64)
    n("MatMul", n("MatMul", "x", w, name="a"), w, name="b", out="y")
    proto = n.model({"x": ["n", 64]}, {"y": ["n", 64]})
    e = emitted(proto, config=WEIGHTS_ONLY)
    assert [len(t.dims) for t in e.proto.graph.initializer].count(3) == 1
    (feed,) = feeds(proto, 1)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 15.0


def test_the_accuracy_level_is_written() -> None:
    for level in (0, 1, 4):
        e = emitted(wide_mlp(), config=replace(WEIGHTS_ONLY, accuracy_level=level))
        nodes = [n for n in e.proto.graph.node if n.op_type == "MatMulNBits"]
        assert nodes
        for node in nodes:
            assert {a.name: a.i for a in node.attribute}["accuracy_level"] == level


def test_convolutions_and_other_widths_are_unpacked_to_float() -> None:
    for proto, text in ((residual(), "int4:32"), (wide_mlp(), "int3")):
        e = emitted(proto, config=Config(weights=text, first_last=text, activations="none"))
        (feed,) = feeds(proto, 1)
        assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 8.0
        onnx.checker.check_model(e.proto)


def test_standard_operators_only() -> None:
    e = emitted(wide_mlp(), config=replace(WEIGHTS_ONLY, operators="standard"))
    assert {n.domain for n in e.proto.graph.node} == {""}


def test_names_that_quantizing_adds_are_short_where_the_file_is() -> None:
    e = emitted(residual(), config=Config(weights="int4", first_last="int4"))
    graph = e.proto.graph
    source = ir.to_proto(e.prepared).graph
    known = {t.name for t in source.initializer} | {o for n in source.node for o in (*n.output, n.name)}
    values = [t.name for t in graph.initializer] + [o for n in graph.node for o in n.output]
    labels = [n.name for n in graph.node]
    assert len(set(values)) == len(values)
    assert len(set(labels)) == len(labels)
    assert max(len(name) for name in (*values, *labels) if name not in known) <= 3
    assert {n.name for n in source.node} <= set(labels)  # what the float model had keeps its name
    assert {o for n in source.node for o in n.output} <= set(values)
    long = emitted(residual()).proto.graph
    assert any(name.endswith("_dequantized") for n in long.node for name in n.output)
