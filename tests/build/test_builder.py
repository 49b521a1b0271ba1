"""One candidate after another: what the runtime or the data refuses stays float, and nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bench import Bench, bench
from zoo import Net, batchnorm_cnn, feeds, gemm, if_body, prepared, residual

from onnxq.build import build as build_module
from onnxq.build import statistics as statistics_module
from onnxq.build.build import build
from onnxq.build.candidate import Draft, Watch
from onnxq.build.statistics import nodes_that_touch
from onnxq.calibrate.feeds import open_feed
from onnxq.config import Config
from onnxq.equalize import Equalized
from onnxq.files.scratch import Scratch
from onnxq.graph import runtime_model
from onnxq.graph.runtime_model import to_runtime
from onnxq.graph.signature import signature
from onnxq.kernels.targets import TARGETS
from onnxq.measure.assignment import KernelAssignment
from onnxq.numerics import INT8_NARROW, PerAxis, Quantized, params
from onnxq.parameters.cache import Codes
from onnxq.plan import KeptFloat, ReasonCode, Storage
from onnxq.search.attempt import Attempt, Job, Samples, Search
from onnxq.search.judging import CandidateJudge
from onnxq.search.strategies import extrapolated_ranges


def builder(proto: onnx.ModelProto, folder: Path, data: list[dict[str, Any]] | None = None, **how: Any) -> Bench:
    chosen = feeds(proto, 4) if data is None else data
    return bench(prepared(proto), Config(), TARGETS["x86-vnni"], chosen, folder, **how)


def test_a_candidate_is_complete(tmp_path: Path) -> None:
    built = builder(residual(), tmp_path).build()
    assert (
        {f.node for f in built.assignments if f.integer} == set(built.plan.anchors) == {"stem", "conv1", "conv2", "fc"}
    )
    assert built.kept_float == {}
    assert isinstance(built.runtime_model, bytes)


def test_data_is_run_only_for_tensors_that_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []
    real = statistics_module.run_observers

    def spy(model: Any, tensors: Any, *rest: Any, **how: Any) -> Any:
        asked.append(set(tensors))
        return real(model, tensors, *rest, **how)

    monkeypatch.setattr(statistics_module, "run_observers", spy)
    b = builder(residual(), tmp_path)
    first = b.build()
    assert set(first.plan.observed) <= asked[0]
    b.build()
    b.build({"conv1": KeptFloat("test")})
    b.build({"gap": KeptFloat("test")})  # the Gemm's input is no longer its pool's: a tensor with a range of its own
    last = b.build({"conv2": KeptFloat("test")})
    assert "flatten_out" in last.plan.observed
    assert sum(map(len, asked)) == len(set().union(*asked))  # no tensor was seen twice


def test_a_branch_that_did_not_run_is_not_guessed(tmp_path: Path) -> None:
    proto = if_body()
    data = [{**f, "flag": np.array(True)} for f in feeds(proto, 4)]
    n, then, other = Net(15), Net(16), Net(17)
    other("Gemm", other("Tanh", "x", name="tanh"), other.weight("w", 48, 16), name="unreached", transB=1, out="e")
    then("Gemm", "x", then.weight("w2", 48, 16), name="reached", transB=1, out="t")
    dims = ["n", 48]
    n(
        "If",
        "flag",
        name="if",
        out="y",
        then_branch=then.body("t", [], {"t": dims}),
        else_branch=other.body("e", [], {"e": dims}),
    )
    proto = n.model({"x": ["n", 16], "flag": (onnx.TensorProto.BOOL, [])}, {"y": dims})
    built = builder(proto, tmp_path, data).build()
    assert built.plan.anchors == ("reached",)
    reason = next(s.reason for s in built.plan.skipped if s.node == "unreached")
    assert reason == "the calibration data never reached it (a branch that did not run)"


def test_what_the_runtime_refuses_stays_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that does not fuse ``conv1``: the next round leaves it float and says why."""
    real = build_module.assignments

    def refusing(model: Any, kernels: Any) -> tuple[KernelAssignment, ...]:
        return tuple(
            KernelAssignment(f.node, f.op, f.scope, f.output, "Conv", False, f.found_by, "no kernel")
            if f.node == "conv1"
            else f
            for f in real(model, kernels)
        )

    monkeypatch.setattr(build_module, "assignments", refusing)
    built = builder(residual(), tmp_path).build()
    assert set(built.plan.anchors) == {"stem", "conv2", "fc"}
    assert built.kept_float["conv1"].reason == "the runtime keeps it in a float kernel (no kernel)"


def test_without_trust_no_activation_is_quantized(tmp_path: Path) -> None:
    b = builder(gemm(), tmp_path, [], watch=Watch(trusted=frozenset(), unseen=ReasonCode.RANGE_UNKNOWN))
    built = b.build()
    assert built.plan.points == ()
    assert {s.reason for s in built.plan.skipped} == {"without calibration data the range of its input is unknown"}


def test_any_number_of_rounds_of_unseen_tensors_ends(tmp_path: Path) -> None:
    """Each round can lay bare tensors that only the next one asks for; more rounds than the runtime is given."""
    n = Net()
    y = n.conv("x", 4, 4, name="conv0")
    for i in range(1, 9):
        y = n("MaxPool", y, name=f"pool{i}", kernel_shape=[1, 1])
        y = n("Transpose", y, name=f"turn{i}", perm=[0, 1, 3, 2])
        y = n.conv(y, 4, 4, name=f"conv{i}")
    n("Relu", y, name="relu", out="y")
    proto = n.model({"x": [1, 4, 4, 4]}, {"y": [1, 4, 4, 4]})
    built = builder(proto, tmp_path, watch=Watch(trusted=frozenset({"x"}))).build()
    assert built.plan.anchors == ()


def test_a_trusted_part_is_quantized_with_fixed_ranges(tmp_path: Path) -> None:
    from onnxq.calibrate.synthetic import impose_moments

    proto = batchnorm_cnn()
    watched, trusted = impose_moments(prepared(proto))
    built = builder(proto, tmp_path, watch=Watch(watched, trusted, ReasonCode.RANGE_UNKNOWN)).build()
    assert built.plan.anchors == ("conv1", "conv2", "fc")  # conv0 reads the input, of which nothing is known
    assert "x" not in built.parameters.tensors


def test_what_a_node_touches() -> None:
    model = prepared(residual())
    assert "conv1" in nodes_that_touch(model, {"stem_relu_out"})
    assert "conv1" in nodes_that_touch(model, {"relu1_out"})  # where its output settles
    assert "conv1" in nodes_that_touch(model, {"conv1_out"})
    assert "conv1" not in nodes_that_touch(model, {"conv2_out"})
    assert nodes_that_touch(model, {"nothing"}) == set()


def test_large_candidates_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(runtime_model, "IN_MEMORY_BYTES", 0)
    built = builder(gemm(), tmp_path).build()
    assert isinstance(built.runtime_model, Path)
    assert all(f.integer for f in built.assignments)
    assert Storage.INTEGER in {w.storage for w in built.plan.weights}


def layer_means(proto: onnx.ModelProto, data: list[dict[str, Any]], tensor: str) -> np.ndarray:
    """Mean over ``data`` of ``tensor: [N, C, ..]`` or ``[N, C]``, by channel."""
    from onnxq.runtime.session import open_session

    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.append(onnx.ValueInfoProto(name=tensor))
    opened = open_session(shown.SerializeToString())
    found = np.concatenate([opened.run([tensor], feed)[0] for feed in data])
    return found.mean(axis=tuple(i for i in range(found.ndim) if i != 1))


@pytest.mark.parametrize("storage", [Storage.INTEGER, Storage.PACKED, Storage.DYNAMIC])
def test_the_mean_of_a_layers_output_is_restored(tmp_path: Path, storage: Storage) -> None:
    """Two-bit weights move the mean of ``fc1`` far; its bias, integer or float, moves it back."""
    from onnxq.numerics import QType

    n = Net(3)
    hidden = n("Gemm", "x", n.weight("w1", 64, 32), n.vector("b1", 64), name="fc1", transB=1)
    n("Gemm", hidden, n.weight("w2", 8, 64), n.vector("b2", 8), name="fc2", transB=1, out="y")
    proto = n.model({"x": ["n", 32]}, {"y": ["n", 8]})
    data = [{"x": np.abs(f["x"]) + 1} for f in feeds(proto, 64)]
    target = replace(TARGETS["x86-vnni"], weights=QType(2, signed=True, narrow=True))
    kept = {} if storage is Storage.INTEGER else {"fc1": KeptFloat("test", storage)}
    truth = layer_means(proto, data, "fc1_out")
    off = {}
    for restore in ("gain", "mean+gain"):
        b = bench(prepared(proto), Config(restore=restore), target, data, tmp_path)
        b.draft({})  # what is given back to float has been an integer layer before
        draft = b.draft(kept)
        assert ("fc1", 2) in draft.parameters.biases or restore == "gain"
        emitted = onnx.load_model_from_string(bytes(draft.runtime_model))
        off[restore] = np.abs(layer_means(emitted, data, "fc1_out") - truth).mean()
    assert off["mean+gain"] < 0.05 * off["gain"]


def test_shared_weights_share_a_scale_but_not_a_shift(tmp_path: Path) -> None:
    n = Net(4)
    w = n.weight("w", 32, 32)
    y = n("Gemm", "x", w, n.vector("b1", 32), name="fc1", transB=1)
    n("Gemm", n("Relu", y, name="relu"), w, n.vector("b2", 32), name="fc2", transB=1, out="y")
    parameters = builder(n.model({"x": ["n", 32]}, {"y": ["n", 32]}), tmp_path).build().parameters
    assert len(parameters.weights) == 1
    shifts = [parameters.biases[node, 2] - n.constants[bias] for node, bias in (("fc1", "b1"), ("fc2", "b2"))]
    assert not np.allclose(*shifts)


def test_one_weight_may_serve_different_numbers_of_groups(tmp_path: Path) -> None:
    n = Net(6)
    w = n.weight("w", 4, 2, 3, 3)
    y = n("Conv", "x", w, n.vector("b1", 4), name="one", pads=[1, 1, 1, 1])
    n("Conv", n("Relu", y, name="relu"), w, n.vector("b2", 4), name="two", group=2, pads=[1, 1, 1, 1], out="y")
    n2 = n.model({"x": [1, 2, 6, 6]}, {"y": [1, 4, 6, 6]})
    parameters = builder(n2, tmp_path).build().parameters
    assert set(parameters.biases) == {("one", 2), ("two", 2)}


def test_nothing_is_restored_unless_asked_for(tmp_path: Path) -> None:
    plain = Config(objective="tensor", restore="none", rounding="nearest")
    b = bench(prepared(gemm()), plain, TARGETS["x86-vnni"], feeds(gemm()), tmp_path)
    parameters = b.build().parameters
    assert parameters.biases == {}
    assert b.statistics(b.build()).moments == {}


@pytest.mark.parametrize(
    ("choices", "full"),
    [
        ({}, {"small": True, "large": False}),
        ({"rounding": "compensated"}, {"small": True, "large": True}),
        ({"rounding": "nearest"}, {"small": False, "large": False}),
        ({"weights": "int4", "first_last": "int4"}, {"small": True, "large": True}),
    ],
)
def test_which_weights_are_rounded_together(tmp_path: Path, choices: dict[str, str], full: dict[str, bool]) -> None:
    n = Net(8)
    hidden = n("Gemm", "x", n.weight("w1", 1200, 24), name="small", transB=1)
    n("Gemm", hidden, n.weight("w2", 8, 1200), name="large", transB=1, out="y")
    proto = n.model({"x": ["n", 24]}, {"y": ["n", 8]})
    b = bench(prepared(proto), Config(placement="all", **choices), TARGETS["x86-vnni"], feeds(proto), tmp_path)  # type: ignore[arg-type]
    seen = b.statistics(b.build())
    assert {node: m.full for (node, _), m in seen.moments.items()} == full


def test_eight_bits_rounded_together_lose_less_at_the_outputs(tmp_path: Path) -> None:
    """Inputs that are alike: errors of one weight can be made up for by the next."""
    n = Net(9)
    n("Gemm", "x", n.weight("w", 16, 64), n.vector("b", 16), name="fc", transB=1, out="y")
    proto = n.model({"x": ["n", 64]}, {"y": ["n", 16]})
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 64))
    rows = (rng.standard_normal((400, 6)) @ mixing + 0.05 * rng.standard_normal((400, 64))).astype(np.float32)
    data = [{"x": row[None]} for row in rows]
    weight, lost = n.constants["w"], {}
    for rounding in ("nearest", "auto"):
        b = bench(prepared(proto), Config(rounding=rounding), TARGETS["x86-vnni"], data[:200], tmp_path)
        (found,) = b.draft({}).parameters.weights.values()
        lost[rounding] = np.square(rows[200:] @ (found.dequantize().reshape(16, 64) - weight).T).mean()
    assert lost["auto"] < 0.6 * lost["nearest"]


def loud(count: int) -> list[dict[str, np.ndarray]]:
    """Samples whose scale differs by a log-normal factor."""
    rng = np.random.default_rng(1)
    return [
        {"x": (rng.laplace(size=(4, 16)) * np.exp(0.6 * rng.standard_normal())).astype(np.float32)}
        for _ in range(count)
    ]


def test_ranges_that_look_ahead_are_wider_and_cost_no_second_look(tmp_path: Path) -> None:
    looks: list[int] = []
    b = bench(prepared(gemm()), Config(), TARGETS["x86-vnni"], loud(12), tmp_path, progress=looks.append)
    first = b.build()
    count = len(looks)
    second = b.extrapolated().build()
    assert len(looks) == count
    scales = [float(x.parameters.tensors["x"].scale) for x in (first, second)]
    assert scales[1] > 1.1 * scales[0]
    assert all(second.parameters.weights[key] is found for key, found in first.parameters.weights.items())


@pytest.mark.parametrize("louder", [False, True])
def test_held_out_samples_decide_whether_ranges_look_ahead(tmp_path: Path, louder: bool) -> None:
    """Judged by samples like the quieter half that was seen, or by the louder half."""
    graph, data = prepared(gemm()), sorted(loud(64), key=lambda f: float(np.abs(f["x"]).max()))
    quiet, judges = data[:32], data[32:] if louder else data[:8]
    inputs = signature(graph).inputs
    held_out, reference = open_feed(judges, inputs), to_runtime(graph, tmp_path)
    b = bench(graph, Config(), TARGETS["x86-vnni"], quiet, tmp_path)
    first = b.build()
    job = Job(graph, graph, reference, reference, tmp_path, Config(), lambda *_: None, Scratch())
    samples = Samples(open_feed(quiet, inputs), None, held_out)
    search = Search(job, samples, None, "", CandidateJudge(reference, Config(), held_out, None))
    start = Attempt(b.candidate, b.context, Equalized(graph), first)
    chosen = extrapolated_ranges(search, start) or start
    assert chosen.candidate.extrapolated == louder
    assert (chosen.built.parameters.tensors["x"].scale > first.parameters.tensors["x"].scale) == louder


def test_a_candidate_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.search import judging as module

    graph, asked = prepared(gemm()), []
    b = bench(graph, Config(), TARGETS["x86-vnni"], loud(32), tmp_path)
    built = b.build()
    real = module.judge
    monkeypatch.setattr(module, "judge", lambda *given, **how: asked.append(given[1]) or real(*given, **how))
    inputs = signature(graph).inputs
    held_out, second_check = open_feed(loud(8), inputs), open_feed(loud(16), inputs)
    judge = CandidateJudge(to_runtime(graph, tmp_path), Config(), held_out, second_check)
    assert judge.verdict(built) == judge.verdict(built)
    assert len(asked) == 2  # by either kind of samples
    assert judge.loses_less(b.extrapolated().build(), built) in (True, False)
    assert len(asked) == 3


@pytest.mark.parametrize("bias", [True, False])
def test_a_mean_that_no_bias_can_restore_counts_as_error(tmp_path: Path, bias: bool) -> None:
    from sums import moments_of

    from onnxq.graph.geometry import Geometry
    from onnxq.numerics import INT4
    from onnxq.ranges import Fit, fitted
    from onnxq.weights import weight_format

    n = Net(5)
    n.linear("x", 24, 16, name="mm", bias=bias, out="y")
    proto = n.model({"x": ["n", 24]}, {"y": ["n", 16]})
    data = [{"x": np.abs(f["x"]) + 1} for f in feeds(proto, 30)]
    target = replace(TARGETS["x86-vnni"], weights=INT4)
    parameters = bench(prepared(proto), Config(), target, data, tmp_path).draft({}).parameters
    moments = moments_of(np.concatenate([f["x"] for f in data])[None], full=True)
    weight = Geometry((24, 16), False).matrix(n.constants["mm_w"]).astype(np.float64)
    expected, other = (
        fitted(
            weight,
            moments,
            weight_format("int8"),
            qtype=INT4,
            how=Fit("mse", "auto", restore, "auto"),
            least=np.zeros(()),
        ).scale.reshape(-1)
        for restore in (("mean+gain", "gain") if bias else ("gain", "mean+gain"))
    )
    (found,) = parameters.weights.values()
    np.testing.assert_allclose(found.params.scale, expected, rtol=1e-5)
    assert not np.allclose(found.params.scale, other, rtol=1e-3)
    assert set(parameters.biases) == ({("mm_bias", 1)} if bias else set())


# -- nothing that was built before changes a candidate ----------------------------------------------------------------


def contents(made: Draft) -> list[tuple[str, bytes]]:
    """Every constant of a quantized model."""
    values = made.model.graph.initializers.items()
    return [(name, value.const_value.tobytes()) for name, value in values if value.const_value is not None]


OTHERS = {
    "methods": {"weight_range": "minmax", "activation_range": "minmax", "rounding": "nearest"},
    "method of weights": {"weight_range": "minmax"},
    "method of activations": {"activation_range": "minmax"},
    "rounding": {"rounding": "nearest"},
    "objective": {"objective": "diagonal"},
    "restoration": {"restore": "none"},
    "format": {"weights": "int4", "first_last": "int4"},
}


@pytest.mark.parametrize("toy", [residual, gemm, batchnorm_cnn])
@pytest.mark.parametrize("other", list(OTHERS))
def test_a_changed_configuration_gives_what_a_fresh_build_gives(
    toy: Callable[[], onnx.ModelProto], other: str, tmp_path: Path
) -> None:
    """Bit for bit, though statistics and parameters of the first configuration are still there."""
    proto = toy()
    # All moments are wanted whatever rounding is: nothing but the choice itself tells one weight from another.
    chosen = Config(objective="output", weights="int6")
    used, fresh = (bench(prepared(proto), chosen, TARGETS["x86-vnni"], feeds(proto, 4), tmp_path) for _ in range(2))
    first = used.build()
    config = replace(used.config, **OTHERS[other])
    changed, anew = (build(replace(b.candidate, config=config), b.context) for b in (used, fresh))
    assert contents(changed) == contents(anew)
    assert contents(changed) != contents(first)
    assert contents(used.build()) == contents(first)


def test_what_falls_back_to_float_is_the_same_whatever_was_built_before(tmp_path: Path) -> None:
    """Weights stay as integers were fitted to what the layers read, in a fresh build too."""
    kept = dict.fromkeys(("conv1", "fc"), KeptFloat("test", Storage.PACKED))
    used, fresh = builder(residual(), tmp_path), builder(residual(), tmp_path)
    first = used.build()
    used.build({"stem": KeptFloat("test")})
    changed, anew = (b.build(kept) for b in (used, fresh))
    assert contents(changed) == contents(anew)
    for key in changed.parameters.weights:
        assert changed.parameters.weights[key] is first.parameters.weights[key]


def test_extrapolated_ranges_are_those_of_a_fresh_build(tmp_path: Path) -> None:
    used, fresh = (bench(prepared(gemm()), Config(), TARGETS["x86-vnni"], loud(12), tmp_path) for _ in range(2))
    used.build()
    assert contents(used.extrapolated().build()) == contents(fresh.extrapolated().build())


def test_more_samples_count_as_if_they_had_been_there(tmp_path: Path) -> None:
    """Sums of parts: histograms of both parts are those of the whole."""
    data = loud(24)
    parts, whole = (bench(prepared(gemm()), Config(), TARGETS["x86-vnni"], d, tmp_path) for d in (data[:12], data))
    before = parts.build()
    context = parts.context.with_more(data[12:], parts.candidate, before.plan)
    both = build(parts.candidate, context).parameters
    expected = whole.build().parameters
    for name, own in expected.tensors.items():
        np.testing.assert_allclose(both.tensors[name].scale, own.scale, rtol=1e-3)
    assert any(both.tensors[name] != before.parameters.tensors[name] for name in expected.tensors)
    assert parts.build().parameters == before.parameters  # what was seen before is as it was


@pytest.mark.parametrize(("room", "again"), [(1e-9, True), (1.0, False)])
def test_codes_are_found_again_where_room_for_biases_did_not_decide_them(room: float, again: bool) -> None:
    scale = np.array([0.1, 0.2], np.float32)
    made = Quantized(np.zeros((2, 3), np.int8), params(INT8_NARROW, scale, granularity=PerAxis(0)))
    codes = Codes(made, np.full(2, room, np.float32))
    assert codes.serves(np.full(2, room, np.float32))
    assert codes.serves(np.zeros(2, np.float32)) is again
    assert not codes.serves(np.full(2, 0.1, np.float32))
