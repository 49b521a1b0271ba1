"""Integer types and granularity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.errors import NumericsError
from onnxq.numerics import (
    INT4,
    INT7_NARROW,
    INT8,
    INT8_NARROW,
    INT32,
    UINT4,
    UINT8,
    PerAxis,
    PerBlock,
    PerTensor,
    QType,
)


@pytest.mark.parametrize(
    ("qtype", "name", "ends", "levels", "storage"),
    [
        (UINT8, "uint8", (0, 255), 256, np.uint8),
        (INT8, "int8", (-128, 127), 256, np.int8),
        (INT8_NARROW, "int8n", (-127, 127), 255, np.int8),
        (INT7_NARROW, "int7n", (-63, 63), 127, np.int8),
        (UINT4, "uint4", (0, 15), 16, np.uint8),
        (INT4, "int4", (-8, 7), 16, np.int8),
        (INT32, "int32", (-(2**31), 2**31 - 1), 2**32, np.int32),
        (QType(2, signed=True), "int2", (-2, 1), 4, np.int8),
        (QType(12, signed=False), "uint12", (0, 4095), 4096, np.uint16),
    ],
)
def test_what_follows_from_bits_and_sign(
    qtype: QType, name: str, ends: tuple[int, int], levels: int, storage: type
) -> None:
    assert str(qtype) == qtype.name == name
    assert (qtype.qmin, qtype.qmax) == ends
    assert qtype.levels == levels
    assert qtype.storage == np.dtype(storage)


@pytest.mark.parametrize("bits", [1, 0, -8, 33])
def test_impossible_widths_are_refused(bits: int) -> None:
    with pytest.raises(NumericsError, match="2 to 32 bits"):
        QType(bits, signed=True)


def test_a_narrow_unsigned_type_is_refused() -> None:
    with pytest.raises(NumericsError, match="signed"):
        QType(8, signed=False, narrow=True)


def test_a_vpmaddubsw_pair_of_seven_bit_weights_cannot_saturate() -> None:
    """Two products of an unsigned 8-bit activation and a weight are added in 16 bits: that is what 7 bits are for."""
    assert 2 * UINT8.qmax * INT7_NARROW.qmax <= np.iinfo(np.int16).max
    assert 2 * UINT8.qmax * INT8_NARROW.qmax > np.iinfo(np.int16).max


@pytest.mark.parametrize(
    ("granularity", "shape", "expected"),
    [
        (PerTensor(), (), ()),
        (PerTensor(), (2, 3), ()),
        (PerAxis(0), (4, 3, 2), (4,)),
        (PerAxis(-1), (4, 3, 2), (2,)),
        (PerBlock(1, 16), (4, 33), (4, 3)),
        (PerBlock(0, 2), (4, 33), (2, 33)),
        (PerBlock(-1, 64), (4, 33), (4, 1)),
    ],
    ids=str,
)
def test_scale_shapes(
    granularity: PerTensor | PerAxis | PerBlock, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert granularity.scale_shape(shape) == expected


@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), st.data())
def test_expanding_gives_each_element_its_own_scale(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = data.draw(st.integers(1, 6))
    for granularity in (PerAxis(axis), PerBlock(axis, size)):
        scales = np.arange(np.prod(granularity.scale_shape(shape))).reshape(granularity.scale_shape(shape))
        full = np.broadcast_to(granularity.expand(scales, shape), shape)
        for index in np.ndindex(shape):
            a = axis % len(shape)
            mine = (index[a],) if isinstance(granularity, PerAxis) else (*index[:a], index[a] // size, *index[a + 1 :])
            assert full[index] == scales[mine]


@pytest.mark.parametrize("granularity", [PerAxis(2), PerAxis(-3), PerBlock(2, 4)], ids=str)
def test_an_axis_that_is_not_there_is_refused(granularity: PerAxis | PerBlock) -> None:
    with pytest.raises(NumericsError, match="no axis"):
        granularity.scale_shape((2, 3))
    with pytest.raises(NumericsError, match="no axis"):
        granularity.expand(np.ones(2), (2, 3))


def test_an_empty_block_is_refused() -> None:
    with pytest.raises(NumericsError, match="at least one element"):
        PerBlock(0, 0)


def test_granularity_prints_for_plans() -> None:
    assert [str(g) for g in (PerTensor(), PerAxis(1), PerBlock(0, 32))] == [
        "per-tensor",
        "per-axis(1)",
        "per-block(0, 32)",
    ]
