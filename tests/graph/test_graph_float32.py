"""Models of half and double precision: float32 inside, their own types at the ends, the same results."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from equivalence import equivalent, run
from graph_helpers import make, node, ops, rand
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from onnxq.graph.passes.float_islands import computed_in_float32
from onnxq.graph.prepare import in_float32, prepare
from onnxq.graph.widened import Widened, narrowed, to_float32
from onnxq.kernels.targets import USUAL

HALF = np.float16
# Sums of 16 products in half precision, and what they are rounded to.
ROUNDED = 4e-3
W = (rand(16, 16, seed=5) / 4).astype(HALF)
X = {"x": rand(4, 16).astype(HALF)}


def half(nodes, outputs="y", constants=None, *, inputs=None, opset=17, types=None, **more) -> onnx.ModelProto:
    """A model of float16; ``w`` [16, 16] and a few numbers are there."""
    names = outputs.split()
    kinds = dict.fromkeys(("x", *names), T.FLOAT16) | (types or {})
    known = {"w": W, "one": np.array(1), "zero": np.array(0, HALF), **(constants or {})}
    used = {name for n in nodes for name in n.input} | {
        name for n in nodes for a in n.attribute for inner in a.g.node for name in inner.input
    }
    kept = {name: array for name, array in known.items() if name in used or name in names}
    return make(nodes, inputs or {"x": ("N", 16)}, names, kept, opset=opset, types=kinds, **more)


def info(name: str, kind: int = T.FLOAT16, shape=("N", 16)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def types(model: ir.Model) -> list[tuple[str | None, object]]:
    return [(v.name, v.type) for v in (*model.graph.inputs, *model.graph.outputs)]


def others(model: ir.Model) -> list[str]:
    """The operators that compute in another float type, Casts left out."""
    kinds = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
    made = [n for n in model.graph.all_nodes() if n.op_type != "Cast"]
    return [n.op_type for n in made if any(v.dtype in kinds for v in n.outputs)]


def agree(proto: onnx.ModelProto, feeds=X, *, tolerance: float = ROUNDED) -> ir.Model:
    """The prepared model: its ends are as they were, and it computes the same within rounding."""
    source = ir.from_proto(proto)
    before = proto.SerializeToString(deterministic=True)
    model = prepare(source, target=USUAL).model
    assert types(model) == types(ir.from_proto(proto))
    assert equivalent(ir.from_proto(proto), model, feeds) <= tolerance
    assert proto.SerializeToString(deterministic=True) == before
    return model


# -- which models change ----------------------------------------------------------------------------------------------


def test_a_half_model_is_float32_between_two_casts():
    model = agree(half([node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b w", "y")]))
    assert ops(model) == ["Cast", "Cast", "MatMul", "MatMul", "Relu"]
    assert others(model) == []


def test_casts_at_the_ends_and_between_parts_go():
    """As converters write half precision: float32 at the ends, LayerNormalization in float32."""
    cast = lambda a, b, to: node("Cast", a, b, to=to)  # noqa: E731 - a row of nodes
    nodes = [cast("x", "a", T.FLOAT16), node("MatMul", "a w", "b"), cast("b", "c", T.FLOAT)]
    nodes += [node("LayerNormalization", "c g", "d"), cast("d", "e", T.FLOAT16), node("MatMul", "e w", "f")]
    nodes += [cast("f", "y", T.FLOAT)]
    constants = {"g": rand(16)}
    model = agree(half(nodes, constants=constants, types={"x": T.FLOAT, "y": T.FLOAT}), {"x": rand(4, 16)})
    assert ops(model) == ["LayerNormalization", "MatMul", "MatMul"]


def block(half_size: int, single_size: int) -> ir.Model:
    """A product in float16 behind one in float32, of so many outputs each."""
    nodes = [node("MatMul", "x v", "a"), node("Cast", "x", "h", to=T.FLOAT16), node("MatMul", "h u", "b")]
    constants = {"v": rand(16, single_size), "u": rand(16, half_size).astype(HALF)}
    proto = make(nodes, {"x": ("N", 16)}, ["a", "b"], constants, opset=17, types={"b": T.FLOAT16})
    return prepare(ir.from_proto(proto), target=USUAL).model


def test_one_block_in_half_precision_stays_and_the_greater_part_decides():
    assert others(block(16, 16)) == ["MatMul"]
    assert others(block(8, 64)) == ["MatMul"]
    assert others(block(17, 16)) == []


def test_positions_of_a_map_count():
    """Few weights, many products: the convolution decides, not the head behind it."""
    nodes = [node("Conv", "x k", "c", pads=[1, 1, 1, 1]), node("Flatten", "c", "f")]
    nodes += [node("Cast", "f", "g", to=T.FLOAT), node("MatMul", "g v", "y")]
    constants = {"k": rand(4, 3, 3, 3).astype(HALF), "v": rand(4 * 64, 16)}
    proto = make(nodes, {"x": (1, 3, 8, 8)}, ["y"], constants, opset=17, types={"x": T.FLOAT16})
    source = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert not computed_in_float32(source)
    source.graph[0].outputs[0].shape = None
    assert computed_in_float32(source)


def test_everywhere_is_everywhere():
    nodes = [node("MatMul", "x v", "a"), node("Cast", "x", "h", to=T.FLOAT16), node("MatMul", "h u", "b")]
    constants = {"v": rand(16, 64), "u": rand(16, 8).astype(HALF)}
    proto = make(nodes, {"x": ("N", 16)}, ["a", "b"], constants, opset=17, types={"b": T.FLOAT16})
    model = in_float32(ir.from_proto(proto), target=USUAL)
    assert others(model) == []
    assert equivalent(ir.from_proto(proto), model, {"x": rand(4, 16)}) <= ROUNDED


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_behind_a_cast_are_constants_that_remember_how_they_are_stored(kind):
    nodes = [node("Gather", "table x", "r"), node("Cast", "r", "e", to=1)]
    nodes += [node("Cast", "w", "v", to=1), node("Transpose", "v", "t", perm=[1, 0]), node("MatMul", "e t", "a")]
    nodes += [
        node("Constant", "", "k", value=numpy_helper.from_array(rand(16).astype(kind))),
        node("Cast", "k", "b", to=1),
    ]
    nodes += [node("Add", "a b", "y")]
    constants = {"table": rand(50, 16).astype(kind), "w": rand(16, 16).astype(kind)}
    proto = make(nodes, {"x": ("N",)}, ["y"], constants, opset=17, types={"x": T.INT64})
    source = ir.from_proto(proto)
    model = prepare(source, target=USUAL).model
    assert ops(model) == ["Add", "Gather", "MatMul"]
    table = model.graph.initializers[model.graph[0].inputs[0].name].const_value
    assert isinstance(table, Widened)
    assert table.source.dtype == ir.DataType.from_numpy(np.dtype(kind))
    assert equivalent(source, model, {"x": np.array([3, 1, 49])}) == 0


def test_an_embedding_that_is_read_in_half_too_stays():
    nodes = [node("Gather", "table i", "r"), node("Cast", "r", "e", to=1), node("MatMul", "e v", "y")]
    nodes += [node("Relu", "r", "z")]
    constants = {"table": rand(50, 16).astype(HALF), "v": rand(16, 64)}
    kinds = {"i": T.INT64, "z": T.FLOAT16}
    proto = make(nodes, {"i": ("N",)}, ["y", "z"], constants, opset=17, types=kinds)
    model = prepare(ir.from_proto(proto), target=USUAL).model
    assert ops(model) == ["Cast", "Gather", "MatMul", "Relu"]
    assert equivalent(ir.from_proto(proto), model, {"i": np.array([3, 1, 49])}) == 0


def test_double_neither_overflows_nor_becomes_zero():
    numbers = np.array([np.finfo(np.float64).min, np.finfo(np.float64).tiny, -1e-300, 0.0, np.inf, np.nan, 1.5])
    single = to_float32(numbers)
    assert single.dtype == np.float32
    assert np.isfinite(single[:4]).all()
    assert single[0] == np.finfo(np.float32).min
    assert single[1] > 0 > single[2]
    assert single[3] == 0
    assert single[4] == np.inf
    assert np.isnan(single[5])
    assert single[6] == 1.5


def test_what_is_stored_narrow_again():
    source = ir.Tensor(W)
    assert narrowed(Widened(source, name="a"), None) is source
    assert narrowed(Widened(ir.Tensor(W.astype(np.float64)), name="a"), ir.DataType.FLOAT16) is None
    made = ir.Tensor(rand(8, 8))
    assert narrowed(made, None) is None
    rounded = narrowed(made, ir.DataType.FLOAT16)
    assert rounded is not None
    assert rounded.dtype == ir.DataType.FLOAT16
    np.testing.assert_allclose(rounded.numpy().astype(np.float32), made.numpy(), rtol=1e-3, atol=1e-6)
    assert narrowed(ir.Tensor(np.array([1e6, 1], np.float32)), ir.DataType.FLOAT16) is None  # overflows
    assert narrowed(ir.Tensor(np.array([1e6, 1], np.float32)), ir.DataType.BFLOAT16) is not None
    assert narrowed(ir.Tensor(np.array([1e-12, 0], np.float32)), ir.DataType.FLOAT16) is None  # becomes 0


# -- structures -------------------------------------------------------------------------------------------------------


def branch(nodes, output, constants=(), *, name="b"):
    return helper.make_graph(nodes, name, [], [info(output)], list(constants))


def with_if() -> onnx.ModelProto:
    then = branch([node("MatMul", "h w", "t")], "t")
    other = branch([node("Add", "h k", "e")], "e", [numpy_helper.from_array(np.array(2, HALF), "k")])
    nodes = [node("Relu", "x", "h"), node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c")]
    return half([*nodes, node("If", "c", "y", then_branch=then, else_branch=other)])


def with_a_branch_that_is_a_constant() -> onnx.ModelProto:
    ones = numpy_helper.from_array(np.ones((4, 16), HALF), "t")
    then, other = branch([], "t", [ones]), branch([node("MatMul", "x w", "e")], "e")
    nodes = [node("ReduceSum", "x", "s", keepdims=0), node("Less", "s zero", "c")]
    return half([*nodes, node("If", "c", "y", then_branch=then, else_branch=other)])


def with_loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("MatMul", "h w", "a"), node("Tanh", "a", "h2"), node("Identity", "go", "go2"), node("Relu", "h2", "s")],
        "body",
        [info("i", T.INT64, ()), info("go", T.BOOL, ()), info("h")],
        [info("go2", T.BOOL, ()), info("h2"), info("s")],
    )
    constants = {"m": np.array(3), "t": np.array(True)}
    return half([node("Loop", "m t x", "y all", body=body)], "y all", constants)


def with_scan() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Add", "h e", "h2"), node("Neg", "h2", "o")],
        "body",
        [info("h", shape=(16,)), info("e", shape=(16,))],
        [info("h2", shape=(16,)), info("o", shape=(16,))],
    )
    nodes = [node("MatMul", "x w", "a"), node("Scan", "z a", "last y", body=body, num_scan_inputs=1)]
    return half(nodes, "y", {"z": np.zeros(16, HALF)})


def with_function() -> onnx.ModelProto:
    opset = helper.make_opsetid("", 17)
    layer = helper.make_function(
        "my", "Layer", ["a", "b"], ["o"], [node("MatMul", "a b", "m"), node("Relu", "m", "o")], [opset]
    )
    nodes = [node("Layer", "x w", "h", domain="my"), node("MatMul", "h w", "y")]
    return half(nodes, functions=[layer], extra_opsets={"my": 1})


ALL_FLOAT32 = {
    "if": with_if,
    "branch": with_a_branch_that_is_a_constant,
    "loop": with_loop,
    "scan": with_scan,
    "function": with_function,
    "an input is an output": lambda: half([node("MatMul", "x w", "y")], "y x"),
    "an identity of an input": lambda: half([node("MatMul", "x w", "y"), node("Neg", "x", "z")], "y z"),
    "a constant is an output": lambda: half([node("MatMul", "x w", "y")], "y w"),
    "a value within is an output": lambda: half(
        [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b w", "y")], "y a b"
    ),
    "a float32 output beside": lambda: half(
        [node("MatMul", "x w", "y"), node("Cast", "y", "z", to=1)], "y z", types={"z": T.FLOAT}
    ),
    "opset 9": lambda: half([node("MatMul", "x w", "a"), node("Clip", "a", "y", min=-1.0, max=6.0)], opset=9),
    "bounds": lambda: half(
        [node("MatMul", "x w", "a"), node("Clip", "a low high", "y")],
        constants={"low": np.array(-65504, HALF), "high": np.array(1, HALF)},
    ),
    "made constants": lambda: half(
        [
            node("Shape", "x", "s"),
            node("ConstantOfShape", "s", "k", value=numpy_helper.from_array(np.array([0.5], HALF))),
            node("HannWindow", "size", "h", output_datatype=T.FLOAT16),
            node("MatMul", "x w", "a"),
            node("Add", "a k", "b"),
            node("Mul", "b h", "c"),
            node("Cast", "one", "u", to=T.FLOAT16),
            node("Add", "c u", "y"),
        ],
        constants={"size": np.array(16)},
    ),
    "contrib": lambda: half(
        [node("MatMul", "x w", "a"), node("Gelu", "a", "b", domain="com.microsoft"), node("MatMul", "b w", "y")],
        extra_opsets={"com.microsoft": 1},
    ),
}


@pytest.mark.parametrize("name", ALL_FLOAT32)
def test_whatever_a_half_model_is_made_of(name):
    assert others(agree(ALL_FLOAT32[name]())) == []


@pytest.mark.parametrize("low", [-np.inf, float(np.finfo(HALF).min), -1e4])
def test_masks_of_attention(low):
    nodes = [node("MatMul", "x w", "s"), node("Where", "m zero low", "bias"), node("Add", "s bias", "b")]
    nodes += [node("Softmax", "b", "p"), node("MatMul", "p w", "y")]
    mask = np.tile(np.arange(16) < 9, (4, 1))
    proto = half(
        nodes, constants={"low": np.array(low, HALF)}, inputs={"x": ("N", 16), "m": ("N", 16)}, types={"m": T.BOOL}
    )
    assert others(agree(proto, {**X, "m": mask})) == []


KEPT = {
    "sequence": (
        [node("MatMul", "x w", "a"), node("SequenceConstruct", "a x", "q"), node("SequenceAt", "q one", "b")],
        ["SequenceAt"],
    ),
    "split": (
        [
            node("MatMul", "x w", "a"),
            node("SplitToSequence", "a", "q", axis=1),
            node("ConcatFromSequence", "q", "b", axis=1),
        ],
        ["ConcatFromSequence"],
    ),
    "map": (
        [
            node("MatMul", "x w", "a"),
            node("SequenceConstruct", "a x", "q"),
            node(
                "SequenceMap",
                "q",
                "r",
                body=helper.make_graph([node("Relu", "e", "f")], "body", [info("e")], [info("f")]),
            ),
            node("SequenceAt", "r one", "b"),
        ],
        ["Relu", "SequenceAt"],
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_sequences_keep_their_type(name):
    nodes, kept = KEPT[name]
    model = agree(half([*nodes, node("MatMul", "b w", "y")]))
    assert sorted(others(model)) == kept


def test_text_keeps_its_digits():
    """A double has more of them than float32."""
    nodes = [node("MatMul", "x w", "y"), node("Cast", "x", "t", to=T.STRING)]
    kinds = {"x": T.DOUBLE, "y": T.DOUBLE, "t": T.STRING}
    proto = make(nodes, {"x": ("N", 16)}, ["y", "t"], {"w": W.astype(np.float64)}, types=kinds)
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 16))}
    found = run(prepare(ir.from_proto(proto), target=USUAL).model, feeds)["t"]
    np.testing.assert_array_equal(found, run(ir.from_proto(proto), feeds)["t"])


def test_sizes_are_computed_as_they_were():
    """3 * (1 - 1e-12) is below 3 in double, and 3 in float32."""
    nodes = [node("MatMul", "x w", "a"), node("Shape", "a", "n"), node("Cast", "n", "d", to=T.DOUBLE)]
    nodes += [node("Mul", "d f", "m"), node("Floor", "m", "l"), node("Cast", "l", "i", to=T.INT64)]
    nodes += [node("Slice", "a start i", "y")]
    constants = {"w": W.astype(np.float64), "f": np.array([1 - 1e-12, 1.0]), "start": np.array([0, 0])}
    proto = make(nodes, {"x": ("N", 16)}, ["y", "i"], constants, types={"x": T.DOUBLE, "y": T.DOUBLE, "i": T.INT64})
    model = agree(proto, {"x": rand(3, 16).astype(np.float64)}, tolerance=1e-6)
    assert others(model) == ["Mul", "Floor"]


def test_trees_and_scalers_get_their_numbers_as_they_are():
    scaler = node("Scaler", "x", "a", domain="ai.onnx.ml", offset=[1e6] * 16, scale=[1.0] * 16)
    nodes = [scaler, node("Cast", "a", "d", to=T.DOUBLE), node("MatMul", "d w", "y")]
    proto = make(
        nodes,
        {"x": ("N", 16)},
        ["y"],
        {"w": W.astype(np.float64)},
        opset=17,
        types={"x": T.DOUBLE, "y": T.DOUBLE},
        extra_opsets={"ai.onnx.ml": 1},
    )
    agree(proto, {"x": 1e6 + rand(4, 16).astype(np.float64)}, tolerance=1e-5)


@pytest.mark.parametrize(
    ("mean", "scale", "divides", "kept"),
    [
        (1e8, 2.0, "Div", ["Sub", "Div"]),  # milliseconds, say
        (20.0, 1e-3, "Div", ["Sub", "Div"]),
        (20.0, 1e3, "Mul", ["Sub", "Mul"]),
        (20.0, 2.0, "Div", []),
        (1023.0, 1.0, "Div", []),
    ],
)
def test_a_large_mean_is_taken_off_in_double(mean, scale, divides, kept):
    """As pipelines of scikit-learn begin. The results agree to what float32 knows of standardized numbers."""
    nodes = [node("Sub", "x mean", "a"), node(divides, "a scale", "b"), node("MatMul", "b w", "y")]
    constants = {"mean": np.full(16, mean), "scale": np.full(16, scale), "w": W.astype(np.float64)}
    proto = make(nodes, {"x": ("N", 16)}, ["y"], constants, opset=17, types={"x": T.DOUBLE, "y": T.DOUBLE})
    deviation = scale if divides == "Div" else 1 / scale
    feeds = {"x": mean + deviation * np.random.default_rng(0).standard_normal((4, 16))}
    assert others(agree(proto, feeds, tolerance=1e-6 if kept else 1e-4)) == kept
