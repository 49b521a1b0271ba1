"""What a layer multiplies, against onnxruntime's own operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from zoo import Net, prepared

from onnxq.errors import ModelError
from onnxq.graph.geometry import Geometry
from onnxq.graph.linear import geometry_of, linear_before, linear_ending_at, linear_of
from onnxq.graph.rescale import rescaled_input, rescaled_output
from onnxq.runtime.session import open_session

RNG = np.random.default_rng(0)
_START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws from the start, whichever ran before it."""
    RNG.bit_generator.state = _START


# input shape, weight shape, attributes
CONVOLUTIONS = {
    "plain": ([2, 3, 7, 6], [5, 3, 3, 3], {}),
    "padded unevenly": ([2, 3, 7, 6], [4, 3, 3, 2], {"pads": [1, 0, 2, 1]}),
    "strided": ([1, 4, 9, 8], [6, 4, 3, 3], {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilated": ([1, 2, 9, 9], [3, 2, 3, 3], {"dilations": [2, 3]}),
    "grouped": ([2, 6, 5, 5], [9, 2, 3, 3], {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise": ([2, 4, 6, 6], [4, 1, 3, 3], {"group": 4, "strides": [2, 2]}),
    "depthwise, two each": ([1, 4, 6, 6], [8, 1, 3, 3], {"group": 4}),
    "one dimension": ([3, 4, 11], [5, 4, 4], {"auto_pad": "SAME_UPPER", "strides": [3]}),
    "three dimensions": ([1, 2, 4, 5, 4], [3, 2, 2, 2, 2], {"strides": [1, 2, 1]}),
    "same upper": ([1, 3, 8, 7], [4, 3, 4, 3], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ([1, 3, 8, 7], [4, 3, 4, 3], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "same upper, oddly": ([1, 3, 8, 8], [4, 3, 3, 3], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower, oddly": ([1, 3, 8, 8], [4, 3, 3, 3], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": ([1, 3, 8, 7], [4, 3, 3, 3], {"auto_pad": "VALID"}),
}


def check(node: str, x_shape: list[int], w_shape: list[int], **attributes: object) -> Geometry:
    """Rows times matrix is what onnxruntime computes; channels come last."""
    n = Net()
    w = RNG.standard_normal(w_shape).astype(np.float32)
    n(node, "x", n.const("w", w), name="layer", out="y", **attributes)
    proto = n.model({"x": x_shape}, {"y": [f"d{i}" for i in range(len(x_shape))]})
    x = RNG.standard_normal(x_shape).astype(np.float32)
    (y,) = open_session(proto.SerializeToString()).run(None, {"x": x})
    layer = geometry_of(next(iter(prepared(proto).graph)))
    assert layer is not None
    rows, matrix = layer.rows(x), layer.matrix(w)
    assert rows.shape[2] == matrix.shape[2] == layer.inputs
    np.testing.assert_array_equal(layer.tensor(matrix), w)
    got = np.matmul(rows, matrix.transpose(0, 2, 1))  # [g, R, C]
    got = np.moveaxis(got, 0, 1).reshape(rows.shape[1], -1)
    want = np.moveaxis(y, 1, -1) if node == "Conv" else y
    np.testing.assert_allclose(got, want.reshape(-1, want.shape[-1]), rtol=1e-4, atol=1e-5)
    return layer


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    x, w, attributes = CONVOLUTIONS[name]
    check("Conv", x, w, **attributes)


def test_matrix_products() -> None:
    assert check("MatMul", [2, 5, 8], [8, 6]).inputs == 8
    assert check("Gemm", [5, 8], [8, 6]).inputs == 8
    assert check("Gemm", [5, 8], [6, 8], transB=1).inputs == 8


def test_a_part_of_the_rows_is_spread_over_all() -> None:
    layer = Geometry((4, 2, 3, 3), True, kernel=(3, 3), strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1))
    x = RNG.standard_normal((3, 2, 8, 8)).astype(np.float32)
    every, some = layer.rows(x)[0], layer.rows(x, limit=40)[0]
    assert 30 <= some.shape[0] <= 40
    index = [int(np.flatnonzero((every == row).all(axis=1))[0]) for row in some]
    assert len(set(np.diff(index))) == 1
    assert {i % 8 for i in index} == set(range(8))  # every column of the map is met
    assert index[-1] > 0.9 * len(every)


def test_other_nodes_are_no_linear_layers() -> None:
    n = Net()
    y = n("MatMul", "x", n.weight("w", 4, 4), name="mm")
    n("MatMul", y, y, name="both", out="y")
    model = prepared(n.model({"x": [4, 4]}, {"y": [4, 4]}))
    found = {node.name: geometry_of(node) for node in model.graph if isinstance(node, ir.Node)}
    assert found["both"] is None
    assert found["mm"] is not None


# -- the layer in the graph -------------------------------------------------------------------------------------------


def layers(n: Net, x: list[int], rank: int) -> tuple[ir.Model, dict[str, ir.Node]]:
    """A model from ``x`` to ``y``, not prepared, with types and shapes, and its nodes."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(n.model({"x": x}, {"y": [f"d{i}" for i in range(rank)]})))
    return model, {node.name or "": node for node in model.graph}


def test_channels_of_each_layout() -> None:
    n = Net()
    y = n("Conv", "x", n.weight("c", 6, 2, 3, 3), name="conv", group=2)
    y = n("ConvTranspose", y, n.weight("t", 6, 5, 2, 2), n.vector("tb", 10), name="up", group=2)
    y = n("Flatten", y, name="flat")
    y = n("Gemm", y, n.weight("g", 7, 90), n.vector("gb", 7), name="gemm", transB=1, beta=0.5, alpha=2.0)
    n("MatMul", y, n.weight("m", 7, 3), name="mm", out="y")
    _, nodes = layers(n, [1, 4, 4, 4], 2)
    found = {name: linear_of(node) for name, node in nodes.items()}
    sizes = {name: (li.channels, li.inner_channels, li.groups, li.axis) for name, li in found.items() if li is not None}
    assert sizes == {"conv": (6, 4, 2, 1), "up": (10, 6, 2, 1), "gemm": (7, 90, 1, -1), "mm": (3, 7, 1, -1)}
    gemm, up = found["gemm"], found["up"]
    assert gemm is not None
    assert up is not None
    np.testing.assert_allclose(gemm.bias, 0.5 * n.constants["gb"])
    assert (gemm.alpha, up.geometry) == (2.0, None)


@pytest.mark.parametrize(
    ("shape", "rank", "held"),
    [
        ((6,), 3, True),
        ((), 3, True),
        ((1,), 3, True),
        ((1, 6), 3, True),
        ((1, 1, 6), 3, True),
        ((5, 1), 3, False),
        ((5, 6), 3, False),
        ((1, 1, 6), 2, False),
    ],
)
def test_an_add_holds_the_bias_of_a_product(shape: tuple[int, ...], rank: int, *, held: bool) -> None:
    for first in (True, False):
        n = Net()
        y = n("MatMul", "x", n.weight("w", 8, 6), name="mm")
        bias = n.const("b", np.random.default_rng(0).standard_normal(shape))
        n("Add", *((bias, y) if first else (y, bias)), name="add", out="y")
        _, nodes = layers(n, [2, 5, 8][3 - rank :], max(rank, len(shape)))
        layer, whole = linear_of(nodes["mm"]), linear_ending_at(nodes["add"])
        assert layer is not None
        assert (layer.add is nodes["add"], whole is not None) == (held, held)
        if held and whole is not None:
            assert layer.bias_at == (nodes["add"], 0 if first else 1)
            assert layer.result is nodes["add"].outputs[0]
            np.testing.assert_array_equal(whole.bias, np.broadcast_to(n.constants["b"].reshape(-1), 6))
        assert layer.alone.bias_at is None
        assert linear_before(nodes["mm"].outputs[0]).add is None  # type: ignore[union-attr]


def test_an_add_of_two_products_holds_no_bias() -> None:
    n = Net()
    y = n("MatMul", "x", n.weight("w", 8, 8), name="mm")
    n("Add", y, y, name="add", out="y")
    _, nodes = layers(n, [5, 8], 2)
    layer = linear_of(nodes["mm"])
    assert layer is not None
    assert layer.add is None
    assert linear_ending_at(nodes["add"]) is None


def test_a_layer_is_as_its_node_is_at_the_time() -> None:
    n = Net()
    n("MatMul", "x", n.weight("w", 8, 6), name="mm", out="y")
    _, nodes = layers(n, [5, 8], 2)
    layer = linear_of(nodes["mm"])
    assert layer is not None
    change = rescaled_input(layer, np.full(8, 2.0), np.zeros(8))
    assert change is not None
    np.testing.assert_array_equal(layer.weight, n.constants["w"])
    assert change.store(label="twice") is layer.result
    np.testing.assert_array_equal(layer.weight, 2 * n.constants["w"])
    nodes["mm"].replace_input_with(1, nodes["mm"].inputs[0])
    with pytest.raises(ModelError, match="the weight of 'mm' is no constant"):
        _ = layer.weight


def test_numbers_that_overflow_change_nothing() -> None:
    n = Net()
    bias = n.const("b", np.full(6, 1e38))
    n("Gemm", "x", n.weight("w", 8, 6), bias, name="gemm", out="y")
    _, nodes = layers(n, [5, 8], 2)
    layer = linear_of(nodes["gemm"])
    assert layer is not None
    assert rescaled_output(layer, np.full(6, 4.0), np.zeros(6)) is None
    assert rescaled_output(layer, np.full(6, 2.0), np.zeros(6)) is not None
    assert rescaled_input(layer, np.full(8, 1e39), np.zeros(8)) is None


def test_a_computed_bias_cannot_be_folded_into() -> None:
    n = Net()
    b = n("ReduceMean", "x", name="mean", axes=[0], keepdims=0)
    n("Gemm", "x", n.weight("w", 6, 6), b, name="gemm", out="y")
    _, nodes = layers(n, [5, 6], 2)
    layer = linear_of(nodes["gemm"])
    assert layer is not None
    assert not layer.foldable
    assert linear_ending_at(nodes["gemm"]) is None
