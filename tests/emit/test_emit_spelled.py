"""What is spelled otherwise so that another kernel runs it: enlarged maps, convolutions of few channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from emitting import Emitted, emitted, session
from zoo import Net, feeds

from onnxq.config import Config, Rule
from onnxq.emit import emit
from onnxq.graph.io import serialize
from onnxq.kernels.targets import TARGETS, resolve_target
from onnxq.measure.kernels import kernel_map
from onnxq.plan import Weight

Array = npt.NDArray[Any]
REPEATING = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def ops(e: Emitted) -> list[str]:
    return [n.op_type for n in e.model.graph]


def answers(content: bytes, data: list[dict[str, Array]]) -> list[Array]:
    """All outputs, node by node as written."""
    s = session(content, optimized=False)
    return [output for feed in data for output in s.run(None, feed)]


def same_numbers(e: Emitted, other: bytes, data: list[dict[str, Array]]) -> None:
    for mine, theirs in zip(answers(e.content, data), answers(other, data), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def plainly(e: Emitted) -> bytes:
    """The same plan and parameters, each operator spelled as it is."""
    plan = replace(e.plan, weights=tuple(replace(w, padded_input_channels=0) for w in e.plan.weights))
    return serialize(emit(e.prepared, plan, **vars(e.parameters), steer=False))


# -- enlarged maps ----------------------------------------------------------------------------------------------------


def enlarging(
    dims: list[int | str], ends: tuple[str, list[float]], *, channels: int = 16, **how: Any
) -> onnx.ModelProto:
    """Conv, Relu, Resize called "resize", Conv."""
    n = Net(3)
    x = n("Relu", n.conv("x", 3, channels, name="one"), name="relu")
    end = n.const("ends", ends[1], np.float32 if ends[0] == "scales" else np.int64)
    given = [x, "", end] if ends[0] == "scales" else [x, "", "", end]
    n.conv(n("Resize", *given, name="resize", mode="nearest", **how), channels, 16, name="two", out="y")
    return n.model({"x": dims}, {"y": ["n", 16, "h", "w"]})


def images(height: int, width: int, count: int = 2) -> list[dict[str, Array]]:
    rng = np.random.default_rng(7)
    return [{"x": rng.standard_normal((count, 3, height, width)).astype(np.float32)} for _ in range(4)]


@pytest.mark.parametrize("dims", [[2, 3, 6, 5], ["n", 3, 6, "w"], ["n", 3, "h", 5], ["n", 3, "h", "w"]])
@pytest.mark.parametrize("factors", [(2, 2), (1, 3), (4, 1), (3, 2)])
def test_enlarging_is_joining_bit_for_bit(dims: list[int | str], factors: tuple[int, int]) -> None:
    data = images(6, 5)
    e = emitted(enlarging(dims, ("scales", [1, 1, *factors]), **REPEATING), data=data)
    assert "Resize" not in ops(e)
    assert ops(e).count("Concat") == sum(f > 1 for f in factors) + (dims[2:] == ["h", "w"])
    same_numbers(e, plainly(e), data)


@pytest.mark.parametrize("factor", [2, 3, 5, 8])
@pytest.mark.parametrize("mode", ["half_pixel", "pytorch_half_pixel"])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil"])
def test_half_pixels_too_repeat_by_whole_factors(factor: int, mode: str, rounding: str) -> None:
    data = images(4, 3)
    how = {"coordinate_transformation_mode": mode, "nearest_mode": rounding}
    e = emitted(enlarging([2, 3, 4, 3], ("scales", [1, 1, factor, factor]), **how), data=data)
    assert "Resize" not in ops(e)
    same_numbers(e, plainly(e), data)


def test_sizes_say_the_factor_where_the_shape_is_known() -> None:
    data = images(6, 5)
    e = emitted(enlarging([2, 3, 6, 5], ("sizes", [2, 16, 12, 15]), **REPEATING), data=data)
    assert "Resize" not in ops(e)
    same_numbers(e, plainly(e), data)


@pytest.mark.parametrize(
    ("ends", "how"),
    [
        (("scales", [1, 1, 1.5, 2]), REPEATING),
        (("scales", [1, 1, 0.5, 0.5]), REPEATING),
        (("sizes", [2, 16, 13, 10]), REPEATING),
        (("scales", [1, 2, 2, 2]), REPEATING),
        (("scales", [1, 1, 2, 2]), {**REPEATING, "nearest_mode": "ceil"}),
        (("scales", [1, 1, 2, 2]), {**REPEATING, "coordinate_transformation_mode": "align_corners"}),
        (
            ("scales", [1, 1, 2, 2]),
            {"coordinate_transformation_mode": "align_corners", "nearest_mode": "round_prefer_floor"},
        ),
        (
            ("scales", [1, 1, 2, 2]),
            {"coordinate_transformation_mode": "align_corners", "nearest_mode": "round_prefer_ceil"},
        ),
    ],
)
def test_what_does_more_than_repeat_stays_a_resize(ends: tuple[str, list[float]], how: dict[str, Any]) -> None:
    proto = enlarging([2, 3, 6, 5], ends, **how)
    if ends[1][1] != 1 and ends[0] == "scales":  # channels that are enlarged need a second convolution of as many
        n = Net(3)
        x = n(
            "Resize", n.conv("x", 3, 8, name="one"), "", n.const("ends", ends[1]), name="resize", mode="nearest", **how
        )
        n.conv(x, 16, 16, name="two", out="y")
        proto = n.model({"x": [2, 3, 6, 5]}, {"y": ["n", 16, "h", "w"]})
    data = images(6, 5)
    e = emitted(proto, data=data)
    assert "resize" in e.plan.integer
    assert "Resize" in ops(e)


def test_enlarged_maps_are_copied_in_the_layout_of_the_convolutions() -> None:
    data = images(8, 8)
    e = emitted(enlarging([2, 3, 8, 8], ("scales", [1, 1, 2, 2]), **REPEATING), data=data)
    ran = [k.op for k in kernel_map(e.content).nodes]
    assert ran.count("QLinearConv") == 2
    # One in front of the first convolution, one behind the last: those of the spelling cancel.
    assert ran.count("Transpose") == 2


def test_maps_that_do_not_come_from_an_integer_convolution_keep_resize() -> None:
    n = Net(4)
    x = n("Reshape", n.linear("x", 8, 32, name="dense"), n.const("maps", [1, 8, 2, 2], np.int64), name="reshape")
    x = n("Resize", x, "", n.const("ends", [1, 1, 2, 2]), name="resize", mode="nearest", **REPEATING)
    n.conv(x, 8, 16, name="conv", out="y")
    proto = n.model({"x": [1, 8]}, {"y": [1, 16, 4, 4]})
    e = emitted(proto)
    assert "Resize" in ops(e)
    assert "Concat" not in ops(e)


# -- few input channels -----------------------------------------------------------------------------------------------


def first(cin: int, cout: int = 32, *, k: int = 3, relu: bool = True, **how: Any) -> onnx.ModelProto:
    n = Net(6)
    y = n.conv("x", cin, cout, k=k, name="first", **how)
    n.conv(n("Relu", y, name="relu") if relu else y, cout, 16, name="second", out="y")
    return n.model({"x": [1, cin, 16, 16]}, {"y": ["n", 16, "h", "w"]})


def weight_of(e: Emitted, node: str) -> Weight:
    return next(w for w in e.plan.weights if w.node == node)


@pytest.mark.parametrize("cin", [1, 2, 3])
@pytest.mark.parametrize("k", [3, 7])
def test_channels_of_zeros_change_no_number(cin: int, k: int) -> None:
    proto = first(cin, k=k, strides=[2, 2])
    e = emitted(proto)
    assert weight_of(e, "first").padded_input_channels == 4 - cin
    assert ops(e).count("Pad") == 1
    same_numbers(e, plainly(e), feeds(proto, 3))
    convolutions = [k for k in kernel_map(e.content).nodes if k.op == "QLinearConv"]
    assert len(convolutions) == 2


@pytest.mark.parametrize(
    "proto",
    [
        first(4),
        first(3, 12),
        first(3, k=1),
        first(3, k=2, strides=[2, 2]),  # patches
        first(3, 33, group=3),
        first(3, k=9),
    ],
    ids=["four channels", "few outputs", "pointwise", "patches", "groups", "large kernel"],
)
def test_where_the_direct_kernel_is_not_to_be_had_or_had_already_nothing_is_added(proto: onnx.ModelProto) -> None:
    e = emitted(proto)
    assert [w.padded_input_channels for w in e.plan.weights] == [0, 0]
    assert "Pad" not in ops(e)


def test_what_integer_kernels_write_is_not_padded() -> None:
    n = Net(6)
    x = n.conv("x", 16, 3, name="narrow")
    n.conv(n("Relu", x, name="relu"), 3, 32, name="wide", out="y")
    e = emitted(n.model({"x": [1, 16, 8, 8]}, {"y": [1, 32, 8, 8]}))
    assert [w.padded_input_channels for w in e.plan.weights] == [0, 0]


def test_other_readers_of_a_padded_input_read_it_as_it_is() -> None:
    n = Net(6)
    one, two = n.conv("x", 3, 32, name="one"), n.conv("x", 3, 8, name="two")
    n("Concat", one, two, name="join", out="y", axis=1)
    proto = n.model({"x": [1, 3, 8, 8]}, {"y": [1, 40, 8, 8]})
    e = emitted(proto)
    assert {w.node: w.padded_input_channels for w in e.plan.weights} == {"one": 1, "two": 0}
    same_numbers(e, plainly(e), feeds(proto, 3))


def test_one_weight_with_and_without_spare_channels() -> None:
    n = Net(6)
    weight = n.weight("w", 16, 3, 3, 3)
    mixed = n("Relu", n.conv("x", 3, 3, name="mix"), name="relu")
    for name, x in (("outer", "x"), ("inner", mixed)):
        n("Conv", x, weight, name=name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    n("Add", "outer_out", "inner_out", name="sum", out="y")
    proto = n.model({"x": [1, 3, 8, 8]}, {"y": [1, 16, 8, 8]})
    e = emitted(proto)
    assert {w.node: w.padded_input_channels for w in e.plan.weights} == {"mix": 0, "outer": 1, "inner": 0}
    same_numbers(e, plainly(e), feeds(proto, 3))


@pytest.mark.parametrize("weights", ["int4", "int3", "int6", "int4:32", "codebook4"])
def test_packed_weights_are_padded_too(weights: str) -> None:
    proto = first(3)
    e = emitted(proto, config=Config(weights=weights, first_last=weights))
    assert weight_of(e, "first").padded_input_channels == 1
    same_numbers(e, plainly(e), feeds(proto, 3))
    assert [k.op for k in kernel_map(e.content).nodes].count("QLinearConv") == 2


def test_not_steered_convolutions_nor_where_no_such_kernel_is() -> None:
    force_gemm = Config(rules=(Rule("first", "int8-gemm"),))
    assert weight_of(emitted(first(3), config=force_gemm), "first").padded_input_channels == 0
    spare = {
        name: weight_of(emitted(first(3), target=resolve_target(name)), "first").padded_input_channels
        for name in TARGETS
    }
    assert spare == {"x86-vnni": 1, "x86-amx": 1, "x86-avx2": 1, "arm64": 0}
