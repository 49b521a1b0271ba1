"""Outputs whose lengths follow from values, compared: what is counted, what is left out, what is a problem."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console
from zoo import Net

from onnxq.kernels.lengths import Length
from onnxq.measure.compare import Comparison, compare
from onnxq.measure.references import references
from onnxq.report.tables import show

I64 = onnx.TensorProto.INT64


def repeating(gain: float = 1.0, *, whole: bool = False) -> bytes:
    """x [N, 4], n -> y: the rows of x * gain, and the last one again until there are n + 2 * (gain > 1.05) of them."""
    n = Net()
    n.const("gain", gain), n.const("zero", 0, np.int64), n.const("one", 1, np.int64)
    n.const("more", 2 * (gain > 1.05), np.int64)
    count = n("Add", "n", "more", name="count")
    rows = n("Shape", "x", name="shape", start=0, end=1)
    last = n("Sub", rows, "one", name="last")
    at = n("Min", n("Range", "zero", count, "one", name="steps"), last, name="at")
    y = n("Gather", n("Mul", "x", "gain", name="times"), at, name="take", out=None if whole else "y")
    if whole:
        n("Cast", y, name="cast", to=I64, out="y")
    return n.model({"x": ["N", 4], "n": (I64, [])}, {"y": (I64 if whole else 1, ["F", 4])}).SerializeToString()


def feeds(*counts: int, spread: float = 1.0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": (rng.standard_normal((5, 4)) * spread).astype(np.float32), "n": np.array(c)} for c in counts]


def compared(test: bytes, data: list[dict[str, Any]], how: Length | None, **of: Any) -> Comparison:
    return compare(repeating(**of), test, data, lengths={} if how is None else {"y": how})


def uneven(gain: float = 1.01) -> bytes:
    """As ``repeating``, with a row more where n is odd."""
    n = Net()
    n.const("gain", gain), n.const("zero", 0, np.int64), n.const("one", 1, np.int64), n.const("two", 2, np.int64)
    count = n("Add", "n", n("Mod", "n", "two", name="odd"), name="count")
    rows = n("Shape", "x", name="shape", start=0, end=1)
    at = n("Min", n("Range", "zero", count, "one", name="steps"), n("Sub", rows, "one", name="last"), name="at")
    n("Gather", n("Mul", "x", "gain", name="times"), at, name="take", out="y")
    return n.model({"x": ["N", 4], "n": (I64, [])}, {"y": ["F", 4]}).SerializeToString()


def test_samples_of_another_length_are_counted_and_the_rest_is_compared() -> None:
    result = compared(uneven(), feeds(2, 3, 4, 5, 6), Length.STRETCHED)
    (y,) = result.outputs
    assert (y.samples, y.other_length, y.other_alignment) == (5, 2, 0)
    assert y.same_length == pytest.approx(0.6)
    assert y.elements == (2 + 4 + 6) * 4
    assert y.sqnr_db == pytest.approx(40.0, abs=0.1)
    assert y.problem is None
    assert result.differences == ("y: 2 of 5 samples have another length",)
    assert json.loads(json.dumps(result.to_dict()))["differences"] == list(result.differences)


def test_the_line_is_in_the_report() -> None:
    out = StringIO()
    show(compared(uneven(), feeds(2, 3), Length.STRETCHED), Console(file=out, width=100))
    assert "y: 1 of 2 samples have another length" in out.getvalue()


def test_where_nothing_tells_of_lengths_some_may_differ_and_all_may_not() -> None:
    some = compared(uneven(), feeds(2, 3, 4), None).outputs[0]
    assert (some.other_length, some.problem, some.samples) == (1, None, 3)
    every = compared(uneven(), feeds(3, 5), None).outputs[0]
    assert every.problem == "output y has shape [3, 4] in the float model but [4, 4] in the quantized one for feed 0"


def test_a_series_of_another_length_always_is_no_problem_but_a_disagreement() -> None:
    y = compared(uneven(), feeds(3, 5), Length.STRETCHED).outputs[0]
    assert (y.other_length, y.same_length, y.problem, y.sqnr_db) == (2, 0.0, None, None)


def rolled() -> bytes:
    """As ``repeating``, with the rows in another order where n is odd: steps longer here and shorter there."""
    n = Net()
    n.const("zero", 0, np.int64), n.const("one", 1, np.int64), n.const("two", 2, np.int64)
    n.const("gain", 1.01), n.const("five", 5, np.int64)
    steps = n("Range", "zero", "n", "one", name="steps")
    moved = n("Add", steps, n("Mod", "n", "two", name="odd"), name="moved")
    n("Gather", n("Mul", "x", "gain", name="times"), n("Mod", moved, "five", name="round"), name="take", out="y")
    return n.model({"x": ["N", 4], "n": (I64, [])}, {"y": ["F", 4]}).SerializeToString()


def test_a_series_that_is_aligned_otherwise_counts_as_one_of_another_length() -> None:
    result = compared(rolled(), feeds(4, 5, 4, 2), Length.STRETCHED)
    y = result.outputs[0]
    assert (y.other_length, y.other_alignment, y.same_length) == (0, 1, 0.75)
    assert y.elements == (4 + 4 + 2) * 4
    assert y.sqnr_db == pytest.approx(40.0, abs=0.1)
    assert result.differences == ("y: 1 of 4 samples have another alignment",)


def test_what_is_aligned_nowhere_is_noise() -> None:
    y = compared(rolled(), feeds(5, 3), Length.STRETCHED).outputs[0]
    assert (y.other_alignment, y.same_length) == (2, 0.0)
    assert y.sqnr_db is not None
    assert y.sqnr_db < 3
    assert y.elements == (5 + 3) * 4


def test_outputs_of_fixed_length_are_compared_place_by_place() -> None:
    y = compared(rolled(), feeds(5, 4), None).outputs[0]
    assert (y.other_alignment, y.elements) == (0, 36)
    assert y.sqnr_db is not None
    assert y.sqnr_db < 3


def test_rows_that_were_picked_are_compared_with_their_counterparts() -> None:
    y = compared(rolled(), feeds(5, 4), Length.PICKED).outputs[0]
    assert (y.agreement_rule, y.rows) == ("counterparts", 9)
    assert y.agreement == pytest.approx(1.0)
    assert y.sqnr_db == pytest.approx(40.0, abs=0.1)
    assert y.centred_sqnr_db is None
    assert y.elements == 36


def test_picked_rows_that_are_missing_lower_the_agreement_only() -> None:
    y = compared(uneven(), feeds(2, 3, 4), Length.PICKED).outputs[0]
    assert (y.other_length, y.rows, y.agreement) == (1, 9, 1.0)
    back = compare(uneven(), repeating(), feeds(3, 2), lengths={"y": Length.PICKED}).outputs[0]
    assert (back.other_length, back.rows, back.agreement) == (1, 6, pytest.approx(5 / 6))


def test_whole_numbers_have_counterparts_too() -> None:
    data = feeds(3, 4, spread=50.0)
    y = compared(repeating(1.0, whole=True), data, Length.STRETCHED, whole=True).outputs[0]
    assert (y.agreement_rule, y.agreement, y.sqnr_db) == ("counterparts", 1.0, None)


def test_references_take_another_length_for_noise() -> None:
    seen = references(repeating(), feeds(2, 4))
    assert seen.noise(uneven(1.0)) == pytest.approx(0.0, abs=1e-9)
    assert references(repeating(), feeds(3, 5)).noise(uneven(1.0)) == pytest.approx(1.0)


@pytest.mark.parametrize(("odd", "strayed"), [(0.223, 0), (0.224, 1)])
def test_a_sample_is_aligned_otherwise_from_a_twentieth_of_its_energy_on(odd: float, strayed: int) -> None:
    """An error of 0.2236 of everything is a twentieth of the energy."""
    n = Net()
    n.const("one", 1, np.int64), n.const("two", 2, np.int64), n.const("zero", 0, np.int64), n.const("odd", odd)
    much = n("Mul", n("Cast", n("Mod", "n", "two", name="mod"), name="number", to=1), "odd", name="much")
    rows = n("Add", "x", n("Mul", "x", much, name="times"), name="sum")
    n("Gather", rows, n("Range", "zero", "n", "one", name="steps"), name="take", out="y")
    other = n.model({"x": ["N", 4], "n": (I64, [])}, {"y": ["F", 4]}).SerializeToString()
    y = compared(other, feeds(4, 3), Length.STRETCHED).outputs[0]
    assert (y.other_alignment, y.samples) == (strayed, 2)
