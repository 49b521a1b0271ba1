"""What changes of layout and conversions cost in a placement: found by where its decision tips."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from zoo import Net, prepared

from onnxq.config import Config, Rule
from onnxq.kernels.costs import CostTable, Grid
from onnxq.kernels.targets import TARGETS
from onnxq.plan import make_plan
from onnxq.plan.placement import Costs, force_gemm, table_costs, uneconomic

VNNI = TARGETS["x86-vnni"]
# Microseconds a thousand elements. Powers of two: a sum says which of them are in it, and how often.
QUANTIZE, DEQUANTIZE, TRANSPOSE, INTO_BLOCKS, OUT_OF_BLOCKS, CONCAT = 1.0, 2.0, 4.0, 8.0, 16.0, 64.0
UNITS = {
    ("QuantizeLinear", "float"): QUANTIZE,
    ("DequantizeLinear", "float"): DEQUANTIZE,
    ("Transpose", "int8"): TRANSPOSE,
    ("Transpose", "float"): 128.0,
    ("ReorderInput", "float"): INTO_BLOCKS,
    ("ReorderOutput", "float"): OUT_OF_BLOCKS,
    ("Concat", "float"): CONCAT,
    ("Concat", "int8"): CONCAT,
}


def table() -> CostTable:
    """In proportion to elements; every layer takes a hundredth of a microsecond."""
    axes = (("elements", (1.0, 1e6)),)
    grids = {key: Grid(axes, np.array([1e-3, 1e3]) * us) for key, us in UNITS.items()}
    sizes = tuple((axis, (1.0, 1e6)) for axis in ("reduction", "channels", "pixels"))
    for kernel in ("conv.pointwise", "conv.spatial", "matmul"):
        grids.update({(kernel, number): Grid(sizes, np.full((2, 2, 2), 0.01)) for number in ("float", "int8")})
    return CostTable("test", grids)


def conversions(proto: onnx.ModelProto, shape: tuple[int, ...], rules: tuple[Rule, ...] = (), **how: Any) -> float:
    """The gain, in microseconds and to a thousandth, from which on the convolution ``middle`` runs on integers."""
    model = prepared(proto)
    plan = make_plan(model, Config(rules=rules), VNNI)
    assert plan.integer == ("middle",)
    names = {v.name for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None and v.name}
    shapes = dict.fromkeys(names, shape)

    def stays(gain: float) -> bool:
        costs = Costs({"middle": gain}, {"middle": 0.0}, **how)
        return bool(uneconomic(model, plan, shapes, table(), VNNI, costs=costs))

    low, high = 0.0, 1024.0
    while high - low > 5e-4:
        half = (low + high) / 2
        low, high = (half, high) if stays(half) else (low, half)
    return high


def alone() -> onnx.ModelProto:
    n = Net(1)
    n.conv("x", 16, 16, k=1, name="middle", out="y")
    return n.model({"x": [1, 16, 4, 4]}, {"y": [1, 16, 4, 4]})


def between(before: str, after: str) -> onnx.ModelProto:
    """``before`` -> convolution ``middle`` -> ``after``; both become float by the rules of ``FLOAT``."""
    n = Net(2)

    def one(op: str, x: str, name: str, out: str | None = None) -> str:
        if op == "Conv":
            return n.conv(x, 16, 16, k=1, name=name, out=out)
        if op == "Conv+Relu":
            return n("Relu", n.conv(x, 16, 16, k=1, name=name), name=f"{name}_relu", out=out)
        return n(op, x, name=name, out=out)

    x = one(before, "x", "before")
    one(after, n.conv(x, 16, 16, k=1, name="middle"), "after", "y")
    return n.model({"x": [1, 16, 4, 4]}, {"y": [1, 16, 4, 4]})


FLOAT = (Rule("before", "float"), Rule("after", "float"))
MAP = (1, 16, 25, 5)  # two thousand elements


def test_maps_are_put_channels_last_and_back() -> None:
    expected = 2 * (QUANTIZE + TRANSPOSE + DEQUANTIZE + TRANSPOSE)
    assert conversions(alone(), MAP) == pytest.approx(expected, abs=1e-2)


def test_only_maps_have_a_layout() -> None:
    assert conversions(alone(), (1, 16, 125)) == pytest.approx(2 * (QUANTIZE + DEQUANTIZE), abs=1e-2)


def test_a_slower_machine_converts_more_slowly() -> None:
    once = 2 * (QUANTIZE + TRANSPOSE + DEQUANTIZE + TRANSPOSE)
    assert conversions(alone(), MAP, pace=3.0) == pytest.approx(3.0 * once, abs=1e-2)
    assert conversions(alone(), MAP, pace=0.5) == pytest.approx(0.5 * once, abs=1e-2)


@pytest.mark.parametrize(
    ("before", "after", "blocks"),
    [
        ("Conv", "Softplus", OUT_OF_BLOCKS),
        ("Conv+Relu", "Softplus", OUT_OF_BLOCKS),  # an activation keeps the blocks of what it reads
        ("Softplus", "Conv", INTO_BLOCKS),
        ("Conv", "Conv", OUT_OF_BLOCKS + INTO_BLOCKS),
        ("Softplus", "Softplus", 0.0),
    ],
)
def test_float_convolutions_beside_an_integer_one_keep_blocks(before: str, after: str, blocks: float) -> None:
    expected = 2 * (QUANTIZE + TRANSPOSE + DEQUANTIZE + TRANSPOSE + blocks)
    assert conversions(between(before, after), MAP, FLOAT) == pytest.approx(expected, abs=1e-2)


def test_blocks_are_of_maps_alone() -> None:
    expected = 2 * (QUANTIZE + DEQUANTIZE)
    assert conversions(between("Conv", "Conv"), (1, 16, 125), FLOAT) == pytest.approx(expected, abs=1e-2)


def joined(channels: int, *, reader: str = "Conv", maker: str = "Conv") -> onnx.ModelProto:
    """Two operands of ``channels`` each, from ``maker``, are joined for ``reader``."""
    n = Net(3)
    parts = [
        n.conv(x, 16, channels, k=1, name=f"{x}_conv") if maker == "Conv" else n(maker, x, name=f"{x}_other")
        for x in ("a", "b")
    ]
    y = n("Concat", *parts, name="join", axis=1)
    if reader == "Conv":
        n.conv(y, 2 * channels, 16, k=1, name="last", out="y")
    else:
        n.linear(y, 4, 4, name="last", out="y")
    dims = [1, 16 if maker == "Conv" else channels, 4, 4]
    return n.model({"a": dims, "b": dims}, {"y": [1, 16 if reader == "Conv" else 2 * channels, 4, 4]})


@pytest.mark.parametrize(
    ("channels", "how", "out_of", "into"),
    [
        (24, {}, 2, 1),
        (24, {"reader": "MatMul"}, 2, 0),
        (24, {"maker": "Softplus"}, 0, 1),
        (32, {}, 0, 0),  # operands that fill blocks of 16 are joined as they are
    ],
)
def test_a_concat_that_breaks_blocks_pays_for_them_in_float(
    channels: int, how: dict[str, str], out_of: int, into: int
) -> None:
    model = prepared(joined(channels, **how))
    plan = make_plan(model, Config(), VNNI)
    operand = (1, channels, 5, 5)
    shapes = {v.name: operand for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None}
    shapes |= {"join_out": (1, 2 * channels, 5, 5), "y": (1, 16, 5, 5)}
    found = table_costs(model, plan, shapes, table(), VNNI)
    thousands = channels * 25 / 1000
    reorders = out_of * OUT_OF_BLOCKS * thousands + into * INTO_BLOCKS * 2 * thousands
    assert found.float_us["join"] == pytest.approx(CONCAT * thousands + reorders)
    assert found.integer_us["join"] == pytest.approx(CONCAT * thousands)


def test_what_is_not_known_of_a_size_costs_nothing() -> None:
    model = prepared(joined(24))
    plan = make_plan(model, Config(), VNNI)
    shapes = {"a_conv_out": (1, 24, 5, 5), "join_out": (1, 48, 5, 5)}
    found = table_costs(model, plan, shapes, table(), VNNI)
    reorders = OUT_OF_BLOCKS * 0.6 + INTO_BLOCKS * 1.2  # of the other operand nothing is known
    assert found.float_us["join"] == pytest.approx(CONCAT * 0.6 + reorders)


# -- direct or by matrix products --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gemm_us", "expected"), [(0.89, {"middle"}), (0.91, set()), (1.2, set())])
def test_matrix_products_must_save_a_tenth(gemm_us: float, expected: set[str]) -> None:
    model = prepared(alone())
    grids = dict(table().grids)
    sizes = grids["conv.pointwise", "int8"].axes
    grids["conv.pointwise", "int8"] = Grid(sizes, np.full((2, 2, 2), 1.0))
    grids["conv.pointwise", "int8-gemm"] = Grid(sizes, np.full((2, 2, 2), gemm_us))
    shapes = dict.fromkeys(("x", "y"), (1, 16, 4, 4))
    assert force_gemm(model, shapes, CostTable("test", grids), VNNI) == expected
