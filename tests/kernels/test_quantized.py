"""The records of what only quantized models and optimised graphs have."""

from __future__ import annotations

import pytest
from onnx import helper

from onnxq.kernels.operators import named
from onnxq.measure.kernels import kernels_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("QLinearConv", "integer compute"),
        ("QLinearSoftmax", "integer elementwise"),
        ("QLinearOfTomorrow", "integer elementwise"),
        ("QOrderedAttention", "integer elementwise"),
        ("NhwcMaxPool", "integer movement"),
        ("Softmax", "other"),
        ("FusedConv", "float compute"),
    ],
)
def test_kernels_of_the_optimised_graph_have_records_too(name: str, kind: str) -> None:
    assert named(name).kind == kind
    assert named(name).quantized == kind.startswith("integer") * (kind != "integer movement")


@pytest.mark.parametrize(("zero_point", "kind"), [("zero", "integer movement"), ("", "other")])
def test_a_product_without_an_output_zero_point_writes_floats(zero_point: str, kind: str) -> None:
    inputs = ["a", "s", "z", "b", "s", "z", "", "s" if zero_point else "", zero_point]
    product = helper.make_node("QGemm", inputs, ["y"], domain="com.microsoft")
    graph = helper.make_graph([product, helper.make_node("Transpose", ["y"], ["t"])], "g", [], [])
    assert [kernel.kind for kernel in kernels_of(graph)] == ["integer compute", kind]
