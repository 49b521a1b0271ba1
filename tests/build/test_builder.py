"""One candidate after another: what the runtime or the data refuses stays float, and nothing is computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from zoo import Net, batchnorm_cnn, feeds, gemm, if_body, prepared, residual

from onnxq.build import builder as build_module
from onnxq.build.builder import Builder, touches
from onnxq.calibrate.feeds import open_feed
from onnxq.config import Config
from onnxq.graph import runtime_model
from onnxq.graph.runtime_model import to_runtime
from onnxq.graph.signature import signature
from onnxq.kernels.targets import TARGETS
from onnxq.measure.assignment import KernelAssignment
from onnxq.plan import KeptFloat, ReasonCode, Storage
from onnxq.search.trial import Trial, with_extrapolated_ranges


def builder(proto: onnx.ModelProto, folder: Path, data: list[dict[str, Any]] | None = None, **how: Any) -> Builder:
    chosen = feeds(proto, 4) if data is None else data
    return Builder(prepared(proto), Config(), TARGETS["x86-vnni"], chosen, folder, **how)


def test_a_candidate_is_complete(tmp_path: Path) -> None:
    built = builder(residual(), tmp_path).build()
    assert (
        {f.node for f in built.assignments if f.integer} == set(built.plan.anchors) == {"stem", "conv1", "conv2", "fc"}
    )
    assert built.kept_float == {}
    assert isinstance(built.runtime_model, bytes)


def test_data_is_run_only_for_tensors_that_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []
    real = build_module.run_observers

    def spy(model: Any, tensors: Any, *rest: Any, **how: Any) -> Any:
        asked.append(set(tensors))
        return real(model, tensors, *rest, **how)

    monkeypatch.setattr(build_module, "run_observers", spy)
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
    b = builder(gemm(), tmp_path, [], trusted=frozenset(), unseen=ReasonCode.RANGE_UNKNOWN)
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
    built = builder(proto, tmp_path, trusted=frozenset({"x"})).build()
    assert built.plan.anchors == ()


def test_a_trusted_part_is_quantized_with_fixed_ranges(tmp_path: Path) -> None:
    from onnxq.calibrate.synthetic import impose_moments

    proto = batchnorm_cnn()
    watched, trusted = impose_moments(prepared(proto))
    built = builder(proto, tmp_path, watched=watched, trusted=trusted, unseen=ReasonCode.RANGE_UNKNOWN).build()
    assert built.plan.anchors == ("conv1", "conv2", "fc")  # conv0 reads the input, of which nothing is known
    assert "x" not in built.parameters.tensors


def test_what_a_node_touches() -> None:
    model = prepared(residual())
    assert touches(model, "conv1", {"stem_relu_out"})
    assert touches(model, "conv1", {"relu1_out"})  # where its output settles
    assert touches(model, "conv1", {"conv1_out"})
    assert not touches(model, "conv1", {"conv2_out"})
    assert not touches(model, "nowhere", {"x"})


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
    from dataclasses import replace

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
        b = Builder(prepared(proto), Config(restore=restore), target, data, tmp_path)
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
    b = Builder(prepared(gemm()), plain, TARGETS["x86-vnni"], feeds(gemm()), tmp_path)
    parameters = b.build().parameters
    assert parameters.biases == {}
    assert b.statistics.moments == {}


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
    b = Builder(prepared(proto), Config(placement="all", **choices), TARGETS["x86-vnni"], feeds(proto), tmp_path)  # type: ignore[arg-type]
    b.build()
    assert {node: m.full for (node, _), m in b.statistics.moments.items()} == full


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
        b = Builder(prepared(proto), Config(rounding=rounding), TARGETS["x86-vnni"], data[:200], tmp_path)
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
    b = Builder(prepared(gemm()), Config(), TARGETS["x86-vnni"], loud(12), tmp_path, progress=looks.append)
    first = b.build()
    count = len(looks)
    second = b.with_extrapolated_ranges().build()
    assert len(looks) == count
    scales = [float(x.parameters.tensors["x"].scale) for x in (first, second)]
    assert scales[1] > 1.1 * scales[0]
    assert all(second.parameters.weights[key] is found for key, found in first.parameters.weights.items())


@pytest.mark.parametrize("louder", [False, True])
def test_held_out_samples_decide_whether_ranges_look_ahead(tmp_path: Path, louder: bool) -> None:
    """Judged by samples like the quieter half that was seen, or by the louder half."""
    graph, data = prepared(gemm()), sorted(loud(64), key=lambda f: float(np.abs(f["x"]).max()))
    quiet, judges = data[:32], data[32:] if louder else data[:8]
    b = Builder(graph, Config(), TARGETS["x86-vnni"], quiet, tmp_path)
    first = b.build()
    ahead = with_extrapolated_ranges(b, first)
    assert ahead is not None
    trial = Trial(to_runtime(graph, tmp_path), Config(), open_feed(judges, signature(graph).inputs), None)
    chosen, built = trial.better((b, first), ahead)
    assert chosen.ahead == louder
    assert (built.parameters.tensors["x"].scale > first.parameters.tensors["x"].scale) == louder


def test_a_candidate_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.search import trial as module

    graph, asked = prepared(gemm()), []
    b = Builder(graph, Config(), TARGETS["x86-vnni"], loud(32), tmp_path)
    built = b.build()
    real = module.judge
    monkeypatch.setattr(module, "judge", lambda *given: asked.append(given[1]) or real(*given))
    inputs = signature(graph).inputs
    held_out, second_check = open_feed(loud(8), inputs), open_feed(loud(16), inputs)
    trial = Trial(to_runtime(graph, tmp_path), Config(), held_out, second_check)
    assert trial.verdict(built) == trial.verdict(built)
    assert len(asked) == 2  # by either kind of samples
    assert trial.better((b, built), (b, b.with_extrapolated_ranges().build()))
    assert len(asked) == 3


@pytest.mark.parametrize("bias", [True, False])
def test_a_mean_that_no_bias_can_restore_counts_as_error(tmp_path: Path, bias: bool) -> None:
    from dataclasses import replace

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
    parameters = Builder(prepared(proto), Config(), target, data, tmp_path).draft({}).parameters
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
