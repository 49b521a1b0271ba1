"""More samples are asked until a promise is proven, contradicted, or no more can be had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from claims import SCORES, chain, compared, rows
from claims import verdict as verdict_by

from onnxq import quantize
from onnxq.calibrate.feeds import Feed, open_feed
from onnxq.config import Config
from onnxq.errors import DataError, RunFailure
from onnxq.graph.signature import TensorSpec
from onnxq.measure.certainty import Certainty
from onnxq.measure.compare import Comparison
from onnxq.measure.kinds import Promise
from onnxq.numerics import Share
from onnxq.search import judging
from onnxq.search.acceptance import MADE_OF_EACH, MADE_SAMPLES, Shortfall, made_samples, rows_to_prove
from onnxq.search.proof import Proof

X = TensorSpec("x", np.dtype(np.float32), ("n", 4))


def no_miss(number: int) -> int:
    return 0


def feed(count: int) -> Feed:
    data = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)
    return open_feed({"x": data}, [X])


def counted(same: int, number: int) -> Share:
    missed = float(number - same)
    return Share(same, number, number, missed, missed, float(number))


def found(number: int, missed: int) -> Comparison:
    share = counted(number - missed, number)
    return compared(replace(SCORES, share=share, sure=share, promises=(Promise("sure", share, sure=True),)))


class Asked:
    """Compares feeds as ``misses`` says of how many there are; what was asked, in order."""

    def __init__(self, misses: Callable[[int], int]) -> None:
        self.misses, self.counts = misses, list[int]()

    def __call__(self, feeds: Any) -> Comparison:
        several = list(feeds)
        self.counts.append(len(several))
        return found(len(several), self.misses(len(several)))


def prove(
    asked: Asked,
    *,
    held_out: int = 64,
    unused: int = 0,
    most: int = 5000,
    sources: int = 300,
    min_agreement: float = 0.99,
) -> tuple[Certainty, ...]:
    proof = Proof([feed(sources)], feed(unused) if unused else None, most, Config(min_agreement=min_agreement))
    return proof.of(found(held_out, 0), found(200, 0), asked)


def test_what_is_proven_asks_for_nothing() -> None:
    asked = Asked(no_miss)
    assert prove(asked, held_out=400)[0].kept
    assert asked.counts == []


def test_samples_of_the_data_come_first() -> None:
    asked = Asked(no_miss)
    (certainty,) = prove(asked, unused=400)
    assert asked.counts == [400]
    assert certainty.kept
    assert certainty.made is None
    assert certainty.real.rows == 464


def test_as_many_are_made_as_it_takes() -> None:
    asked = Asked(no_miss)
    (certainty,) = prove(asked)
    assert certainty.kept
    assert certainty.made is not None
    assert sum(asked.counts) == certainty.made.samples == rows_to_prove(0, 0.99) - 64
    assert asked.counts == [certainty.made.samples]


def test_a_miss_asks_for_more() -> None:
    asked = Asked(lambda number: int(number > 400) * 2)
    (certainty,) = prove(asked)
    assert certainty.kept
    assert len(asked.counts) > 1
    assert sum(asked.counts) < 800
    assert certainty.counted.rows - certainty.counted.same == 2


def test_what_is_contradicted_asks_for_no_more() -> None:
    asked = Asked(lambda number: number // 10)
    (certainty,) = prove(asked)
    assert len(asked.counts) == 1
    assert not certainty.kept
    assert found(64, 0)
    verdict = verdict_by(Config(), SCORES).weighed((certainty,))
    assert (verdict.good, verdict.proven) == (False, False)
    assert verdict.shortfalls == (Shortfall.SECOND_CHECK,)


@pytest.mark.parametrize(("most", "sources", "made"), [(100, 300, 100), (5000, 10, 10 * MADE_OF_EACH), (5000, 1, 0)])
def test_the_budget_ends_it(most: int, sources: int, made: int) -> None:
    asked = Asked(no_miss)
    (certainty,) = prove(asked, most=most, sources=sources)
    assert sum(asked.counts) == made
    assert not certainty.kept
    verdict = verdict_by(Config(), SCORES).weighed((certainty,))
    assert (verdict.good, verdict.proven) == (True, False)  # not proven is not contradicted


def test_nothing_is_made_where_it_says_nothing() -> None:
    share = counted(64, 64)
    several = compared(replace(SCORES, promises=(Promise("equal ones", share),)))
    asked: list[int] = []

    def compare(feeds: Any) -> Comparison:
        asked.append(len(list(feeds)))
        return several

    (certainty,) = Proof([feed(300)], None, 5000, Config()).of(several, several, compare)
    assert len(asked) == 1
    assert certainty.made is None


@pytest.mark.parametrize("error", [DataError("a broken file"), RunFailure("too long")])
def test_what_was_not_asked_for_may_be_broken(error: Exception) -> None:
    """It is data beyond what calibration takes: a run without it does not end over it."""
    asked: list[int] = []

    def compare(feeds: Any) -> Comparison:
        asked.append(len(list(feeds)))
        raise error

    (certainty,) = Proof([feed(300)], feed(400), 5000, Config()).of(found(64, 0), found(200, 0), compare)
    assert len(asked) == 2  # the rest of the data, and once made ones
    assert (certainty.real.rows, certainty.made) == (64, None)


def test_no_agreement_asked_for_is_no_promise() -> None:
    asked = Asked(no_miss)
    assert prove(asked, min_agreement=0.0) == ()
    assert asked.counts == []


@pytest.mark.parametrize("promised", [0.9, 0.98, 0.99, 0.999])
@pytest.mark.parametrize("misses", [0, 1, 2, 7])
def test_rows_to_prove(misses: int, promised: float) -> None:
    number, missed = rows_to_prove(misses, promised), max(misses, 1)
    assert counted(number - missed, number).lower >= promised
    assert counted(number - 1 - missed, number - 1).lower < promised


def test_a_certainty_ends_even_without_an_end() -> None:
    assert rows_to_prove(0, 1.0) > MADE_SAMPLES


def test_how_many_are_made() -> None:
    assert made_samples(1.0, 10) == MADE_SAMPLES
    assert made_samples(1e9, 448) == 224
    assert made_samples(2**22, 10) == 128


# -- in whole ----------------------------------------------------------------------------------------------------------


def claim_of_made(
    monkeypatch: pytest.MonkeyPatch, data: Mapping[str, np.ndarray[Any, Any]], missed: float
) -> list[int]:
    """All is well on samples of the data; on made ones so many change while all layers are on integers."""
    known = {row.tobytes() for row in data["x"]}
    heard: list[int] = []

    def fake(float_model: Any, quantized: Any, feeds: Any, **_: Any) -> Comparison:
        import onnx

        proto = onnx.load_model_from_string(quantized) if isinstance(quantized, bytes) else onnx.load_model(quantized)
        several = list(feeds)
        made = [f for f in several if f["x"].tobytes() not in known]
        if made:
            assert len(made) == len(several)
            heard.append(len(made))
        whole = sum(t.data_type == onnx.TensorProto.INT32 for t in proto.graph.initializer) >= 3
        return found(len(several), int(missed * len(several)) if made and whole else 0)

    monkeypatch.setattr(judging, "compare", fake)
    return heard


@pytest.mark.no_costs
@pytest.mark.parametrize("missed", [0.0, 0.05])
def test_made_samples_may_object(monkeypatch: pytest.MonkeyPatch, missed: float) -> None:
    data = rows(200)
    heard = claim_of_made(monkeypatch, data, missed)
    result = quantize(chain(3), data, config=Config(equalize="none"))
    assert result.good
    assert heard
    assert (len(result.plan.layers) < 3) == (missed > 0)
    (certainty,) = result.report.certainties
    assert certainty.made is not None
    assert certainty.kept
    again = quantize(chain(3), data, config=Config(equalize="none"))
    assert again.report.certainties == result.report.certainties


@pytest.mark.no_costs
def test_data_beyond_samples_is_asked_before_any_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(600)
    heard = claim_of_made(monkeypatch, data, 0.5)
    result = quantize(chain(3), data, config=Config(equalize="none", samples=64))
    assert heard == []
    assert len(result.plan.layers) == 3
    (certainty,) = result.report.certainties
    assert certainty.real.rows == 8 + 512


@pytest.mark.no_costs
def test_few_bits_promise_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = claim_of_made(monkeypatch, rows(64), 0.5)
    result = quantize(chain(3), rows(64), config=Config(equalize="none", weights="int4"))
    assert (heard, result.report.certainties) == ([], ())
