"""What stands behind outputs, through what only moves, scales or stores numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from zoo import Net

from onnxq.graph.heads import heads
from onnxq.kernels.meaning import Head, Meaning


def of(n: Net, outputs: dict[str, object], **inputs: object) -> dict[str, Head]:
    return heads(ir.from_proto(n.model({"x": ["n", 4, 6], **inputs}, outputs)))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Softmax", Meaning.DISTRIBUTION),
        ("Sigmoid", Meaning.PROBABILITY),
        ("Relu", Meaning.NOT_NEGATIVE),
        ("Tanh", Meaning.BOUNDED),
        ("Ceil", Meaning.ROUNDED),
        ("Exp", Meaning.OTHER),
    ],
)
def test_the_operator_is_found_behind_what_moves_numbers(op: str, expected: Meaning) -> None:
    n = Net(0)
    y = n("Transpose", n(op, "x", name="head"), name="turn", perm=[0, 2, 1])
    y = n("Mul", y, n.const("two", 2.0), name="scale")
    n("Reshape", y, n.const("flat", [-1, 24], np.int64), name="flatten", out="y")
    assert of(n, {"y": ["n", 24]})["y"] == Head(op, expected)


def test_a_product_of_two_computed_values_is_no_scale() -> None:
    n = Net(0)
    n("Mul", n("Sigmoid", "x", name="a"), n("Relu", "x", name="b"), name="m", out="y")
    assert of(n, {"y": ["n", 4, 6]})["y"].op == "Mul"


def test_what_only_inputs_make_has_nothing_behind_it() -> None:
    n = Net(0)
    n("Identity", "x", name="same", out="y")
    assert of(n, {"y": ["n", 4, 6]})["y"] == Head()


def test_tokens_are_the_rows_of_tables_that_integer_inputs_choose_from() -> None:
    n = Net(0)
    embedded = n("Gather", n.weight("table", 50, 6, fan=6), "ids", name="embed")
    n("MatMul", embedded, n.weight("w", 6, 50), name="head", out="y")
    n("Identity", "x", name="same", out="z")
    found = of(n, {"y": ["n", "t", 50], "z": ["n", 4, 6]}, ids=(TensorProto.INT64, ["n", "t"]))
    assert found["y"] == Head("MatMul", Meaning.LINEAR, frozenset({50}))
