"""Packed codes come back, take no more than their bits, and are what the table says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import NumericsError
from onnxq.numerics.packing import Packing

BITS = (2, 3, 4, 5, 6)


@given(st.sampled_from(BITS), st.integers(0, 70), st.integers(0, 2**32))
def test_what_was_packed_comes_back(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count)
    packing = Packing(bits)
    packed = packing.pack(codes)
    np.testing.assert_array_equal(packing.unpack(packed, count), codes)
    assert packed.main.size == packing.groups(count)


@pytest.mark.parametrize("bits", BITS)
def test_a_code_takes_its_bits_and_no_more(bits: int) -> None:
    assert Packing(bits).pack(np.zeros(1024, np.int64)).nbytes == 1024 * bits // 8


@pytest.mark.parametrize("bits", BITS)
def test_the_layout_is_that_of_the_docstring(bits: int) -> None:
    """Bit by bit: the integer of a group has its first code lowest; 8 bits are main, the rest fills extra bytes."""
    rng = np.random.default_rng(bits)
    packing = Packing(bits)
    codes = rng.integers(0, 1 << bits, 8 * packing.group)
    packed = packing.pack(codes)
    for g, group in enumerate(codes.reshape(-1, packing.group)):
        integer = sum(int(code) << (bits * j) for j, code in enumerate(group))
        assert packed.main[g] == integer & 0xFF
        if packing.extra_bits:
            assert packed.extra is not None
            each = 8 // packing.extra_bits
            shift = packing.extra_bits * (g % each)
            assert (packed.extra[g // each] >> shift) & ((1 << packing.extra_bits) - 1) == integer >> 8
        levels = rng.integers(-127, 128, 1 << bits)
        np.testing.assert_array_equal(packing.table(levels)[integer], levels[group])


def test_what_cannot_be_packed_is_refused() -> None:
    for bits in (1, 7, 8):
        with pytest.raises(NumericsError, match="2 to 6 bits"):
            Packing(bits)
    with pytest.raises(NumericsError, match=r"lie in \[0, 7\]"):
        Packing(3).pack(np.asarray([8]))
    with pytest.raises(NumericsError, match=r"lie in \[0, 7\]"):
        Packing(3).pack(np.asarray([-1]))
