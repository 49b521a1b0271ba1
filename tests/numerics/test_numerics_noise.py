"""Energies of noise that stream, and how two models' outputs are compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import MAX_SQNR_DB, Noise, agreement, centred, noise, sqnr_db, sqnr_db_of

FINITE = st.floats(-1e6, 1e6, width=32)
PAIRS = hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 30)), elements=FINITE)


@given(PAIRS, st.data())
def test_any_cut_of_the_data_gives_the_same_noise(pair: np.ndarray, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, pair.shape[1]))
    whole = noise(pair[0], pair[1])
    parts = Noise() + noise(pair[0, :cut], pair[1, :cut]) + noise(pair[0, cut:], pair[1, cut:])
    assert parts.count == whole.count == pair.shape[1]
    assert parts.signal == pytest.approx(whole.signal, rel=1e-12)
    assert parts.error == pytest.approx(whole.error, rel=1e-12)


@given(*[st.builds(Noise, st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)) for _ in range(3)])
def test_noise_is_a_commutative_monoid(a: Noise, b: Noise, c: Noise) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert Noise() + a == a == a + Noise()


def test_sqnr_by_hand() -> None:
    reference = np.array([3.0, 4.0])
    assert sqnr_db(reference, reference + 0.05) == pytest.approx(10 * math.log10(25 / 0.005))
    assert noise(reference, reference + 0.05).sqnr_db == pytest.approx(10 * math.log10(25 / 0.005))


def test_sqnr_is_always_a_number() -> None:
    x = np.ones(3)
    assert sqnr_db(x, x) == MAX_SQNR_DB
    assert sqnr_db(np.zeros(3), x) == -MAX_SQNR_DB
    assert sqnr_db(np.zeros(3), np.zeros(3)) == MAX_SQNR_DB
    assert sqnr_db_of(1.0, 1e-300) == MAX_SQNR_DB
    assert sqnr_db_of(1e-300, 1.0) == -MAX_SQNR_DB


def test_sums_are_in_float64() -> None:
    reference = np.full(1_000_000, 0.1, np.float32)
    expected = 1_000_000 * float(np.float32(0.1)) ** 2
    assert noise(reference, np.zeros_like(reference)).signal == pytest.approx(expected, rel=1e-10)


def test_masks_that_both_share_are_left_out() -> None:
    reference, test = np.array([1.0, -np.inf, np.nan]), np.array([1.5, -np.inf, np.nan])
    assert noise(reference, test) == Noise(1.0, 0.25, 1)


@pytest.mark.parametrize(
    ("reference", "test"),
    [([1.0, 2.0], [1.0, np.nan]), ([1.0, np.inf], [1.0, 2.0]), ([1.0, np.inf], [1.0, -np.inf]), ([np.nan], [0.0])],
)
def test_a_value_that_is_finite_in_one_only_is_infinite_noise(reference: list[float], test: list[float]) -> None:
    assert noise(np.array(reference), np.array(test)).error == math.inf
    assert sqnr_db(np.array(reference), np.array(test)) == -MAX_SQNR_DB


def test_unsigned_codes_do_not_wrap() -> None:
    assert noise(np.array([1], np.uint8), np.array([3], np.uint8)).error == 4.0


@given(hnp.arrays(np.float64, (3, 5), elements=st.floats(-100, 100)), st.floats(-1000, 1000))
def test_centred_ignores_an_offset_of_the_row(logits: np.ndarray, offset: float) -> None:
    shifted = logits + np.array([[offset], [0.0], [-offset]])
    np.testing.assert_allclose(centred(shifted), centred(logits), atol=1e-9)
    np.testing.assert_allclose(centred(logits).sum(axis=-1), 0, atol=1e-9)


def test_centred_leaves_its_argument_alone() -> None:
    x = np.array([[1.0, 3.0]])
    assert centred(x).tolist() == [[-1.0, 1.0]]
    assert x.tolist() == [[1.0, 3.0]]


def test_agreement_counts_rows() -> None:
    reference = np.array([[[1, 2], [3, 0]], [[5, 4], [1, 1]]])
    test = np.array([[[0, 9], [0, 1]], [[1, 0], [2, 2]]])
    assert agreement(reference, test) == (3, 4)  # of equal entries the first one counts
    assert agreement(np.array([1.0, 2.0]), np.array([0.0, 5.0])) == (1, 1)
