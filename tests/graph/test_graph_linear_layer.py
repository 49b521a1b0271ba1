"""What a layer multiplies, against onnxruntime's own operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from zoo import Net, prepared

from onnxq.graph.linear_layer import LinearLayer, linear_layer
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


def check(node: str, x_shape: list[int], w_shape: list[int], **attributes: object) -> LinearLayer:
    """Rows times matrix is what onnxruntime computes; channels come last."""
    n = Net()
    w = RNG.standard_normal(w_shape).astype(np.float32)
    n(node, "x", n.const("w", w), name="layer", out="y", **attributes)
    proto = n.model({"x": x_shape}, {"y": [f"d{i}" for i in range(len(x_shape))]})
    x = RNG.standard_normal(x_shape).astype(np.float32)
    (y,) = open_session(proto.SerializeToString()).run(None, {"x": x})
    layer = linear_layer(next(iter(prepared(proto).graph)))
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
    layer = LinearLayer((4, 2, 3, 3), True, kernel=(3, 3), strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1))
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
    found = {node.name: linear_layer(node) for node in model.graph if isinstance(node, ir.Node)}
    assert found["both"] is None
    assert found["mm"] is not None
