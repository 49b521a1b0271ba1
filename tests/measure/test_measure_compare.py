"""Figures of ``compare`` against the same figures worked out by hand with numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from measure_models import Graph, feeds, linear_net, value

from onnxq.errors import DataError, ModelError
from onnxq.measure import compare
from onnxq.measure.compare import Comparison
from onnxq.numerics import sqnr_db
from onnxq.runtime.session import open_session, run

FLOAT, QUANTIZED = linear_net(quantized=False), linear_net(quantized=True)


def outputs(model: bytes, data: list[dict[str, npt.NDArray[np.float32]]]) -> npt.NDArray[np.float32]:
    session = open_session(model)
    return np.concatenate([run(session, feed)[0] for feed in data])


def shifted(offset: float, *, last: int = 4, op: str = "Add", cast: int | None = None) -> bytes:
    """``y = x + offset`` (or another operator), cast to type ``cast``."""
    g = Graph()
    g.node(op, ["x", g.const("k", np.float32(offset))], "z" if cast else "y")
    if cast:
        g.node("Cast", ["z"], "y", to=cast)
    model = onnx.load_from_string(g.model({"x": ["n", last]}, {"y": None}))
    if cast:
        model.graph.output[0].CopyFrom(value("y", None, cast))
    return model.SerializeToString()


def test_figures_are_those_of_numpy() -> None:
    data = feeds(20, 2, 16)
    a, b = outputs(FLOAT, data), outputs(QUANTIZED, data)
    result = compare(FLOAT, QUANTIZED, iter(data))
    y = result.outputs[0]
    assert result.feeds == 20
    assert (y.elements, y.rows) == (a.size, len(a))
    assert y.sqnr_db == pytest.approx(sqnr_db(a, b))
    centred = [m.astype(np.float64) - m.mean(axis=1, keepdims=True, dtype=np.float64) for m in (a, b)]
    assert result.sqnr_db == y.centred_sqnr_db == pytest.approx(sqnr_db(*centred))
    assert y.max_abs_error == pytest.approx(np.abs(a.astype(np.float64) - b).max())
    assert y.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())
    assert 10 < result.sqnr_db < 60
    assert result.problems == ()
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_constant_offset_is_noise_but_not_once_the_row_mean_is_removed() -> None:
    result = compare(shifted(0), shifted(0.5), feeds(3, 2, 4))
    y = result.outputs[0]
    assert y.sqnr_db is not None
    assert y.sqnr_db < 20
    assert y.centred_sqnr_db is not None
    assert y.centred_sqnr_db > 100
    assert y.agreement == 1
    assert y.max_abs_error == pytest.approx(0.5, abs=1e-6)


def test_single_columns_agree_by_threshold() -> None:
    logits = np.array([[-2.0], [-0.1], [0.1], [2.0]], np.float32)
    y = compare(shifted(0, last=1), shifted(0.2, last=1), [{"x": logits}]).outputs[0]
    assert (y.agreement, y.agreement_rule, y.centred_sqnr_db) == (0.75, "above 0", None)
    chances = np.array([[0.1], [0.4], [0.6], [0.9]], np.float32)
    y = compare(shifted(0, last=1), shifted(0.2, last=1), [{"x": chances}]).outputs[0]
    assert (y.agreement, y.agreement_rule) == (0.75, "above 0.5")


def test_integer_outputs_agree_by_equality_and_have_no_noise() -> None:
    data = [{"x": np.array([[0.0, 1.0, 2.0, 3.6]], np.float32)}]
    y = compare(shifted(0, cast=7), shifted(0.5, cast=7), data).outputs[0]
    assert (y.agreement, y.agreement_rule, y.sqnr_db) == (0.75, "equal", None)


def test_shapes_may_change_from_feed_to_feed() -> None:
    float_model, quantized = linear_net(quantized=False, dynamic=True), linear_net(quantized=True, dynamic=True)
    data = [*feeds(1, 1, 16), *feeds(1, 7, 16, seed=1), *feeds(1, 3, 16, seed=2)]
    result = compare(float_model, quantized, data)
    assert result.outputs[0].elements == 11 * 10


def test_nan_names_the_output_the_model_and_the_feed() -> None:
    data = [{"x": np.ones((1, 4), np.float32)}, {"x": np.full((1, 4), -1, np.float32)}]
    result = compare(shifted(1.0, op="Pow"), shifted(0.5, op="Pow"), data)
    assert result.problems == ("output y of the quantized model holds NaN or infinity for feed 1",)
    assert result.outputs[0].sqnr_db == -200
    json.dumps(result.to_dict(), allow_nan=False)


def test_different_shapes_are_flagged() -> None:
    result = compare(shifted(0), tiled(), feeds(2, 2, 4))
    assert "shape [2, 4] in the float model but [2, 8] in the quantized one" in result.problems[0]
    assert result.outputs[0].sqnr_db is None


def tiled() -> bytes:
    g = Graph()
    g.node("Concat", ["x", "x"], "y", axis=1)
    return g.model({"x": ["n", 4]}, {"y": None})


def test_labels_give_top1_top5_and_bits() -> None:
    data = feeds(30, 2, 16)
    a, b = outputs(FLOAT, data), outputs(QUANTIZED, data)
    labels = np.random.default_rng(5).integers(0, 10, 60)
    labels[:20] = a.argmax(1)[:20]
    accuracy = compare(FLOAT, QUANTIZED, data, labels=labels).accuracy
    assert accuracy is not None
    assert (accuracy.output, accuracy.rows) == ("y", 60)
    for score, x in ((accuracy.float_model, a), (accuracy.quantized_model, b)):
        order = np.argsort(-x, axis=1, kind="stable")
        assert score.top1 == pytest.approx((order[:, 0] == labels).mean())
        assert score.top5 == pytest.approx((order[:, :5] == labels[:, None]).any(axis=1).mean())
        p = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True)
        assert score.bits == pytest.approx(-np.log2(p[np.arange(60), labels]).mean())


def sequence() -> bytes:
    g = Graph()
    g.node("Identity", ["x"], "y")
    return g.model({"x": ["n", "t", 6]}, {"y": None})


def test_sequences_take_a_label_for_each_step_and_skip_negative_ones() -> None:
    data = feeds(4, 1, 3, 6)
    labels = np.concatenate([feed["x"].argmax(-1) for feed in data])
    labels[0, 0] = -100
    labels[1, 1] = (labels[1, 1] + 1) % 6
    accuracy = compare(sequence(), sequence(), data, labels=labels).accuracy
    assert accuracy is not None
    assert accuracy.rows == 11
    assert accuracy.float_model.top1 == pytest.approx(10 / 11)


def test_of_tied_scores_the_first_is_the_prediction() -> None:
    tied = np.zeros((1, 2, 6), np.float32)
    accuracy = compare(sequence(), sequence(), [{"x": tied}], labels=[[0, 1]]).accuracy
    assert accuracy is not None
    assert accuracy.float_model.top1 == 0.5


def test_probabilities_are_not_softmaxed_again() -> None:
    p = np.full((1, 1, 6), 0.05, np.float32)
    p[0, 0, 2] = 0.75
    accuracy = compare(sequence(), sequence(), [{"x": p}], labels=[[2]]).accuracy
    assert accuracy is not None
    assert accuracy.float_model.bits == pytest.approx(-np.log2(0.75), abs=1e-6)


@pytest.mark.parametrize(
    "labels", [np.zeros(5, int), np.zeros(7, int), np.zeros((6, 2), int), np.full(6, 10), [0.5] * 6]
)
def test_labels_that_do_not_fit_are_refused(labels: npt.ArrayLike) -> None:
    with pytest.raises(DataError, match="label"):
        compare(FLOAT, QUANTIZED, feeds(3, 2, 16), labels=labels)


def test_no_data_and_strange_models_are_refused() -> None:
    with pytest.raises(DataError, match="no data"):
        compare(FLOAT, QUANTIZED, [])
    g = Graph()
    g.node("Relu", ["x"], "other")
    stranger = g.model({"x": [2, 16]}, {"other": None})
    with pytest.raises(ModelError, match="no output y"):
        compare(FLOAT, stranger, feeds(1, 2, 16))


def test_feeds_are_streamed() -> None:
    """No array of an earlier feed is alive when the next is asked for."""
    import gc
    import weakref

    alive: list[weakref.ref[npt.NDArray[np.float32]]] = []

    def stream() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
        for i in range(5):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1  # the loop's own variable holds the last one
            feed = feeds(1, 2, 16, seed=i)[0]
            alive.append(weakref.ref(feed["x"]))
            yield feed
            del feed

    compare(FLOAT, QUANTIZED, stream())


def scores(rows: list[list[float]]) -> list[dict[str, npt.NDArray[np.float32]]]:
    return [{"x": np.array([rows], np.float32)}]


def offset(by: list[float]) -> bytes:
    """``y = x + by`` of [n, rows, 3]."""
    g = Graph()
    g.node("Add", ["x", g.const("k", np.array(by, np.float32))], "y")
    return g.model({"x": ["n", "rows", 3]}, {"y": None})


def test_of_independent_scores_only_those_that_decide_count() -> None:
    rows = [[0.9, 0.1, 0.2], [0.55, 0.6, 0.0], [0.45, 0.0, 0.1], [0.02, 0.01, 0.0], [0.0, 0.01, 0.02]]
    plain, other = offset([0.0, 0.0, 0.0]), offset([0.07, 0.0, 0.0])
    y = compare(plain, other, scores(rows)).outputs[0]
    # Above the threshold: one in the first row, two in the second, in one model only one in the third.
    assert (y.kind, y.agreement, y.agreement_rule, y.rows) == ("labels", pytest.approx(3 / 4), "above 0.5", 4)
    quiet = compare(plain, other, scores(rows[3:])).outputs[0]
    assert (quiet.agreement, quiet.rows) == (None, 0)


def test_rows_that_sum_to_one_are_a_distribution_and_all_of_them_count() -> None:
    y = compare(offset([0.0, 0.0, 0.0]), offset([0.1, 0.0, 0.0]), scores([[0.3, 0.35, 0.35], [0.8, 0.1, 0.1]])).outputs[
        0
    ]
    assert (y.kind, y.agreement, y.agreement_rule, y.rows) == ("tokens", 0.5, "arg-max", 2)


def test_a_model_is_as_good_as_its_worst_output() -> None:
    """The first output says nothing of what only the others come from; NaN is worse than any number."""
    clean = compare(FLOAT, FLOAT, iter(feeds(4, 2, 16))).outputs[0]
    noisy = replace(clean, name="second", sqnr_db=20.0, centred_sqnr_db=18.0)
    classes = replace(clean, name="third", sqnr_db=None, centred_sqnr_db=None)
    assert Comparison("a", "b", 4, (clean, noisy, classes)).sqnr_db == 18.0
    assert Comparison("a", "b", 4, (classes, clean)).sqnr_db == clean.level_db
    assert Comparison("a", "b", 4, (classes,)).sqnr_db is None
    broken = replace(noisy, centred_sqnr_db=float("nan"))
    assert np.isnan(Comparison("a", "b", 4, (clean, broken, noisy)).sqnr_db)
