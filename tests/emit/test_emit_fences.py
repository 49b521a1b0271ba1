"""Float nodes between integer layers that onnxruntime would break, each through the whole of quantizing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config, quantize

EVERYTHING = Config(placement="all", equalize="none")
CHANNELS, SIDE = 32, 12
LEAST_DB = 25.0


def between(
    op: str, constants: dict[str, object], *, opset: int = 19, relu: bool = True, **how: object
) -> onnx.ModelProto:
    """Convolutions around one ``op`` whose inputs behind the first are ``constants``, "-..." for one not there."""
    rng, nodes, arrays = np.random.default_rng(0), [], {}

    def conv(x: str, y: str, inputs: int, outputs: int) -> None:
        arrays[f"{y}_w"] = (rng.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(inputs * 4)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [x, f"{y}_w"], [y], name=y, pads=[1] * 4))

    conv("x", "a", 3, CHANNELS)
    if relu:
        nodes.append(helper.make_node("Relu", ["a"], ["r"], name="r"))
    arrays.update({k: np.asarray(v) for k, v in constants.items() if not k.startswith("-")})
    inputs = ["r" if relu else "a", *("" if k.startswith("-") else k for k in constants)]
    nodes.append(helper.make_node(op, inputs, ["m"], name="middle", **how))
    conv("m", "b", CHANNELS, CHANNELS)
    nodes.append(helper.make_node("GlobalAveragePool", ["b"], ["y"], name="y"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CHANNELS, 1, 1])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def data(count: int = 24) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)}


def on_integers(proto: onnx.ModelProto) -> None:
    """Both convolutions run on integers, and the answers are those of the float model."""
    result = quantize(proto, data(), config=EVERYTHING)
    assert {a.node for a in result.report.integer} >= {"a", "b"}
    assert result.comparison.sqnr_db > LEAST_DB


F = np.float32
SMALLER = {"-": 0, "scales": np.array([1, 1, 0.5, 0.75], F)}
SIZES = {"-": 0, "--": 0, "sizes": np.array([8, 10])}


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_resize_by_axes(mode, axes):
    on_integers(between("Resize", {"-": 0, "scales": np.array([1.5, 0.8], F)}, mode=mode, axes=axes))
    on_integers(between("Resize", SIZES, mode=mode, axes=axes))


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
def test_cubic_resize_that_makes_smaller(coordinates):
    on_integers(between("Resize", SMALLER, opset=13, mode="cubic", coordinate_transformation_mode=coordinates))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_without_aliasing(mode):
    on_integers(between("Resize", SMALLER, mode=mode, antialias=1))


@pytest.mark.parametrize("axes", [[2, 3], [-2, -1]])
@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_resize_with_a_common_factor(policy, axes):
    on_integers(between("Resize", SIZES, mode="linear", axes=axes, keep_aspect_ratio_policy=policy))


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap", "constant"])
def test_pad_by_axes(mode):
    on_integers(between("Pad", {"pads": np.array([1, 2, 1, 0]), "-": 0, "axes": np.array([-1, 2])}, mode=mode))


def test_centre_crop_and_pad():
    on_integers(between("CenterCropPad", {"shape": np.array([8, 14])}, axes=[2, 3]))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("how", [{"pads": [2] * 4}, {"count_include_pad": 1, "pads": [1] * 4}, {"strides": [2, 2]}])
def test_dilated_average(how, relu):
    on_integers(between("AveragePool", {}, relu=relu, kernel_shape=[3, 3], dilations=[2, 2], **how))


@pytest.mark.parametrize("op", ["MaxPool", "LpPool"])
def test_other_dilated_pools(op):
    on_integers(between(op, {}, relu=False, kernel_shape=[3, 3], dilations=[2, 1], pads=[1] * 4))


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool", "LpPool"])
@pytest.mark.parametrize("how", [{}, {"dilations": [1, 1]}, {"auto_pad": "SAME_LOWER"}, {"pads": [1, 0, 1, 0]}])
def test_pools_that_round_up(op, how):
    on_integers(between(op, {}, opset=22, kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1, **how))


def test_a_fence_is_no_layer_that_computes():
    result = quantize(between("AveragePool", {}, kernel_shape=[3, 3], dilations=[2, 2]), data(), config=EVERYTHING)
    assert [n.op_type for n in result.model.graph if n.name and n.name.startswith("middle_fenced")] == ["Einsum"]
    assert {a.op for a in result.report.assignments} <= {"Conv", "QLinearConv"}


def without(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from onnxq.kernels import operators

    bare = replace(operators.OPERATORS[op], breaks_between_integers=lambda _: False)
    monkeypatch.setitem(operators.OPERATORS, op, bare)


@pytest.mark.parametrize(
    ("op", "constants", "how"),
    [
        ("Resize", SMALLER, {"mode": "cubic"}),
        ("AveragePool", {}, {"kernel_shape": [3, 3], "dilations": [2, 2], "relu": False}),
        ("CenterCropPad", {"shape": np.array([8, 14])}, {"axes": [2, 3]}),
    ],
)
def test_without_a_fence_onnxruntime_breaks_it(op, constants, how, monkeypatch):
    """Why the fences are there; where this fails one day, they can go."""
    without(op, monkeypatch)
    maker: Callable[..., onnx.ModelProto] = between
    result = quantize(maker(op, constants, **how), data(), config=EVERYTHING)
    assert {a.node for a in result.report.integer} < {"a", "b"}
    assert any("onnxruntime cannot run the model with integers there" in note for note in result.report.notes)
