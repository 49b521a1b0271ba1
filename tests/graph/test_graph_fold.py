"""Folding BatchNormalization, arithmetic, padding and constants keeps what a model computes."""

import numpy as np
import onnx_ir as ir
import pytest
from graph_helpers import check, make, node, ops, rand
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL

FEW = settings(max_examples=15, deadline=None)


def bn_constants(channels, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda low, high: rng.uniform(low, high, channels).astype(np.float32)  # noqa: E731
    return {"g": draw(-2, 2), "b": draw(-1, 1), "m": draw(-1, 1), "v": draw(0.01, 4)}


BN = node("BatchNormalization", "h g b m v", "y", epsilon=1e-3)


@FEW
@given(
    groups=st.sampled_from([1, 2, 3]),
    dims=st.sampled_from([1, 2, 3]),
    transposed=st.booleans(),
    bias=st.booleans(),
    pad=st.sampled_from([0, 1]),
    seed=st.integers(0, 1000),
)
def test_batchnorm_after_convolutions(groups, dims, transposed, bias, pad, seed):
    c_in, c_out = 2 * groups, 3 * groups
    shape = (c_in, c_out // groups) if transposed else (c_out, c_in // groups)
    constants = {"w": rand(*shape, *[3] * dims, seed=seed), **bn_constants(c_out, seed)}
    if bias:
        constants["c"] = rand(c_out, seed=seed + 1)
    op = "ConvTranspose" if transposed else "Conv"
    conv = node(op, "x w c" if bias else "x w", "h", group=groups, pads=[pad] * (2 * dims))
    proto = make([conv, BN], {"x": ("N", c_in, *[5] * dims)}, ["y"], constants)
    assert ops(check(proto, {"x": rand(2, c_in, *[5] * dims, seed=seed)}).model) == [op]


@FEW
@given(
    trans_b=st.booleans(), alpha=st.sampled_from([1.0, 0.5]), beta=st.sampled_from([1.0, -2.0]), seed=st.integers(0, 99)
)
def test_batchnorm_after_gemm(trans_b, alpha, beta, seed):
    constants = {"w": rand(*((5, 4) if trans_b else (4, 5)), seed=seed), "c": rand(1, 5), **bn_constants(5, seed)}
    gemm = node("Gemm", "x w c", "h", transB=int(trans_b), alpha=alpha, beta=beta)
    proto = make([gemm, BN], {"x": ("N", 4)}, ["y"], constants)
    assert ops(check(proto, {"x": rand(3, 4, seed=seed)}).model) == ["Gemm"]


@pytest.mark.parametrize("bias", ["none", "right", "left"])
def test_batchnorm_after_matmul(bias):
    constants = {"w": rand(4, 5), **bn_constants(5)}
    nodes = [node("MatMul", "x w", "h" if bias == "none" else "p")]
    if bias != "none":
        constants["c"] = rand(5)
        nodes.append(node("Add", "p c" if bias == "right" else "c p", "h"))
    prepared = check(make([*nodes, BN], {"x": ("N", 4)}, ["y"], constants), {"x": rand(3, 4)})
    assert ops(prepared.model) == ["Add", "MatMul"]
    assert prepared.model.graph.outputs[0].name == "y"


def test_batchnorm_stays_where_it_normalises_another_axis_or_something_shared():
    rows = make([node("MatMul", "x w", "h"), BN], {"x": (2, 5, 4)}, ["y"], {"w": rand(4, 6), **bn_constants(5)})
    assert "BatchNormalization" in ops(check(rows, {"x": rand(2, 5, 4)}).model)
    square = make([node("MatMul", "x w", "h"), BN], {"x": (2, 5, 4)}, ["y"], {"w": rand(4, 5), **bn_constants(5)})
    assert "BatchNormalization" in ops(check(square, {"x": rand(2, 5, 4)}).model)
    conv = node("Conv", "x w", "h")
    both = make([conv, BN], {"x": (1, 2, 5)}, ["y", "h"], {"w": rand(3, 2, 3), **bn_constants(3)})
    assert "BatchNormalization" in ops(check(both, {"x": rand(1, 2, 5)}).model)
    twice = make([conv, BN, node("Add", "y h", "z")], {"x": (1, 2, 5)}, ["z"], {"w": rand(3, 2, 3), **bn_constants(3)})
    assert "BatchNormalization" in ops(check(twice, {"x": rand(1, 2, 5)}).model)


def test_shared_weights_are_copied_before_a_fold():
    nodes = [node("Conv", "x w", "h"), BN, node("Conv", "x w", "k"), node("Sub", "y k", "z")]
    prepared = check(
        make(nodes, {"x": (1, 2, 5)}, ["z"], {"w": rand(3, 2, 3), **bn_constants(3)}), {"x": rand(1, 2, 5)}
    )
    assert ops(prepared.model) == ["Conv", "Conv", "Sub"]


def test_a_negative_variance_or_an_infinite_weight_is_not_folded():
    constants = {"w": rand(3, 2, 3), **bn_constants(3)}
    constants["v"] = np.full(3, -5, np.float32)
    proto = make([node("Conv", "x w", "h"), BN], {"x": (1, 2, 5)}, ["y"], constants)
    model = prepare(ir.from_proto(proto), target=USUAL).model
    assert "BatchNormalization" in ops(model)


ARITHMETIC = [
    ("Mul", "h c"),
    ("Mul", "c h"),
    ("Add", "h c"),
    ("Add", "c h"),
    ("Sub", "h c"),
    ("Sub", "c h"),
    ("Div", "h c"),
]


@pytest.mark.parametrize(("op", "inputs"), ARITHMETIC)
@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (1, 3, 1, 1), (1, 1, 1, 1)])
def test_arithmetic_after_a_convolution(op, inputs, shape):
    constants = {"w": rand(3, 2, 3, 3), "c": rand(*shape) + np.float32(3)}
    proto = make([node("Conv", "x w", "h", pads=[1] * 4), node(op, inputs, "y")], {"x": (2, 2, 5, 5)}, ["y"], constants)
    assert ops(check(proto, {"x": rand(2, 2, 5, 5)}).model) == ["Conv"]


@pytest.mark.parametrize("shape", [(3,), (3, 1), (5, 5), (2, 1, 1, 1), (1, 1, 3, 1, 1), (2, 3, 1, 1)])
def test_arithmetic_that_is_not_per_channel_stays(shape):
    constants = {"w": rand(3, 2, 3, 3), "c": rand(*shape)}
    width = 3 if 3 in shape and shape[-1] == 3 else 5
    if shape == (3, 1):
        constants["w"] = rand(3, 2, 3, 3)
    size = {(3,): (5, 3), (3, 1): (3, 5)}.get(shape, (5, width))
    proto = make(
        [node("Conv", "x w", "h", pads=[1] * 4), node("Mul", "h c", "y")], {"x": (2, 2, *size)}, ["y"], constants
    )
    assert ops(check(proto, {"x": rand(2, 2, *size)}).model) == ["Conv", "Mul"]


@pytest.mark.parametrize(("op", "inputs"), ARITHMETIC)
def test_arithmetic_after_a_matmul(op, inputs):
    constants = {"w": rand(4, 5), "c": rand(5) + np.float32(3)}
    proto = make([node("MatMul", "x w", "h"), node(op, inputs, "y")], {"x": ("N", 3, 4)}, ["y"], constants)
    found = ops(check(proto, {"x": rand(2, 3, 4)}).model)
    assert found == (["MatMul"] if op in ("Mul", "Div") else [op, "MatMul"] if op == "Add" else ["MatMul", op])


def test_layer_scale_after_a_matmul_with_bias():
    nodes = [node("MatMul", "x w", "p"), node("Add", "p b", "h"), node("Mul", "h c", "s"), node("Add", "s x", "y")]
    proto = make(nodes, {"x": ("N", 3, 4)}, ["y"], {"w": rand(4, 4), "b": rand(4), "c": rand(4)})
    assert ops(check(proto, {"x": rand(2, 3, 4)}).model) == ["Add", "Add", "MatMul"]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_normalisation_before_a_convolution_folds_only_as_far_as_padding_allows(padded, groups):
    constants = {"w": rand(6, 3 // groups, 3, 3), "mean": rand(1, 3, 1, 1), "std": rand(1, 3, 1, 1) + np.float32(3)}
    nodes = [
        node("Sub", "x mean", "a"),
        node("Div", "a std", "b"),
        node("Conv", "b w", "y", group=groups, pads=[int(padded)] * 4),
    ]
    prepared = check(make(nodes, {"x": (1, 3, 5, 5)}, ["y"], constants), {"x": rand(1, 3, 5, 5)})
    assert ops(prepared.model) == (["Conv", "Sub"] if padded else ["Conv"])


def test_auto_pad_counts_as_padding():
    constants = {"w": rand(6, 3, 3, 3), "c": np.array(0.5, np.float32)}
    for mode, left in (("SAME_UPPER", ["Add", "Conv"]), ("VALID", ["Conv"])):
        nodes = [node("Add", "x c", "a"), node("Conv", "a w", "y", auto_pad=mode)]
        assert ops(check(make(nodes, {"x": (1, 3, 5, 5)}, ["y"], constants), {"x": rand(1, 3, 5, 5)}).model) == left


@pytest.mark.parametrize("op", ["Gemm", "GemmT", "MatMul", "ConvTranspose"])
def test_arithmetic_before_other_linear_operators(op):
    weight = {"Gemm": rand(4, 5), "GemmT": rand(5, 4), "MatMul": rand(4, 5), "ConvTranspose": rand(4, 5, 3)}[op]
    linear = {
        "Gemm": node("Gemm", "b w", "y", alpha=0.5),
        "GemmT": node("Gemm", "b w", "y", transB=1),
        "MatMul": node("MatMul", "b w", "y"),
        "ConvTranspose": node("ConvTranspose", "b w", "y", pads=[1, 1]),
    }[op]
    conv = op == "ConvTranspose"
    constants = {"w": weight, "s": rand(*((4, 1) if conv else (4,))), "t": rand(*((4, 1) if conv else (4,)), seed=3)}
    nodes = [node("Add", "x t", "a"), node("Mul", "a s", "b"), linear]
    shape = (2, 4, 6) if conv else (2, 4)
    left = ops(check(make(nodes, {"x": shape}, ["y"], constants), {"x": rand(*shape)}).model)
    assert (
        left
        == {
            "Gemm": ["Gemm"],
            "GemmT": ["Gemm"],
            "MatMul": ["Add", "MatMul"],
            "ConvTranspose": ["Add", "ConvTranspose"],
        }[op]
    )


@FEW
@given(before=st.lists(st.integers(0, 2), min_size=4, max_size=4), own=st.sampled_from([None, [1, 0, 0, 1]]))
def test_pad_before_a_convolution(before, own):
    top, left, bottom, right = before
    pads = np.array([0, 0, top, left, 0, 0, bottom, right])
    conv = node("Conv", "p w", "y", **({} if own is None else {"pads": own}))
    proto = make([node("Pad", "x pads", "p"), conv], {"x": (1, 2, 5, 5)}, ["y"], {"w": rand(3, 2, 3, 3), "pads": pads})
    assert ops(check(proto, {"x": rand(1, 2, 5, 5)}).model) == ["Conv"]


@pytest.mark.parametrize(
    ("pad", "constants"),
    [
        (node("Pad", "x pads v", "p"), {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "v": np.array(1, np.float32)}),
        (node("Pad", "x pads", "p", mode="edge"), {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
        (node("Pad", "x pads", "p"), {"pads": np.array([0, 0, -1, 1, 0, 0, 1, 1])}),
        (node("Pad", "x pads", "p"), {"pads": np.array([1, 0, 0, 0, 0, 0, 0, 0])}),
    ],
    ids=["value", "edge", "negative", "batch"],
)
def test_other_pads_stay(pad, constants):
    proto = make([pad, node("Conv", "p w", "y")], {"x": (1, 2, 5, 5)}, ["y"], {"w": rand(3, 2, 3, 3), **constants})
    assert ops(check(proto, {"x": rand(1, 2, 5, 5)}).model) == ["Conv", "Pad"]


def test_pad_with_axes_of_opset_18():
    constants = {"w": rand(3, 2, 3, 3), "pads": np.array([1, 2, 0, 1]), "axes": np.array([2, -1])}
    proto = make(
        [node("Pad", "x pads - axes", "p"), node("Conv", "p w", "y")], {"x": (1, 2, 5, 5)}, ["y"], constants, opset=18
    )
    assert ops(check(proto, {"x": rand(1, 2, 5, 5)}).model) == ["Conv"]


@pytest.mark.parametrize("relu", [True, False])
def test_pad_before_max_pool_folds_only_after_something_non_negative(relu):
    nodes = [
        node("Relu", "x", "r") if relu else node("Neg", "x", "r"),
        node("Pad", "r pads", "p"),
        node("MaxPool", "p", "y", kernel_shape=[3, 3], strides=[2, 2]),
    ]
    proto = make(nodes, {"x": (1, 2, 6, 6)}, ["y"], {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])})
    assert ("Pad" in ops(check(proto, {"x": rand(1, 2, 6, 6)}).model)) is not relu


@pytest.mark.parametrize(
    ("pool", "folds"),
    [
        ({"dilations": [1, 1], "ceil_mode": 1}, True),  # nothing to round with a stride of 1
        ({"dilations": [1, 1], "strides": [2, 2]}, True),
        ({"ceil_mode": 1, "strides": [2, 2]}, False),
        ({"dilations": [2, 2]}, False),
    ],
)
def test_pad_folds_into_all_of_its_readers_or_none(pool, folds: bool):
    nodes = [
        node("Relu", "x", "r"),
        node("Pad", "r pads", "p"),
        node("MaxPool", "p", "m", kernel_shape=[2, 2], **pool),
        node("Conv", "p w", "y"),
    ]
    constants = {"pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "w": rand(3, 2, 3, 3)}
    proto = make(nodes, {"x": (1, 2, 5, 5)}, ["m", "y"], constants)
    assert ("Pad" not in ops(check(proto, {"x": rand(1, 2, 5, 5)}).model)) == folds


def test_pad_before_average_pool():
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    for own, left in ((None, ["AveragePool"]), ([1, 0, 0, 0], ["AveragePool", "Pad"])):
        pool = node("AveragePool", "p", "y", kernel_shape=[3, 3], **({"pads": own} if own else {}))
        proto = make([node("Pad", "x pads", "p"), pool], {"x": (1, 2, 6, 6)}, ["y"], constants)
        assert ops(check(proto, {"x": rand(1, 2, 6, 6)}).model) == left


def test_folds_inside_a_loop_body():
    body = helper.make_graph(
        [node("Conv", "s w", "h"), BN, node("Identity", "c", "c2")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("c", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["n", "true", "x"], ["z"], body=body)
    constants = {"w": rand(2, 2, 1), "n": np.array(3), "true": np.array(True), **bn_constants(2)}
    prepared = check(make([loop], {"x": (1, 2, 5)}, ["z"], constants), {"x": rand(1, 2, 5)})
    assert ops(prepared.model) == ["Conv", "Identity", "Loop"]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shift", [rand(1), rand(3, 1, 1)], ids=["one", "each"])
def test_a_scale_folds_past_the_shift_that_padding_keeps(groups, shift):
    constants = {"w": rand(6, 3 // groups, 3, 3), "a": np.array([0.4], np.float32), "b": shift}
    nodes = [
        node("Mul", "a x", "m"),
        node("Add", "m b", "s"),
        node("Conv", "s w", "y", group=groups, pads=[1] * 4),
    ]
    prepared = check(make(nodes, {"x": (1, 3, 5, 5)}, ["y"], constants), {"x": rand(1, 3, 5, 5)})
    assert ops(prepared.model) == ["Add", "Conv"]


@pytest.mark.parametrize("scale", [np.zeros(1, np.float32), np.array([1e-38], np.float32), rand(3, 1, 1)])
def test_a_scale_stays_where_the_shift_would_overflow_or_grow(scale):
    constants = {"w": rand(6, 3, 3, 3), "a": scale, "b": np.array([1e4], np.float32)}
    nodes = [node("Mul", "x a", "m"), node("Add", "m b", "s"), node("Conv", "s w", "y", pads=[1] * 4)]
    prepared = check(make(nodes, {"x": (1, 3, 5, 5)}, ["y"], constants), {"x": rand(1, 3, 5, 5)})
    assert ops(prepared.model) == ["Add", "Conv", "Mul"]
