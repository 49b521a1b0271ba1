"""What bears a promise out: samples of the data, and of made ones what counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from onnxq.measure.certainty import Certainty, Evidence, Made, MadeEvidence
from onnxq.measure.compared import OutputComparison
from onnxq.measure.kinds import Promise
from onnxq.numerics import Share, Strata
from onnxq.report.certainty import certainty_line

LOGITS = OutputComparison("logits", 1, 30.0, 30.0, 0.1)


def counted(same: int, rows: int) -> Share:
    missed = float(rows - same)
    return Share(same, rows, rows, missed, missed, float(rows))


def output(sure: tuple[int, int], near: tuple[int, int], **changes: Any) -> OutputComparison:
    """So many decisions of which float is sure, and so many near ties."""
    parts = counted(*sure), counted(*near)
    both = parts[0] + parts[1]
    strata = Strata(*parts, counted(sure[1], sure[1] + near[1]))
    promises = (
        Promise("all", both, 2, strata=strata),
        Promise("sure", parts[0], sure=True),
        Promise("equal", both),
        Promise("level", level=0.5),
    )
    return replace(LOGITS, share=both, sure=parts[0], promises=promises, **changes)


def evidence(*outputs: OutputComparison) -> Evidence:
    return Evidence.of(outputs)


def promised(times: int) -> float:
    return 1.0 - 0.01 * times


def by_what(found: tuple[Certainty, ...]) -> dict[str, Certainty]:
    return {certainty.what: certainty for certainty in found}


def test_counted_promises_have_a_certainty() -> None:
    found = by_what(evidence(output((60, 60), (4, 4))).certainties(promised))
    assert list(found) == ["all", "sure", "equal"]
    assert [c.promised for c in found.values()] == pytest.approx([0.98, 0.99, 0.99])
    assert found["all"].lower == counted(64, 64).lower
    assert not any(c.kept for c in found.values())


def test_it_is_kept_where_the_interval_says_so() -> None:
    assert not by_what(evidence(output((367, 367), (0, 0))).certainties(promised))["sure"].kept
    assert by_what(evidence(output((368, 368), (0, 0))).certainties(promised))["sure"].kept


def test_samples_of_the_data_add_up() -> None:
    found = evidence(output((60, 60), (4, 4))) + evidence(output((299, 300), (10, 12)))
    sure = by_what(found.certainties(promised))["sure"]
    assert (sure.real.same, sure.real.rows, sure.real.samples) == (359, 360, 360)
    strata = found.promises["logits", "all"].strata
    assert strata is not None
    assert (strata.near.same, strata.near.rows, strata.sureness.same) == (14, 16, 360)


def made(sure: tuple[int, int], near: tuple[int, int], *, of: int = 64, seen: Evidence | None = None) -> MadeEvidence:
    return MadeEvidence(evidence(output(sure, near)), 600, of, seen or Evidence({}))


def test_of_made_ones_sure_decisions_count() -> None:
    real = evidence(output((60, 60), (4, 4)))
    found = by_what(real.certainties(promised, made((500, 500), (10, 100))))
    assert found["sure"].counted.rows == 560
    assert found["sure"].kept
    assert found["equal"].made is None  # where sure and near are not told apart, they do not count
    assert found["equal"].lower == counted(64, 64).lower


def test_of_made_ones_near_ties_count_as_often_as_the_data_has_them() -> None:
    real = evidence(output((60, 60), (4, 4)))
    found = by_what(real.certainties(promised, made((500, 500), (80, 100))))["all"]
    assert found.made is not None
    assert found.made.strata is not None
    assert found.made.strata.value == pytest.approx(60 / 64 + 4 / 64 * 84 / 104)
    assert found.counted == found.real  # near ties of made samples contradict nothing
    more = evidence(output((250, 256), (0, 0)))
    better = by_what(real.certainties(promised, made((500, 500), (80, 100), seen=more)))["all"]
    assert better.made is not None
    assert better.made.strata is not None
    assert better.made.strata.sureness.rows == 64 + 256  # but not what became of them: they were fitted to
    assert better.made.strata.sure == found.made.strata.sure


def test_many_made_of_one_prove_as_much_as_one() -> None:
    """Without a miss a share is as sure as its samples, and those are no more than others were made of."""
    real = evidence(output((2, 2), (0, 0)))
    found = by_what(real.certainties(promised, made((600, 600), (0, 0), of=2)))["sure"]
    assert found.counted.samples == 4
    assert found.lower == counted(601, 602).lower


def test_what_is_promised_of_nothing_is_none() -> None:
    assert evidence(output((60, 60), (4, 4))).certainties(lambda times: 0.0) == ()
    assert evidence(output((0, 0), (0, 0))).certainties(promised) == ()


@pytest.mark.parametrize(
    ("certainty", "line"),
    [
        (
            Certainty("y", "rows", 0.99, counted(400, 400)),
            "y: rows: 400 of 400, at least 99.0 % (held out): the promise of 99 % is kept",
        ),
        (
            Certainty("y", "rows", 0.99, counted(64, 64)),
            "y: rows: 64 of 64, at least 94 % (held out): 99 % cannot be proven with this data, 94 % can be promised",
        ),
        (
            Certainty("y", "rows", 0.99, counted(64, 64), Made(400, 64, counted(399, 400))),
            "y: rows: 64 of 64, at least 94 % (held out); with 400 samples made of 64 others 463 of 464, at least "
            "98.8 %: 99 % cannot be proven with this data, 98.8 % can be promised",
        ),
        (
            Certainty("y", "rows", 0.995, counted(900, 1000)),
            "y: rows: 900 of 1,000, at least 87 % (held out): the promise of 99.5 % is not kept",
        ),
    ],
)
def test_the_sentence(certainty: Certainty, line: str) -> None:
    assert certainty_line(certainty) == line


def test_the_sentence_of_near_ties() -> None:
    parts = Strata(counted(900, 900), counted(100, 100), counted(300, 320))
    found = certainty_line(Certainty("y", "rows", 0.98, counted(64, 64), Made(900, 64, counted(900, 936), parts)))
    assert "with 900 samples made of 64 others, near ties weighed as in the data, at least 99." in found
    assert found.endswith("the promise of 98 % is kept")


def test_as_json() -> None:
    found = Certainty("y", "rows", 0.99, counted(64, 64), Made(400, 64, counted(400, 400))).to_dict()
    assert found["output"] == "y"
    assert found["real"]["rows"] == 64
    assert (found["made"]["samples"], found["made"]["of"], found["made"]["rows"]) == (400, 64, 400)
    assert found["lower"] == counted(464, 464).lower
    assert found["kept"] is True
