"""Whether a result is good: what 8 bits promise, and of fewer what was asked for; and when it is too slow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from claims import chain, claim, rows, scores, time_as
from test_lowbit import DATA, deep

from onnxq import Config, quantize
from onnxq.cli.quantizing import shortcomings
from onnxq.config import preset
from onnxq.pipeline import Result
from onnxq.plan import Storage
from onnxq.search import acceptance

TIMED_W4 = replace(preset("w4"), latency_seconds=1.0)


def result(weights: str, **choices: Any) -> Result:
    config = {"weights": weights, "placement": "all", "latency_seconds": 0, **choices}
    return quantize(chain(2), rows(), config=Config(**config))


@pytest.mark.parametrize(
    ("choices", "good"),
    [
        ({}, True),  # fewer bits than 8 promise nothing
        ({"min_sqnr": 25.0}, True),
        ({"min_sqnr": 25.1}, False),
        ({"min_agreement": 0.9}, True),
        ({"min_agreement": 0.98}, False),
        ({"guard_sqnr": 25.0, "min_agreement": 0.9}, True),
        ({"guard_sqnr": 25.1, "min_agreement": 0.9}, False),
    ],
)
def test_of_few_bits_what_was_asked_for_counts(
    choices: dict[str, float], good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(monkeypatch, lambda _: scores(agreement=0.95, level=25.0))
    found = result("int4", **choices)
    assert found.good is good
    assert bool(shortcomings(found, Config(weights="int4", **choices))) is not good


def test_8_bits_promise_agreement_unasked_and_min_sqnr_counts_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    claim(monkeypatch, lambda _: scores(agreement=0.5, level=25.0))
    assert not result("int8").good
    claim(monkeypatch, lambda _: scores(level=25.0))
    assert result("int8").good
    assert not result("int8", min_sqnr=25.1).good


def test_without_data_nothing_is_held_against_a_result() -> None:
    assert quantize(chain(2), config=Config(weights="int4", min_sqnr=300.0, latency_seconds=0)).good


def test_4_bit_kernels_that_are_slower_are_kept_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    claim(monkeypatch, lambda _: scores())
    time_as(monkeypatch, *[1.3] * 5)
    found = quantize(deep(), DATA, config=TIMED_W4)
    assert any(w.storage is Storage.BLOCKS for w in found.plan.weights)
    assert found.report.slower
    assert not found.too_slow
    assert shortcomings(found, TIMED_W4) == []
    assert sum(note.startswith("4-bit kernels made this model slower") for note in found.report.notes) == 1
    assert found.plan.layers == ()  # layers of 8 bits are given back as ever


def test_4_bit_kernels_that_are_no_slower_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    claim(monkeypatch, lambda _: scores())
    time_as(monkeypatch, *[0.9] * 5)
    found = quantize(deep(), DATA, config=TIMED_W4)
    assert not found.report.slower
    assert not any("4-bit kernels made" in note for note in found.report.notes)


def test_integer_kernels_that_stay_slower_are_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    claim(monkeypatch, lambda _: scores())
    time_as(monkeypatch, *[1.3] * 5)
    found = result("int8", latency_seconds=1.0)
    if found.report.slower:  # stored weights that the runtime unfolds are float's own kernels
        assert shortcomings(found, Config()) == ["it is slower than the float model"]
    assert found.too_slow is found.report.slower


@pytest.mark.parametrize(
    ("elements", "samples"),
    [
        (0.0, 1 << 29),
        (1.0, 1 << 29),
        (2.0, 1 << 28),
        (float(1 << 28), 2),
        (float((1 << 28) + 1), 1),
        (float(1 << 29), 1),
        (float(1 << 40), 1),
    ],
)
def test_how_many_samples_of_large_maps_a_check_may_take(elements: float, samples: int) -> None:
    assert acceptance.affordable_samples(elements) == samples
