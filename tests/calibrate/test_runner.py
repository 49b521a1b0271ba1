"""Running a float model over feeds and keeping statistics only."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from zoo import Net, feeds, gemm, if_body, loop_body, prepared, residual

from onnxq.calibrate import runner
from onnxq.calibrate.observers import merge, observe
from onnxq.calibrate.runner import run_observers, values_of
from onnxq.errors import DataError

Array = np.ndarray[Any, Any]


def test_interior_tensors_inputs_and_outputs_are_observed() -> None:
    proto = gemm()
    data = feeds(proto, 5)
    found = run_observers(prepared(proto), ["x", "relu_out", "y"], data).histograms
    assert set(found) == {"x", "relu_out", "y"}
    everything = np.concatenate([f["x"] for f in data])
    assert (found["x"].low, found["x"].high) == (everything.min(), everything.max())
    assert found["x"].total == everything.size
    assert found["relu_out"].low == 0.0
    assert found["relu_out"].total == 5 * 2 * 32


def test_statistics_are_those_of_the_values_themselves() -> None:
    proto = gemm()
    data = feeds(proto, 3)
    constants = {t.name: np.frombuffer(t.raw_data, np.float32).reshape(t.dims) for t in proto.graph.initializer}
    expected = None
    for feed in data:
        hidden = np.maximum(feed["x"] @ constants["w1"].T + constants["b1"], 0)
        expected = merge(expected, observe(hidden, tensor="t"))
    found = run_observers(prepared(proto), ["relu_out"], data).histograms["relu_out"]
    assert expected is not None
    assert found.exponent == expected.exponent
    assert found.high == pytest.approx(expected.high, rel=1e-5)


def test_only_inputs_need_no_session() -> None:
    proto = gemm()
    model = prepared(proto)
    model.graph.node(0).op_type = "NoSuchOperator"  # onnxruntime would refuse it
    assert set(run_observers(model, ["x"], feeds(proto, 2)).histograms) == {"x"}


def test_a_generator_of_feeds_is_read_once() -> None:
    proto = gemm()
    assert run_observers(prepared(proto), ["x"], iter(feeds(proto, 3))).histograms["x"].total == 3 * 2 * 16


def test_progress_counts_feeds() -> None:
    proto, seen = gemm(), []
    run_observers(prepared(proto), ["y"], feeds(proto, 3), progress=seen.append)
    assert seen == [1, 2, 3]


def test_no_feed_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample"):
        run_observers(prepared(gemm()), ["x", "y"], [])


def test_a_name_that_does_not_exist_is_missing_from_the_result() -> None:
    proto = gemm()
    assert set(run_observers(prepared(proto), ["y", "nowhere"], feeds(proto, 1)).histograms) == {"y"}


def test_integer_tensors_are_not_observed() -> None:
    n = Net()
    n("MatMul", n("Cast", "x", name="cast", to=1), n.weight("w", 4, 4), name="mm", out="y")
    proto = n.model({"x": (7, [2, 4])}, {"y": [2, 4]})
    assert set(run_observers(prepared(proto), ["x", "cast_out"], feeds(proto, 1)).histograms) == {"cast_out"}


def test_nan_names_the_tensor_where_it_is_seen() -> None:
    n = Net()
    n("MatMul", n("Sqrt", "x", name="sqrt"), n.weight("w", 4, 4), name="mm", out="y")
    proto = n.model({"x": [2, 4]}, {"y": [2, 4]})
    data = [{"x": np.full((2, 4), v, np.float32)} for v in (1.0, -1.0)]
    with pytest.raises(DataError, match="'sqrt_out' holds NaN"):
        run_observers(prepared(proto), ["x", "sqrt_out"], data)


@pytest.mark.parametrize(
    ("flags", "reached"), [([True], {"then"}), ([False], {"else"}), ([True, False], {"then", "else"})]
)
def test_a_branch_that_never_ran_is_missing(flags: list[bool], reached: set[str]) -> None:
    proto = if_body()
    model = prepared(proto)
    data = [{**f, "flag": np.array(flag)} for f, flag in zip(feeds(proto, len(flags)), flags, strict=True)]
    tensors = {"then": "then_y", "else": "inner_else_out"}
    found = run_observers(model, [*tensors.values(), "relu_out"], data).histograms
    assert set(found) == {tensors[r] for r in reached} | {"relu_out"}
    assert found["relu_out"].total == len(flags) * 32


def test_nested_branches_are_seen() -> None:
    outer, middle, inner, other = Net(), Net(), Net(), Net()
    inner("Mul", "x", inner.const("two", 2.0), name="deep", out="deep_y")
    other("Neg", "x", name="neg", out="neg_y")
    neg2 = Net()
    neg2("Abs", "x", name="abs", out="abs_y")
    branches = {"then_branch": inner.body("t", [], {"deep_y": [3]}), "else_branch": other.body("e", [], {"neg_y": [3]})}
    middle("If", "b", name="inner_if", out="middle_y", **branches)
    branches = {
        "then_branch": middle.body("t2", [], {"middle_y": [3]}),
        "else_branch": neg2.body("e2", [], {"abs_y": [3]}),
    }
    outer("If", "a", name="outer_if", out="y", **branches)
    flag = (9, [])
    proto = outer.model({"x": [3], "a": flag, "b": flag}, {"y": [3]})
    x = np.array([1, 2, 3], np.float32)
    model = prepared(proto)

    def found(a: bool, b: bool) -> dict[str, float]:
        feed = {"x": x, "a": np.array(a), "b": np.array(b)}
        return {k: h.high for k, h in run_observers(model, ["deep_y", "neg_y", "abs_y"], [feed]).histograms.items()}

    assert found(True, True) == {"deep_y": 6.0}
    assert found(True, False) == {"neg_y": -1.0}
    assert found(False, True) == {"abs_y": 3.0}


def test_observing_changes_neither_model_nor_data() -> None:
    import onnx_ir as ir

    for proto in (residual(), if_body(), loop_body()):
        model, data = prepared(proto), feeds(proto, 2)
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        copies = [{k: v.copy() for k, v in f.items()} for f in data]
        names = [o.name or "" for n in model.graph for o in n.outputs]
        run_observers(model, names, data)
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before
        for old, new in zip(copies, data, strict=True):
            assert all(np.array_equal(old[k], new[k]) for k in old)


@pytest.mark.parametrize("count", [4, 64])
def test_no_array_of_one_feed_is_kept_for_the_next(count: int) -> None:
    """Each feed's arrays are gone when the next one is asked for, however many there are."""
    proto = gemm()
    alive: list[weakref.ref[Array]] = []
    most = 0

    def data() -> Iterator[dict[str, Array]]:
        nonlocal most
        for feed in feeds(proto, count):
            array = feed["x"].copy()
            alive.append(weakref.ref(array))
            yield {"x": array}
            del array
            most = max(most, sum(r() is not None for r in alive))

    run_observers(prepared(proto), ["x", "relu_out"], data())
    assert most <= 1
    assert not any(r() is not None for r in alive)


def test_the_statistics_do_not_grow_with_the_data() -> None:
    proto = gemm()
    few, many = (run_observers(prepared(proto), ["x", "relu_out"], feeds(proto, n)).histograms for n in (4, 200))
    for tensor in few:
        assert many[tensor].counts.nbytes <= 4 * few[tensor].counts.nbytes


def test_what_is_taken_out_is_gone_before_the_next_feed_runs() -> None:
    proto, held = gemm(), list[weakref.ref[Array]]()
    for values in values_of(prepared(proto), ["x", "relu_out"], _gone(feeds(proto, 3), held)):
        held[:] = [weakref.ref(values.pop("relu_out"))]
    assert held


def _gone(data: list[dict[str, Array]], held: list[weakref.ref[Array]]) -> Iterator[dict[str, Array]]:
    for feed in data:
        assert all(ref() is None for ref in held)
        yield feed


def test_large_values_come_from_kernels_without_copies_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, levels = residual(), []
    plain = runner.open_to_look

    def opened(model: Any, *, optimize: str) -> Any:
        levels.append(optimize)
        return plain(model, optimize=optimize)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "open_to_look", opened)
    model, data = prepared(proto), feeds(proto, 3)
    names = [value.name or "" for node in model.graph for value in node.outputs]
    small, large = (list(values_of(model, names, data, workspace=size)) for size in (1 << 30, 1))
    assert levels == ["all", "all", "extended"]  # once for all further feeds
    for one, other in zip(small, large, strict=True):
        assert all(np.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in names)
