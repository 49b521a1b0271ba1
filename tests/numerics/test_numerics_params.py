"""QuantParams against onnxruntime's own QuantizeLinear and DequantizeLinear, bit for bit, and its specification."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from onnxq.errors import NumericsError
from onnxq.numerics import (
    INT4,
    INT7_NARROW,
    INT8,
    INT8_NARROW,
    INT32,
    SMALLEST_SCALE,
    UINT4,
    UINT8,
    Granularity,
    PerAxis,
    PerBlock,
    PerTensor,
    QType,
    QuantParams,
    bias_params,
    from_range,
    params,
    round_half_even,
)

Array = npt.NDArray[Any]
ONNX = {
    UINT8: TensorProto.UINT8,
    INT8: TensorProto.INT8,
    INT32: TensorProto.INT32,
    UINT4: TensorProto.UINT4,
    INT4: TensorProto.INT4,
}
# Every kind of float32 that could surprise a rounding rule; NaN has no defined code.
SPECIAL = np.array(
    [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        3.4028235e38,
        -3.4028235e38,
        1e-45,
        -1e-45,
        1.1754942e-38,
        1.17549435e-38,
        1e30,
        -1e30,
    ],
    np.float32,
)
FLOATS = st.floats(width=32, allow_nan=False)
SCALES = st.floats(min_value=2.0**-126, max_value=2.0**100, width=32)


def run_one(nodes: list[onnx.NodeProto], inputs: dict[str, int], output: int, *, opset: int) -> ort.InferenceSession:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("y", output, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@lru_cache
def quantizer(qtype: QType, axis: int | None) -> ort.InferenceSession:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], **({} if axis is None else {"axis": axis}))
    kinds = {"x": TensorProto.FLOAT, "s": TensorProto.FLOAT, "z": ONNX[qtype]}
    return run_one([node], kinds, ONNX[qtype], opset=13)


@lru_cache
def dequantizer(qtype: QType, axis: int | None) -> ort.InferenceSession:
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **({} if axis is None else {"axis": axis}))
    kinds = {"q": ONNX[qtype], "s": TensorProto.FLOAT, "z": ONNX[qtype]}
    return run_one([node], kinds, TensorProto.FLOAT, opset=13)


@lru_cache
def nibbles(qtype: QType, *, block: int = 0) -> ort.InferenceSession:
    """4-bit codes of ``x`` as 8-bit integers; the zero point comes in as 8-bit integers too."""
    wide = TensorProto.INT8 if qtype.signed else TensorProto.UINT8
    how = {"axis": 1, "block_size": block} if block else {}
    nodes = [
        helper.make_node("Cast", ["z"], ["z4"], to=ONNX[qtype]),
        helper.make_node("QuantizeLinear", ["x", "s", "z4"], ["q"], **how),
        helper.make_node("Cast", ["q"], ["y"], to=wide),
    ]
    return run_one(nodes, {"x": TensorProto.FLOAT, "s": TensorProto.FLOAT, "z": wide}, wide, opset=21)


@lru_cache
def from_nibbles(qtype: QType, *, block: int = 0) -> ort.InferenceSession:
    wide = TensorProto.INT8 if qtype.signed else TensorProto.UINT8
    how = {"axis": 1, "block_size": block} if block else {}
    nodes = [
        helper.make_node("Cast", ["z"], ["z4"], to=ONNX[qtype]),
        helper.make_node("Cast", ["q"], ["q4"], to=ONNX[qtype]),
        helper.make_node("DequantizeLinear", ["q4", "s", "z4"], ["y"], **how),
    ]
    return run_one(nodes, {"q": wide, "s": TensorProto.FLOAT, "z": wide}, TensorProto.FLOAT, opset=21)


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check(p: QuantParams, x: Array, *, axis: int | None = None) -> None:
    (codes,) = quantizer(p.qtype, axis).run(None, {"x": x, "s": p.scale, "z": p.zero_point})
    assert same_bits(p.quantize(x), codes)
    (real,) = dequantizer(p.qtype, axis).run(None, {"q": codes, "s": p.scale, "z": p.zero_point})
    with np.errstate(over="ignore"):
        assert same_bits(p.dequantize(codes), real)
        assert same_bits(p.fake_quantize(x), real)


def zeros_of(qtype: QType) -> st.SearchStrategy[int]:
    return st.integers(qtype.qmin, qtype.qmax)


@pytest.mark.parametrize("qtype", [UINT8, INT8], ids=str)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_per_tensor_equals_onnxruntime(qtype: QType, data: st.DataObject) -> None:
    p = params(qtype, data.draw(SCALES), data.draw(zeros_of(qtype)))
    check(p, data.draw(hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS)))


@pytest.mark.parametrize("qtype", [UINT8, INT8], ids=str)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_per_axis_equals_onnxruntime(qtype: QType, data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=4))
    axis = data.draw(st.integers(0, len(shape) - 1))
    n = shape[axis]
    scale = data.draw(hnp.arrays(np.float32, n, elements=SCALES))
    zero = data.draw(hnp.arrays(np.int64, n, elements=zeros_of(qtype)))
    p = params(qtype, scale, zero, granularity=PerAxis(axis))
    check(p, data.draw(hnp.arrays(np.float32, shape, elements=FLOATS)), axis=axis)


@pytest.mark.parametrize("qtype", [UINT8, INT8], ids=str)
@pytest.mark.parametrize("scale", [SMALLEST_SCALE, 1e-6, 0.1, 0.5, 1.0, 1e30])
def test_special_values_equal_onnxruntime(qtype: QType, scale: float) -> None:
    for zero in {qtype.qmin, qtype.qmin + 1, 0, 1, 7, qtype.qmax}:
        check(params(qtype, scale, zero), SPECIAL)


@pytest.mark.parametrize("qtype", [UINT8, INT8], ids=str)
@pytest.mark.parametrize("zero", [0, 1, 2, 7, 100, 127])
def test_every_tie_equals_onnxruntime(qtype: QType, zero: int) -> None:
    """Halves of an exactly representable scale: rounding must not see the zero point, be it odd or even."""
    check(params(qtype, 0.25, zero), ((np.arange(-600, 600) + 0.5) * 0.25).astype(np.float32))


def test_zero_point_is_added_after_rounding() -> None:
    """0.5 rounds to 0 and then moves by the zero point 1; rounding 1.5 instead would give 2."""
    assert params(UINT8, 1.0, 1).quantize(np.array([0.5, 1.5, 2.5], np.float32)).tolist() == [1, 3, 3]


def test_division_is_in_float32() -> None:
    x = np.linspace(-20, 20, 100_003, dtype=np.float32)
    p = params(INT8, 0.0731)
    double = np.clip(np.rint(x.astype(np.float64) / np.float64(np.float32(0.0731))), -128, 127)
    check(p, x)
    ties = (np.arange(-128, 127) + np.float32(0.5)) * np.float32(0.0731)  # where the two may differ
    check(p, ties.astype(np.float32))
    assert np.abs(p.quantize(x) - double).max() <= 1


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_int32_dequantization_equals_onnxruntime(data: st.DataObject) -> None:
    codes = data.draw(hnp.arrays(np.int32, (3, 5), elements=st.integers(INT32.qmin, INT32.qmax)))
    scale = data.draw(hnp.arrays(np.float32, 3, elements=SCALES))
    p = params(INT32, scale, granularity=PerAxis(0))
    (real,) = dequantizer(INT32, 0).run(None, {"q": codes, "s": p.scale, "z": p.zero_point})
    with np.errstate(over="ignore"):
        assert same_bits(p.dequantize(codes), real)


def test_int32_codes_saturate_exactly() -> None:
    """float32 cannot hold 2**31 - 1: clipping in float32 would wrap to the most negative code."""
    x = np.array([1e30, -1e30, 2.0**31, -(2.0**31), 2.0**24 + 2, np.inf], np.float32)
    expected = [INT32.qmax, INT32.qmin, INT32.qmax, INT32.qmin, 2**24 + 2, INT32.qmax]
    assert params(INT32, 1.0).quantize(x).tolist() == expected


@pytest.mark.parametrize("qtype", [UINT4, INT4], ids=str)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_four_bits_equal_onnxruntime(qtype: QType, data: st.DataObject) -> None:
    p = params(qtype, data.draw(SCALES), data.draw(zeros_of(qtype)))
    x = np.append(data.draw(hnp.arrays(np.float32, st.integers(1, 20), elements=FLOATS)), SPECIAL)
    feed = {"s": p.scale, "z": p.zero_point}
    (codes,) = nibbles(qtype).run(None, {"x": x, **feed})
    assert same_bits(p.quantize(x), codes)
    (real,) = from_nibbles(qtype).run(None, {"q": codes, **feed})
    with np.errstate(over="ignore"):
        assert same_bits(p.dequantize(codes), real)


@pytest.mark.parametrize("qtype", [UINT4, INT4], ids=str)
@pytest.mark.parametrize("width", [32, 40, 5])  # 40: the last block of 16 is shorter; 5: one short block
def test_four_bit_blocks_equal_onnxruntime(qtype: QType, width: int) -> None:
    rng = np.random.default_rng(width)
    blocks = -(-width // 16)
    scale = rng.uniform(0.05, 0.2, (6, blocks)).astype(np.float32)
    zero = rng.integers(qtype.qmin, qtype.qmax + 1, (6, blocks))
    p = params(qtype, scale, zero, granularity=PerBlock(1, 16))
    x = rng.standard_normal((6, width)).astype(np.float32)
    feed = {"s": p.scale, "z": p.zero_point}
    (codes,) = nibbles(qtype, block=16).run(None, {"x": x, **feed})
    assert same_bits(p.quantize(x), codes)
    (real,) = from_nibbles(qtype, block=16).run(None, {"q": codes, **feed})
    assert same_bits(p.dequantize(codes), real)


@given(st.sampled_from([INT8_NARROW, INT7_NARROW, INT4]), SCALES, hnp.arrays(np.float32, 12, elements=FLOATS))
def test_codes_stay_within_the_type(qtype: QType, scale: float, x: Array) -> None:
    codes = params(qtype, scale).quantize(x)
    assert codes.min() >= qtype.qmin
    assert codes.max() <= qtype.qmax


@given(st.sampled_from([UINT8, INT8, INT8_NARROW, INT4]), st.data())
def test_requantizing_changes_nothing(qtype: QType, data: st.DataObject) -> None:
    """Every code survives dequantize and quantize."""
    p = params(qtype, data.draw(st.floats(2.0**-100, 2.0**100, width=32)), data.draw(zeros_of(qtype)))
    codes = np.arange(qtype.qmin, qtype.qmax + 1).astype(qtype.storage)
    np.testing.assert_array_equal(p.quantize(p.dequantize(codes)), codes)


def test_bounds_are_the_values_of_the_extreme_codes() -> None:
    p = params(UINT8, [0.5, 2.0], [10, 0], granularity=PerAxis(0))
    low, high = p.bounds()
    assert low.tolist() == [-5.0, 0.0]
    assert high.tolist() == [122.5, 510.0]
    p = params(INT8_NARROW, 0.5)
    assert [float(b) for b in p.bounds()] == [-63.5, 63.5]


# -- specification: what a QuantParams may hold -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "zero", "granularity", "complaint"),
    [
        (np.float64(1), np.uint8(0), PerTensor(), "float32"),
        (np.float32(0), np.uint8(0), PerTensor(), "positive"),
        (np.float32(-1), np.uint8(0), PerTensor(), "positive"),
        (np.float32(np.nan), np.uint8(0), PerTensor(), "finite"),
        (np.float32(np.inf), np.uint8(0), PerTensor(), "finite"),
        (np.ones(2, np.float32), np.zeros(2, np.uint8), PerTensor(), "scalar"),
        (np.ones(2, np.float32), np.uint8(0), PerAxis(0), "shape"),
        (np.float32(1), np.int8(0), PerTensor(), "uint8"),
    ],
)
def test_broken_parameters_are_refused(scale: Any, zero: Any, granularity: Granularity, complaint: str) -> None:
    with pytest.raises(NumericsError, match=complaint):
        QuantParams(UINT8, np.asarray(scale), np.asarray(zero), granularity)


@pytest.mark.parametrize(("qtype", "zero"), [(INT8_NARROW, -128), (INT7_NARROW, 64), (UINT4, 16), (INT4, -9)], ids=str)
def test_zero_point_outside_the_type_is_refused(qtype: QType, zero: int) -> None:
    with pytest.raises(NumericsError, match="zero_point must lie in"):
        params(qtype, 1.0, zero)


def test_a_tensor_of_another_shape_is_refused() -> None:
    p = params(INT8, [1.0, 2.0], granularity=PerAxis(0))
    with pytest.raises(NumericsError, match=r"\[2\] do not fit a tensor of shape \[3, 2\]"):
        p.quantize(np.zeros((3, 2), np.float32))
    with pytest.raises(NumericsError, match="no axis 0"):
        p.dequantize(np.zeros((), np.int8))


def test_equality_and_hash_follow_the_values() -> None:
    a, b = params(INT8, [1.0, 2.0], granularity=PerAxis(0)), params(INT8, [1.0, 2.0], granularity=PerAxis(0))
    assert a == b
    assert hash(a) == hash(b)
    others = [
        params(INT8, [1.0, 3.0], granularity=PerAxis(0)),
        params(INT8, [1.0, 2.0], granularity=PerAxis(1)),
        params(INT8, [1.0, 2.0], [0, 1], granularity=PerAxis(0)),
        params(INT8_NARROW, [1.0, 2.0], granularity=PerAxis(0)),
    ]
    assert all(a != other for other in others)
    assert a != "something else"


def test_symmetric_means_all_zero_points_are_zero() -> None:
    assert params(INT8, [1.0, 2.0], granularity=PerAxis(0)).symmetric
    assert not params(INT8, [1.0, 2.0], [0, 1], granularity=PerAxis(0)).symmetric


def test_params_broadcasts_one_zero_point() -> None:
    p = params(UINT8, [1.0, 2.0], 128, granularity=PerAxis(0))
    assert p.zero_point.tolist() == [128, 128]
    assert p.zero_point.dtype == np.uint8


# -- from_range ---------------------------------------------------------------------------------------------------

ENDS = st.floats(-1e30, 1e30)


@given(st.sampled_from([UINT8, INT8, UINT4, INT4, INT8_NARROW]), ENDS, ENDS)
def test_from_range_represents_zero_exactly(qtype: QType, a: float, b: float) -> None:
    p = from_range(qtype, min(a, b), max(a, b))
    assert float(p.fake_quantize(np.zeros((), np.float32))) == 0.0


@given(st.sampled_from([UINT8, INT8, UINT4, INT4, INT8_NARROW]), ENDS, ENDS)
def test_from_range_covers_its_range(qtype: QType, a: float, b: float) -> None:
    """Nothing in the range is clipped by more than half a step, the rounding of the zero point."""
    low, high = min(a, b), max(a, b)
    p = from_range(qtype, low, high)
    bottom, top = (float(v) for v in p.bounds())
    slack = 0.5001 * float(p.scale)
    assert bottom <= min(low, 0.0) + slack
    assert top >= max(high, 0.0) - slack


@given(st.sampled_from([UINT8, INT8]), st.floats(1e-30, 1e30))
def test_from_range_of_one_sign_uses_all_codes(qtype: QType, end: float) -> None:
    """Nothing below 0: the zero point is the lowest code, as a Relu absorbed by it demands; and the mirror image."""
    assert int(from_range(qtype, 0.0, end).zero_point) == qtype.qmin
    assert int(from_range(qtype, end / 2, end).zero_point) == qtype.qmin
    assert int(from_range(qtype, -end, 0.0).zero_point) == qtype.qmax


def test_from_range_by_hand() -> None:
    p = from_range(UINT8, -1.0, 1.55)
    assert float(p.scale) == pytest.approx(0.01)
    assert int(p.zero_point) == 100


@pytest.mark.parametrize("qtype", [UINT8, INT8])
def test_from_range_of_nothing_is_usable(qtype: QType) -> None:
    p = from_range(qtype, 0.0, 0.0)
    assert float(p.scale) == 1.0
    assert p.fake_quantize(np.zeros(2, np.float32)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (-np.inf, 0.0)])
def test_from_range_refuses_what_is_not_finite(low: float, high: float) -> None:
    with pytest.raises(NumericsError, match="finite"):
        from_range(UINT8, low, high)


@pytest.mark.parametrize("high", [1e-45, 1e-42, 1e-38])
def test_from_range_of_a_tiny_range_keeps_a_normal_scale(high: float) -> None:
    assert float(from_range(UINT8, 0.0, high).scale) >= SMALLEST_SCALE


# -- the int32 bias -----------------------------------------------------------------------------------------------


def test_bias_scale_is_the_float32_product() -> None:
    x, w = params(UINT8, 0.0123, 7), params(INT8, [0.1, 0.2, 0.3], granularity=PerAxis(1))
    b = bias_params(x, w)
    assert same_bits(b.scale, np.float32(0.0123) * np.array([0.1, 0.2, 0.3], np.float32))
    assert (b.qtype, b.granularity) == (INT32, PerAxis(0))
    assert b.symmetric


def test_bias_of_a_per_tensor_weight_is_per_tensor() -> None:
    b = bias_params(params(UINT8, 0.5), params(INT8, 0.25))
    assert b.granularity == PerTensor()
    assert float(b.scale) == 0.125


def test_bias_scale_never_underflows() -> None:
    b = bias_params(params(UINT8, 1e-30), params(INT8, [1e-30, 1.0], granularity=PerAxis(0)))
    assert b.scale.min() == np.float32(SMALLEST_SCALE)


def test_round_half_even_is_the_bankers_rule_in_float64() -> None:
    rounded = round_half_even([0.5, 1.5, -0.5, 2.5, 2.0**40 + 0.5])
    assert rounded.tolist() == [0.0, 2.0, 0.0, 2.0, 2.0**40]
    assert rounded.dtype == np.float64
