"""The passes of ``prepare``, one by one: each keeps what a network computes, and the runner gives it what it needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from graph_helpers import check, make, node, ops, rand
from zoo import ZOO, feeds

from onnxq.graph import runner
from onnxq.graph.copying import copy_model
from onnxq.graph.io import serialize
from onnxq.graph.passes.naming import unique_names
from onnxq.graph.prepare import PASSES, prepare
from onnxq.graph.runner import ROUNDS, Need, Pass, Work, run_passes
from onnxq.kernels.targets import USUAL
from onnxq.runtime.session import open_session, run

# dB. One pass writes sums of a few hundred float32 terms in another order: 110 to 140 on these networks.
SAME = 100.0


def outputs_of(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    copy = copy_model(model)
    unique_names(copy)
    found = run(open_session(serialize(copy)), feed)
    return dict(zip([output.name or "" for output in copy.graph.outputs], found, strict=True))


def level(expected: np.ndarray, found: np.ndarray) -> float:
    """How far apart, in dB; arrays that are no floats agree or do not."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return -np.inf
    noise = np.square(expected.astype(np.float64) - found).sum()
    return np.inf if noise == 0 else 10 * np.log10(np.square(expected.astype(np.float64)).sum() / noise)


def checked(one: Pass, feed: dict[str, np.ndarray]) -> Pass:
    """``one``, which fails where it changes what the model computes, or says that it changed nothing and did."""

    def run_checked(work: Work) -> int:
        before, bytes_before = outputs_of(work.model, feed), serialize(work.model)
        count = one.run(work)
        after = outputs_of(work.model, feed)
        assert list(after) == list(before), one.name
        worst = min(level(before[name], after[name]) for name in before)
        assert worst >= SAME, f"{one.name}: {worst:.0f} dB"
        assert (count == 0) == (serialize(work.model) == bytes_before), f"{one.name}: {count} changes"
        return count

    return replace(one, run=run_checked)


@pytest.mark.parametrize("name", ZOO)
def test_no_pass_changes_what_a_network_computes(name: str) -> None:
    proto = ZOO[name]()
    (feed,) = feeds(proto, 1, seed=7)
    work = Work(ir.from_proto(proto), USUAL, 13)
    run_passes(work, [checked(p, feed) for p in PASSES])
    expected = serialize(prepare(ir.from_proto(proto), target=USUAL).model)
    assert serialize(work.model) == expected


def test_a_pass_that_changes_results_is_found() -> None:
    def breaks(work: Work) -> int:
        weight = next(v for v in work.model.graph.initializers.values() if v.name == "b1")
        weight.const_value = ir.tensor(weight.const_value.numpy() + 1, name="b1")  # type: ignore[union-attr]
        return 1

    proto = ZOO["gemm"]()
    (feed,) = feeds(proto, 1)
    with pytest.raises(AssertionError, match=r"breaks: .* dB"):
        run_passes(Work(ir.from_proto(proto), USUAL, 13), [checked(Pass("breaks", breaks), feed)])


# -- the list ---------------------------------------------------------------------------------------------------------


def test_names_of_passes_are_their_own() -> None:
    assert len({p.name for p in PASSES}) == len(PASSES)


def folded() -> tuple[list, dict, dict]:
    """A network with a BatchNormalization behind a Conv and a mean over the map."""
    names = ("g", "b", "m", "v")
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c g b m v", "n"),
        node("ReduceMean", "n", "y", axes=[2, 3]),
    ]
    constants = {"w": rand(4, 2, 3, 3)} | {name: np.abs(rand(4, seed=i)) for i, name in enumerate(names)}
    return nodes, {"x": (1, 2, 5, 5)}, constants


def test_a_pass_can_be_left_out_by_its_name() -> None:
    nodes, inputs, constants = folded()
    model = ir.from_proto(make(nodes, inputs, ["y"], constants))
    assert ops(prepare(model, target=USUAL).model) == ["Conv", "GlobalAveragePool"]
    assert ops(prepare(model, target=USUAL, skip=["fold_affine"]).model)[:2] == ["BatchNormalization", "Conv"]
    assert "ReduceMean" in ops(prepare(model, target=USUAL, skip=["use_global_pool"]).model)


def test_a_name_that_no_pass_has() -> None:
    with pytest.raises(ValueError, match="no pass 'fold_afine': there are inline_functions, "):
        prepare(ir.from_proto(ZOO["gemm"]()), target=USUAL, skip=["fold_afine"])


def test_the_target_says_what_pays() -> None:
    nodes, inputs, constants = folded()
    other = replace(USUAL, global_pooling=False)
    assert "ReduceMean" in ops(prepare(ir.from_proto(make(nodes, inputs, ["y"], constants)), target=other).model)
    mask = {"k": np.array([0, -100, 0], np.float32)}
    masked = make([node("Add", "x k", "m"), node("Softmax", "m", "y")], {"x": (1, 3)}, ["y"], mask)
    for slow, least in ((True, -1e4), (False, -100.0)):
        model = prepare(ir.from_proto(masked), target=replace(USUAL, slow_subnormals=slow)).model
        assert min(v.const_value.numpy().min() for v in model.graph.initializers.values()) == least  # type: ignore[union-attr]


def test_depthwise_channels_become_a_multiple_of_the_targets() -> None:
    constants = {"a": rand(40, 8, 1, 1), "d": rand(40, 1, 3, 3), "b": rand(8, 40, 1, 1)}
    nodes = [node("Conv", "x a", "p"), node("Conv", "p d", "q", group=40), node("Conv", "q b", "y")]
    for multiple, channels in ((16, 48), (10, 40)):
        target = replace(USUAL, depthwise_multiple=multiple)
        model = prepare(ir.from_proto(make(nodes, {"x": (1, 8, 20, 20)}, ["y"], constants)), target=target).model
        assert [n.attributes["group"].as_int() for n in model.graph if "group" in n.attributes] == [channels]
    check(make(nodes, {"x": (1, 8, 20, 20)}, ["y"], constants), {"x": rand(1, 8, 20, 20)})


# -- the runner -------------------------------------------------------------------------------------------------------


def passes(*steps: tuple[str, int, list[Need], bool], seen: list[str]) -> list[Pass]:
    """Passes by (name, how often they change something, needs, repeat) that write down when they are run."""
    left = {name: count for name, count, _, _ in steps}

    def run_of(name: str) -> Callable[[Work], int]:
        def run_it(_: Work) -> int:
            seen.append(name)
            left[name] -= 1
            return int(left[name] >= 0)

        return run_it

    return [Pass(name, run_of(name), needs, repeat) for name, _, needs, repeat in steps]


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the runner makes good and the passes that it runs, in order."""
    seen: list[str] = []
    for need in Need:
        monkeypatch.setitem(
            runner._RESTORE,
            need,
            lambda _, need=need: seen.append(need.name) or 0,
        )
    return seen


def work() -> Work:
    return Work(ir.from_proto(ZOO["gemm"]()), USUAL, 13)


def test_needs_are_made_good_once_until_something_changes(restored: list[str]) -> None:
    steps = [("a", 0, [Need.SHAPES], False), ("b", 1, [Need.SHAPES], False), ("c", 0, [Need.NAMES], False)]
    run_passes(work(), passes(*steps, seen=restored))
    assert restored == ["PRUNED", "NAMES", "SHAPES", "a", "b", "PRUNED", "NAMES", "c"]


def test_a_pass_without_needs_is_run_as_things_are(restored: list[str]) -> None:
    run_passes(work(), passes(("a", 1, [], False), ("b", 0, [], False), seen=restored))
    assert restored == ["a", "b"]


def test_neighbours_repeat_until_none_changes_anything_with_shapes_once_a_round(restored: list[str]) -> None:
    steps = [("a", 2, [Need.SHAPES], True), ("b", 1, [Need.PRUNED], True), ("c", 0, [], False)]
    run_passes(work(), passes(*steps, seen=restored))
    known = ["PRUNED", "NAMES", "SHAPES"]
    assert restored == [*known, "a", "PRUNED", "b", *known, "a", "PRUNED", "b", "NAMES", "SHAPES", "a", "b", "c"]


def test_rounds_end(restored: list[str]) -> None:
    run_passes(work(), passes(("a", 1000, [], True), seen=restored))
    assert restored == ["a"] * ROUNDS


def test_the_log_tells_what_each_pass_changed(caplog: pytest.LogCaptureFixture) -> None:
    nodes, inputs, constants = folded()
    with caplog.at_level(logging.DEBUG, logger="onnxq.graph"):
        prepare(ir.from_proto(make(nodes, inputs, ["y"], constants)), target=USUAL)
    assert "fold_affine (round 1): 1 changes" in caplog.messages
    assert "use_global_pool: 1 changes" in caplog.messages
    assert any(message.startswith("infer_shapes: ") for message in caplog.messages)
