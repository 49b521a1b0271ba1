"""The user's own measure: what it is given, what comes of it, and what is said where it is no measure."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from onnxq.errors import ConfigError, DataError
from onnxq.measure.metric import (
    Answering,
    Metric,
    MetricComparison,
    SampleMetric,
    ScoreMetric,
    Top1,
    measured_by,
    seen,
)

SCORES = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
LABELS = SCORES.argmax(axis=-1)


def answering(scores: np.ndarray[Any, Any] = SCORES, who: str = "the model") -> Answering:
    return Answering(who, ["y", "more"], lambda feed: [scores[feed["at"]], feed["at"]])


def feeds(rows: int = 1, labels: Sequence[Any] | None = LABELS) -> list[Any]:
    found = []
    for start in range(0, len(SCORES), rows):
        at = np.arange(start, min(start + rows, len(SCORES)))
        found.append(({"at": at}, [None if labels is None else labels[i] for i in at], at.tolist()))
    return found


def values(metric: Metric, scores: np.ndarray[Any, Any] = SCORES, *, rows: int = 1, labels: Any = LABELS) -> list[Any]:
    truth = None if labels is not None else answering()
    return [value for value, _ in seen(metric, answering(scores), feeds(rows, labels), truth)]


def hit(outputs: Any, label: Any) -> float:
    return float(outputs["y"].argmax() == label)


def top(outputs: Any) -> Any:
    return outputs["y"].argmax(-1)


def share(predictions: Any, labels: Any) -> Any:
    return np.mean(predictions == labels)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_number_a_sample_with_its_label(rows: int) -> None:
    shown: list[Any] = []

    def metric(outputs: Any, label: Any) -> float:
        shown.append((outputs, label))
        return hit(outputs, label)

    assert values(SampleMetric("m", metric, labelled=True), rows=rows) == [1.0] * 40
    assert all(outputs["y"].shape == (1, 5) and outputs["more"].shape == (1,) for outputs, _ in shown)
    assert [int(outputs["more"][0]) for outputs, _ in shown] == list(range(40))
    assert [int(label) for _, label in shown] == LABELS.tolist()


def test_without_labels_it_is_given_what_float_answers_if_it_takes_it() -> None:
    alone = SampleMetric("m", lambda outputs: outputs["y"].max(), labelled=False)
    assert values(alone, labels=None) == SCORES.max(axis=-1).tolist()
    assert (alone.takes_truth, alone.against_float) == (False, False)

    def same(outputs: Any, other: Any) -> float:
        return float(np.array_equal(outputs["y"], other["y"]))

    both = SampleMetric("m", same, labelled=False)
    changed = SCORES.copy()
    changed[3] += 1
    assert values(both, changed, labels=None) == [float(i != 3) for i in range(40)]
    assert both.against_float


def test_an_optional_argument_is_the_label_only_if_there_are_labels() -> None:
    def metric(outputs: Any, label: Any = "none") -> float:
        return float(label == "none")

    assert values(SampleMetric("m", metric, labelled=False), labels=None) == [1.0] * 40
    assert values(SampleMetric("m", metric, labelled=True)) == [0.0] * 40


def test_what_it_changes_is_its_own() -> None:
    """Answers are kept for the next candidate."""

    def metric(outputs: Any) -> float:
        outputs["y"][:] = 0
        return float(outputs.pop("more")[0])

    before = SCORES.copy()
    assert values(SampleMetric("m", metric, labelled=False), labels=None) == list(map(float, range(40)))
    np.testing.assert_array_equal(SCORES, before)


def flipped(*which: int) -> np.ndarray[Any, Any]:
    scores = SCORES.copy()
    scores[list(which)] *= -1
    return scores


@pytest.mark.parametrize(
    "metric",
    [SampleMetric("m", hit, labelled=True), Top1(), ScoreMetric("a,b", top, share)],
    ids=["one", "top1", "two"],
)
def test_both_forms_say_the_same(metric: Metric) -> None:
    found = metric.compared(values(metric), values(metric, flipped(1, 17)), LABELS)
    assert (found.before, found.after, found.samples) == (1.0, 0.95, 40)
    assert found.low < -0.05 < found.high
    assert found.low > -0.25
    assert found.high < 0.05


def test_scores_are_given_arrays_in_the_order_of_samples() -> None:
    shown: list[Any] = []

    def score(predictions: Any, labels: Any) -> float:
        shown.append((predictions, labels))
        return 0.5

    metric = ScoreMetric("a,b", top, score)
    metric.compared(values(metric), values(metric), LABELS)
    np.testing.assert_array_equal(shown[0][0], LABELS)
    np.testing.assert_array_equal(shown[0][1], LABELS)
    assert len(shown) <= 2 + 2 * 20  # a score may be slow
    lists = ScoreMetric("a,b", lambda outputs: [1] * int(outputs["more"][0] % 3), score)
    shown.clear()
    lists.compared(values(lists), values(lists), None)
    assert shown[0][0] == shown[0][1] == [[1] * (i % 3) for i in range(40)]


def test_without_labels_the_float_predictions_are_right() -> None:
    metric = ScoreMetric("a,b", top, share)
    found = measured_by(metric, values(metric), values(metric, flipped(0)), None, None)
    assert (found.before, found.after, found.truth) == (1.0, 0.975, "the float model")
    assert found.max_drop == 0.01
    assert not found.good


def test_scores_of_samples_that_are_all_the_same_are_not_sure() -> None:
    metric = ScoreMetric("a,b", top, share)
    found = metric.compared(values(metric), values(metric), None)
    assert (found.low, found.high) == pytest.approx((-0.088, 0.088), abs=1e-3)  # 40 of 40: at least 91.2 %


def test_a_score_that_parts_of_the_samples_have_not_has_no_interval() -> None:
    def score(predictions: Any, labels: Any) -> float:
        return 1.0 if len(predictions) == 40 else math.nan

    found = ScoreMetric("a,b", top, score).compared([*LABELS], [*LABELS], None)
    assert (found.before, found.low, found.high) == (1.0, -math.inf, math.inf)


def test_top_1_counts_labels_of_rows_and_leaves_out_negative_ones() -> None:
    rows = np.random.default_rng(1).standard_normal((1, 4, 6)).astype(np.float32)
    labels = rows.argmax(-1)[0]
    metric = Top1()
    assert metric.of({"y": rows}, labels, place="") == 1.0
    assert metric.of({"y": rows}, np.where(np.arange(4) < 2, labels, (labels + 1) % 6), place="") == 0.5
    assert metric.of({"y": rows}, np.where(np.arange(4) < 2, labels, -1), place="") == 1.0
    assert metric.of({"y": rows}, np.full(4, -1), place="") is None
    found = metric.compared([1.0, None, 0.0], [1.0, None, 1.0], None)
    assert (found.before, found.after, found.samples) == (0.5, 1.0, 2)
    with pytest.raises(DataError, match="counts none of the samples"):
        metric.compared([None], [None], None)
    with pytest.raises(DataError, match="label 9 is out of range"):
        metric.of({"y": rows}, np.full(4, 9), place="")
    with pytest.raises(DataError, match="labels must be integers"):
        metric.of({"y": rows}, np.full(4, 0.5), place="")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        (None, "returned NoneType"),
        ("0.5", "returned str"),
        (np.zeros(3), r"returned ndarray of shape \[3\]"),
        (1j, "returned complex"),
    ],
)
def test_what_is_no_number(value: Any, what: str) -> None:
    metric = SampleMetric("mine:f", lambda outputs: value, labelled=False)
    with pytest.raises(DataError, match=f"metric mine:f {what} for sample 0 by the model") as caught:
        values(metric, labels=None)
    assert caught.value.hint == "return one number, higher is better"


@pytest.mark.parametrize("value", [1, True, 0.5, np.float32(0.5), np.array(0.5), np.bool_(True)])
def test_what_is_a_number(value: Any) -> None:
    assert values(SampleMetric("m", lambda outputs: value, labelled=False), labels=None)[0] == float(value)


@pytest.mark.parametrize("error", [KeyError("nothing"), SystemExit(3), ZeroDivisionError()])
def test_what_it_raises_is_shown_as_its_own(error: BaseException) -> None:
    def metric(outputs: Any) -> float:
        if outputs["more"][0] == 2:
            raise error
        return 1.0

    with pytest.raises(DataError, match=f"metric m raised {type(error).__name__} for sample 2 by the model"):
        values(SampleMetric("m", metric, labelled=False), labels=None)


def test_an_interrupt_is_none_of_its_errors() -> None:
    def metric(outputs: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        values(SampleMetric("m", metric, labelled=False), labels=None)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: SampleMetric("m:f", lambda: 1.0, labelled=False), "metric m:f cannot be called with the outputs"),
        (lambda: SampleMetric("m:f", lambda a, b, c: 1.0, labelled=False), "metric m:f cannot be called"),
        (lambda: SampleMetric("m:f", lambda a: 1.0, labelled=True), "with the outputs and the label"),
        (lambda: ScoreMetric("m:f,m:g", lambda: 1.0, share), "metric m:f cannot be called with the outputs"),
        (lambda: ScoreMetric("m:f,m:g", top, lambda a: 1.0), "metric m:g cannot be called with predictions and labels"),
    ],
)
def test_functions_that_take_something_else(make: Callable[[], Metric], what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        make()
    assert caught.value.hint.startswith("write it as def ")


def test_what_does_not_say_what_it_takes_is_called() -> None:
    class Score:
        def __call__(self, outputs: Any) -> float:
            return 2.0

    assert values(SampleMetric("m", Score(), labelled=False), labels=None)[0] == 2.0
    assert values(SampleMetric("m", functools.partial(hit, label=3), labelled=False), labels=None)[0] in (0.0, 1.0)
    assert SampleMetric("m", max, labelled=False)


def comparison(**changes: Any) -> MetricComparison:
    given = {"before": 0.9, "after": 0.895, "low": -0.01, "high": 0.002, "max_drop": 0.005} | changes
    return MetricComparison("m", 100, "labels", **given)


def test_the_verdict_at_its_limits() -> None:
    assert comparison().good
    assert not comparison().proven
    assert not comparison(after=0.8949).good
    assert comparison(low=-0.005).proven
    assert not comparison(low=-0.0051).proven
    assert not comparison(after=0.8, low=-0.2, high=-0.005).hopeless
    assert comparison(after=0.8, low=-0.2, high=-0.0051).hopeless
    assert comparison(after=0.95).difference == pytest.approx(0.05)
    assert not comparison(low=-math.inf).proven
    assert comparison(low=-math.inf).to_dict()["low"] is None
    assert comparison().to_dict()["good"] is True
