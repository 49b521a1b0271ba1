"""Cost tables: what lies between their points, what ships, and how a node's work is found in them."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import Net, prepared

from onnxq.kernels.costs import CostTable, Grid, conversion_table, cost_table
from onnxq.kernels.targets import TARGETS
from onnxq.kernels.work import Work, breaks_blocks, fused_in_float, work_of
from onnxq.query import nodes

VNNI = TARGETS["x86-vnni"]
GRID = Grid((("a", (1.0, 4.0, 16.0)), ("b", (10.0, 100.0))), np.array([[1.0, 10.0], [4.0, 40.0], [16.0, 160.0]]))


@pytest.mark.parametrize(("sizes", "expected"), [((1, 10), 1), ((4, 100), 40), ((16, 10), 16)])
def test_points_are_what_was_measured(sizes, expected) -> None:
    assert GRID.at(*sizes) == pytest.approx(expected)


def test_between_points_a_power_law_is_met_exactly() -> None:
    assert GRID.at(7.3, 55.0) == pytest.approx(7.3 * 5.5)  # the grid is a * b / 10


def test_beyond_the_largest_point_in_proportion_and_below_the_smallest_as_there() -> None:
    assert GRID.at(32, 300) == pytest.approx(160 * 2 * 3)
    assert GRID.at(0.01, 1) == pytest.approx(1.0)


def test_a_wrong_number_of_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 sizes are needed \(a, b\)"):
        GRID.at(1.0)


SHIPPED = [name for name in TARGETS if cost_table(name) is not None]


@pytest.mark.parametrize("target", SHIPPED)
def test_a_shipped_table_is_complete_and_plausible(target: str) -> None:
    table = cost_table(target)
    assert table is not None
    kernels = {kernel for kernel, _ in table.grids}
    edges = {"QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput"}
    assert {"conv.pointwise", "conv.spatial", "conv.few", "conv.depthwise", "conv.grouped", "matmul"} < kernels
    assert all({(kernel, "float"), (kernel, "int8")} <= set(table.grids) for kernel in kernels - edges)
    for grid in table.grids.values():
        assert (grid.microseconds > 0).all()
        assert all(list(points) == sorted(set(points)) for _, points in grid.axes)
        # The largest size takes longer than the smallest, whatever the noise between.
        assert grid.microseconds.flat[-1] > grid.microseconds.flat[0]
    # What quantization is for: a large product is faster on integers.
    assert table.cost("matmul", "int8", 512, 512, 512) < table.cost("matmul", "float", 512, 512, 512)


def test_something_ships_and_serves_conversions_everywhere() -> None:
    assert SHIPPED
    for target in TARGETS:
        assert conversion_table(target).cost("QuantizeLinear", "float", 1e5) > 0
    assert cost_table("z80") is None


CONVOLUTIONS = [
    ({"cin": 16, "cout": 32, "k": 1}, "conv.pointwise", (16, 32, 64)),
    ({"cin": 16, "cout": 32, "k": 3}, "conv.spatial", (144, 32, 64)),
    ({"cin": 3, "cout": 32, "k": 9}, "conv.few", (243, 32, 64)),
    ({"cin": 16, "cout": 16, "k": 5, "group": 16}, "conv.depthwise", (16, 25, 64)),
    ({"cin": 16, "cout": 32, "k": 3, "group": 2}, "conv.grouped", (72, 32, 64)),
]


@pytest.mark.parametrize(("how", "kernel", "sizes"), CONVOLUTIONS)
def test_the_work_of_a_convolution(how, kernel, sizes) -> None:
    n = Net()
    n.conv("x", name="conv", out="y", **how)
    model = prepared(n.model({"x": [1, how["cin"], 8, 8]}, {"y": [1, how["cout"], 8, 8]}))
    (conv,) = nodes(model)
    assert work_of(conv, {"y": (1, how["cout"], 8, 8)}, VNNI) == Work(kernel, sizes)
    assert work_of(conv, {}, VNNI) is None


def test_what_is_spelled_otherwise_on_integers_costs_what_that_does() -> None:
    n = Net()
    n("Resize", n.conv("x", 3, 16, name="conv"), "", n.const("twice", [1, 1, 2, 2]), name="enlarge", out="y")
    model = prepared(n.model({"x": [1, 3, 8, 8]}, {"y": [1, 16, 16, 16]}))
    conv, enlarge = (work_of(n, {"conv_out": (1, 16, 8, 8), "y": (1, 16, 16, 16)}, VNNI) for n in nodes(model))
    otherwise = Work("conv.few", (27, 16, 64), integer=(("conv.spatial", (36, 16, 64)),))
    assert conv == Work("conv.widened", (3, 9, 16, 64), otherwise=otherwise)
    assert enlarge == Work("Resize", (4096,), integer=(("Concat", (3072,)),))
    flat = Grid((("size", (1.0, 9999.0)),), np.full(2, 7.0))
    assert enlarge.on_integers(CostTable("t", {("Concat", "int8"): flat})) == pytest.approx(7.0)
    grids = {
        (kernel, number): Grid(tuple((str(i), (1.0, 9e5)) for i in range(sizes)), np.full([2] * sizes, us))
        for kernel, sizes, number, us in [
            ("conv.few", 3, "float", 4.0),
            ("conv.few", 3, "int8", 5.0),
            ("conv.spatial", 3, "int8", 3.0),
            ("conv.widened", 4, "float", 2.0),
            ("conv.widened", 4, "int8", 1.0),
        ]
    }
    own = CostTable("t", grids)
    assert (conv.cost(own, "float"), conv.on_integers(own)) == pytest.approx((2.0, 1.0))
    older = CostTable("t", {k: g for k, g in grids.items() if k[0] != "conv.widened"})
    assert (conv.cost(older, "float"), conv.on_integers(older)) == pytest.approx((4.0, 3.0))


@pytest.mark.parametrize(("cin", "cout", "direct"), [(16, 16, True), (16, 8, False), (18, 32, False), (16, 18, False)])
def test_a_convolution_whose_channels_the_direct_kernel_does_not_take(cin: int, cout: int, direct: bool) -> None:
    n = Net()
    n.conv("x", cin, cout, name="conv", out="y")
    (node,) = nodes(prepared(n.model({"x": [1, cin, 8, 8]}, {"y": [1, cout, 8, 8]})))
    work = work_of(node, {"y": (1, cout, 8, 8)}, VNNI)
    assert work is not None
    assert work.direct == direct


def test_the_work_of_products_and_of_nodes_without_weights() -> None:
    n = Net()
    n("Reshape", n.linear("x", 8, 24, name="mm", bias=False), n.const("s", [0, -1], np.int64), name="view", out="y")
    n("GlobalAveragePool", "m", name="pool", out="z")
    n("Concat", "m", "m", name="join", axis=1, out="w")
    model = prepared(
        n.model({"x": [2, 5, 8], "m": [1, 4, 6, 6]}, {"y": [2, 120], "z": [1, 4, 1, 1], "w": [1, 8, 6, 6]})
    )
    shapes = {"mm_out": (2, 5, 24), "y": (2, 120), "m": (1, 4, 6, 6), "z": (1, 4, 1, 1), "w": (1, 8, 6, 6)}
    works = {node.name: work_of(node, shapes, VNNI) for node in nodes(model)}
    assert works == {
        "mm": Work("matmul", (10, 8, 24)),
        "view": Work("", ()),
        "pool": Work("GlobalAveragePool", (144,)),
        "join": Work("Concat", (144,)),  # of one operand
    }
    assert works["view"].cost(CostTable("t", {}), "int8") == 0.0


def test_what_float_kernels_take_in_costs_nothing_there() -> None:
    n = Net()
    x = n.conv("x", 4, 4, k=1, name="conv")
    n("Add", x, "x", name="sum", out="y")
    n("Mul", "x", n("Sigmoid", "x", name="gate"), name="silu", out="z")
    n("Mul", "x", "x", name="square", out="w")
    model = prepared(n.model({"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8], "z": [1, 4, 8, 8], "w": [1, 4, 8, 8]}))
    assert {node.name for node in nodes(model) if fused_in_float(node)} == {"sum", "silu"}


def test_steering_follows_the_table() -> None:
    axes = (("reduction", (1.0, 9.0)), ("channels", (1.0, 9.0)), ("pixels", (1.0, 9.0)))
    flat = {number: Grid(axes, np.full((2, 2, 2), us)) for number, us in (("int8", 10.0), ("int8-gemm", 8.5))}
    work = Work("conv.pointwise", (4, 4, 4))
    assert work.force_gemm(CostTable("t", {("conv.pointwise", k): g for k, g in flat.items()}))
    assert not work.force_gemm(CostTable("t", {("conv.pointwise", "int8"): flat["int8"]}))
    flat["int8-gemm"] = Grid(axes, np.full((2, 2, 2), 9.5))  # less of a gain than a table can tell
    assert not work.force_gemm(CostTable("t", {("conv.pointwise", k): g for k, g in flat.items()}))


def test_depthwise_channels_that_16_does_not_divide_cost_what_matrix_products_cost() -> None:
    axes = (("channels", (1.0, 99.0)), ("kernel", (1.0, 9.0)), ("pixels", (1.0, 99.0)))
    flat = {number: Grid(axes, np.full((2, 2, 2), us)) for number, us in (("int8", 10.0), ("int8-gemm", 20.0))}
    table = CostTable("t", {("conv.depthwise", k): g for k, g in flat.items()})
    found = {}
    for channels in (24, 32):
        n = Net()
        n.conv("x", channels, channels, name="conv", group=channels, out="y")
        (node,) = nodes(prepared(n.model({"x": [1, channels, 8, 8]}, {"y": [1, channels, 8, 8]})))
        work = work_of(node, {"x": (1, channels, 8, 8), "y": (1, channels, 8, 8)}, VNNI)
        found[channels] = (round(work.on_integers(table), 6), work.force_gemm(table))
    assert found == {24: (20.0, False), 32: (10.0, False)}


@pytest.mark.parametrize(
    ("op", "channels", "axis", "breaks"),
    [
        ("Concat", (32, 16), 1, False),
        ("Concat", (32, 24), 1, True),
        ("Concat", (32, 32), 2, True),
        ("Split", (32,), 1, True),
        ("Add", (24, 24), 1, False),
    ],
)
def test_float_layouts_that_a_node_breaks(op: str, channels: tuple[int, ...], axis: int, breaks: bool) -> None:
    n, names = Net(), [f"x{i}" for i in range(len(channels))]
    if op == "Split":
        n.many(op, *names, n.const("parts", [16, 16], np.int64), name="node", count=2, axis=axis)
    else:
        n(op, *names, name="node", **({"axis": axis} if op == "Concat" else {}))
    outs = ["node_out0", "node_out1"] if op == "Split" else ["node_out"]
    sizes = {name: [1, c, 8, 8] for name, c in zip(names, channels, strict=True)}
    (node,) = nodes(prepared(n.model(sizes, {o: [1, "c", "h", 8] for o in outs})))
    assert breaks_blocks(node, {name: tuple(size) for name, size in sizes.items()}, VNNI) == breaks
