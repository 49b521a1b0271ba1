"""``quantize`` from end to end."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from sqnr_levels import least
from zoo import Net, batchnorm_cnn, feeds, gemm, residual, sandwich_of_convs, silu, trained, transformer_mlp

import onnxq
from onnxq import Config, DataError, ModelError, Rule, RuntimeFailure, quantize
from onnxq.files.memory import Memory
from onnxq.measure.latency import Latency, LatencyReport
from onnxq.numerics import sqnr_db
from onnxq.plan import Storage
from onnxq.search import gains
from onnxq.search.search import NO_DATA, NO_ROOM

# These networks are too small for integers to pay on any CPU.
INTEGERS = Config(placement="all")


def images(count: int = 48, *, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)}


def rows(count: int = 48, *, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)}


def infer(model: bytes | str, feed: dict[str, Any]) -> list[np.ndarray]:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feed)


# -- what goes in -----------------------------------------------------------------------------------------------------


def test_a_path_a_proto_and_an_ir_model_give_the_same(tmp_path: Path) -> None:
    proto = batchnorm_cnn()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    results = [quantize(m, images(), config=INTEGERS) for m in (path, str(path), proto, ir.from_proto(proto))]
    contents = {r.proto().SerializeToString(deterministic=True) for r in results}
    assert len(contents) == 1
    assert len(results[0].plan.anchors) == 4


def test_the_input_is_left_alone_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.onnx"
    proto = residual()
    onnx.save(proto, path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    kept, graph = proto.SerializeToString(deterministic=True), ir.from_proto(proto)
    data = {"x": np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)}
    copy = data["x"].copy()
    for model in (path, proto, graph):
        quantize(model, data, config=INTEGERS)
        quantize(model, config=INTEGERS)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert proto.SerializeToString(deterministic=True) == kept
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == (
        ir.to_proto(ir.from_proto(proto)).SerializeToString(deterministic=True)
    )
    np.testing.assert_array_equal(data["x"], copy)


def test_two_runs_are_equal_byte_for_byte() -> None:
    first, second = (quantize(batchnorm_cnn(), images(), config=INTEGERS).proto().SerializeToString() for _ in range(2))
    assert first == second


def test_progress_goes_through_the_stages() -> None:
    told: list[str] = []
    quantize(gemm(), rows(), config=INTEGERS, progress=lambda stage, done, total: told.append(stage))
    assert list(dict.fromkeys(told))[:4] == ["prepare", "equalize", "observe", "verify"]


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_the_result_agrees_with_float_and_says_so() -> None:
    proto = batchnorm_cnn()
    result = quantize(proto, images(64), config=Config(placement="all", min_agreement=0.5))
    assert result.good
    assert result.comparison is not None
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > least("batchnorm_cnn, held out")
    test = images(16, seed=7)
    reference, found = infer(proto.SerializeToString(), test)[0], infer(result.proto().SerializeToString(), test)[0]
    assert sqnr_db(reference, found) > least("batchnorm_cnn, other samples")
    assert {f.kernel for f in result.report.integer} == {"QLinearConv", "QGemm"}
    assert result.report.left_float == ()
    json.loads(result.report.to_json())


def test_saving_and_loading(tmp_path: Path) -> None:
    result = quantize(gemm(), rows(), config=INTEGERS)
    (path,) = result.save(tmp_path / "q.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    saved = infer(str(path), {"x": rows(4)["x"]})
    np.testing.assert_array_equal(saved[0], infer(result.proto().SerializeToString(), {"x": rows(4)["x"]})[0])
    with pytest.raises(onnxq.OutputError, match="exists already"):
        result.save(path, overwrite=False)


def test_provenance_and_the_users_metadata_are_in_the_file() -> None:
    proto = gemm()
    onnx.helper.set_model_props(proto, {"labels": "cat,dog"})
    found = {
        p.key: p.value for p in quantize(proto, rows(), config=Config(placement="all", seed=5)).proto().metadata_props
    }
    assert found["labels"] == "cat,dog"
    provenance = json.loads(found["onnxq"])
    assert provenance["onnxq"] == onnxq.__version__
    assert json.loads(provenance["config"])["seed"] == 5


def test_the_file_shrinks() -> None:
    n = Net()
    h = n("Relu", n("Gemm", "x", n.weight("w1", 256, 16), n.vector("b1", 256), name="fc1", transB=1), name="relu")
    n("Gemm", h, n.weight("w2", 64, 256), name="fc2", transB=1, out="y")
    result = quantize(
        n.model({"x": ["n", 16]}, {"y": ["n", 64]}), rows(), config=Config(placement="all", min_agreement=0.0)
    )
    assert result.report.smaller > 3.0


# -- choices ----------------------------------------------------------------------------------------------------------


def test_excluded_nodes_compute_exactly_what_they_did() -> None:
    """The excluded middle of three convolutions: the same float operator with the same weights."""
    proto = sandwich_of_convs()
    result = quantize(
        proto,
        {"x": np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)},
        config=Config(placement="all", min_agreement=0.0).with_excluded(("middle",)),
    )
    assert result.plan.anchors == ("before", "after")
    assert result.report.reasons["middle"] == "kept float by rule 'middle'"
    graph = result.proto().graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    original = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    node = next(n for n in graph.node if n.name == "middle")
    for name in node.input[1:]:
        np.testing.assert_array_equal(stored[name], original[name])
    assert {f.node: f.kernel for f in result.report.assignments}["middle"] in ("Conv", "FusedConv")


def test_a_rule_that_matches_nothing_is_told() -> None:
    result = quantize(gemm(), rows(), config=Config(placement="all", rules=(Rule("nowhere*"),)))
    assert "rule 'nowhere*' matched no node" in result.report.notes


def test_few_samples_are_judged_on_themselves() -> None:
    note = "judged on the calibration samples themselves: there are too few to hold any out"
    assert note in quantize(gemm(), rows(7), config=INTEGERS).report.notes
    assert note not in quantize(gemm(), rows(48), config=INTEGERS).report.notes
    assert note in quantize(gemm(), rows(48), config=Config(placement="all", held_out=0.0)).report.notes


def test_samples_limit_what_is_used() -> None:
    seen: list[int] = []
    quantize(
        gemm(),
        rows(100),
        config=Config(placement="all", samples=20, held_out=0.25),
        progress=lambda stage, done, total: seen.append(done) if stage == "observe" else None,
    )
    assert max(seen) == 15


def test_arrays_that_no_input_wants_are_told() -> None:
    result = quantize(gemm(), {**rows(), "labels": np.zeros(48, np.int64)}, config=INTEGERS)
    assert any("labels" in note for note in result.report.notes)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_other_ranges(method: str) -> None:
    result = quantize(gemm(), rows(), config=Config(placement="all", min_agreement=0.0).with_range(method))
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > least(f"gemm, {method}")


def test_an_unmet_promise_is_told() -> None:
    """100 dB cannot be had from 8 bits: everything is given back, and what remains is float."""
    result = quantize(gemm(), rows(), config=Config(placement="all", guard_sqnr=100.0))
    assert result.plan.anchors == ()
    assert any("2 of 2 layers stay float" in note for note in result.report.notes)


# -- without data -----------------------------------------------------------------------------------------------------


def test_without_data_a_normalised_network_gets_ranges_from_its_moments() -> None:
    proto = trained(batchnorm_cnn(), [images(32)])
    result = quantize(proto, config=INTEGERS)
    assert result.plan.anchors == ("conv1", "conv2", "fc")
    assert result.comparison is None
    assert NO_DATA in result.report.warnings
    assert "no real data was seen" in NO_DATA
    assert any("loaded and run on random inputs: x [4, 3, 12, 12]" in note for note in result.report.notes)
    test = images(16, seed=7)
    reference, found = infer(proto.SerializeToString(), test)[0], infer(result.proto().SerializeToString(), test)[0]
    assert sqnr_db(reference, found) > least("batchnorm_cnn, no data")


def test_without_data_a_transformer_measures_ranges_at_run_time() -> None:
    n = Net(5)
    h = n("LayerNormalization", "x", n.const("gamma", np.ones(64)), name="ln", axis=-1)
    h = n("Relu", n.linear(h, 64, 128, name="up"), name="act")
    n("Add", "x", n.linear(h, 128, 64, name="down"), name="residual", out="y")
    proto = n.model({"x": ["b", "t", 64]}, {"y": ["b", "t", 64]})
    result = quantize(proto, config=INTEGERS)
    assert {w.storage for w in result.plan.weights} == {Storage.DYNAMIC}
    assert result.plan.points == ()
    assert {f.kernel for f in result.report.assignments} == {"DynamicQuantizeMatMul"}
    assert NO_DATA in result.report.warnings
    for scale in (0.1, 10):
        (feed,) = feeds(proto, 1, scale=scale)
        reference, found = infer(proto.SerializeToString(), feed), infer(result.proto().SerializeToString(), feed)
        assert sqnr_db(reference[0], found[0]) > least(f"transformer, ranges at run time, x {scale}")


def test_without_data_convolutions_without_moments_keep_computing_in_float() -> None:
    n = Net()
    n.conv(n("Relu", n.conv("x", 3, 64, name="one"), name="relu"), 64, 32, name="two", out="y")
    result = quantize(n.model({"x": [1, 3, 8, 8]}, {"y": [1, 32, 8, 8]}), config=INTEGERS)
    assert result.plan.anchors == ()
    assert {w.storage for w in result.plan.weights} == {Storage.PACKED}
    assert {s.reason for s in result.plan.skipped} == {"without calibration data the range of its input is unknown"}


# -- never slower -----------------------------------------------------------------------------------------------------


def claimed(ratios: list[float], calls: list[int]) -> Any:
    """A ``benchmark`` that claims these ratios, call by call."""

    def fake(models: Any, timed: Any, **_: Any) -> LatencyReport:
        ratio = ratios[len(calls)]
        calls.append(len(models))
        row = Latency("float", 1, 20, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
        other = Latency("int8", 1, 20, ratio, ratio, ratio, ratio, ratio, ratio - 0.1, ratio + 0.1)
        return LatencyReport((row, other), (), False, 0)

    return fake


def big_gemm() -> onnx.ModelProto:
    n = Net()
    n("Gemm", "x", n.weight("w", 128, 16), n.vector("b", 128), name="fc", transB=1, out="y")
    return n.model({"x": ["n", 16]}, {"y": ["n", 128]})


TIMED = Config(placement="all", latency_seconds=0.1, min_agreement=0.0)


@pytest.mark.parametrize("length", [3000, 1])
def test_long_names_make_no_file_larger(length: int) -> None:
    n = Net(2)  # of GRU only weights can be integers
    weight = n.const("w" * length, n.rng.standard_normal((1, 48, 64)))  # what is added is named after it
    n("GRU", "x", weight, n.const("r", n.rng.standard_normal((1, 48, 16))), name="rnn", out="y", hidden_size=16)
    model = n.model({"x": [4, "n", 64]}, {"y": [4, 1, "n", 16]})
    data = [{"x": np.random.default_rng(i).standard_normal((4, 1, 64)).astype(np.float32)} for i in range(16)]
    result = quantize(model, data)
    assert len(result.plan.weights) == 1
    assert not any(note.startswith("nothing can be gained") for note in result.report.notes)
    assert len(result.proto().SerializeToString()) < len(model.SerializeToString()) / 2
    assert result.good


def test_a_slower_model_only_stores_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(gains, "benchmark", claimed([1.5, 1.0], calls))
    result = quantize(big_gemm(), rows(), config=TIMED)
    assert calls == [2, 2]
    assert result.plan.anchors == ()
    assert [w.storage for w in result.plan.weights] == [Storage.PACKED]
    assert any("slower on this machine" in note for note in result.report.notes)
    assert not result.report.slower
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > least("big_gemm, stored")
    assert {f.kernel for f in result.report.assignments} == {"Gemm"}


def test_what_runs_the_kernels_of_the_float_model_is_never_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gains, "benchmark", claimed([1.5, 1.5], []))
    result = quantize(big_gemm(), rows(), config=TIMED)
    assert [w.storage for w in result.plan.weights] == [Storage.PACKED]
    assert result.report.latency is not None
    assert result.report.latency.same_kernels
    assert not result.report.slower


def test_on_a_busy_machine_times_that_are_unsure_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two threads it seems slower, but others had the cores; with one thread it is faster."""

    def fake(models: Any, timed: Any, **_: Any) -> LatencyReport:
        rows = [Latency("m", n, 20, *[1.0] * 7, waited=0.4) for n in (1, 1, 2, 2)]
        rows[1], rows[3] = (replace(rows[i], ratio=r, ratio_low=r, ratio_high=r) for i, r in ((1, 0.5), (3, 3.0)))
        return LatencyReport(tuple(rows), (), False, 0)

    monkeypatch.setattr(gains, "benchmark", fake)
    result = quantize(big_gemm(), rows(), config=TIMED)
    assert result.plan.anchors == ("fc",)
    assert not result.report.slower
    assert any("threads waited 40%" in note for note in result.report.notes)


@pytest.mark.parametrize("ratio", [0.5, 1.05])  # 1.05: its interval reaches below 1, which is no proof
def test_a_faster_model_stays(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(gains, "benchmark", claimed([ratio], calls))
    result = quantize(big_gemm(), rows(), config=TIMED)
    assert result.plan.anchors == ("fc",)
    assert result.report.latency is not None
    assert calls == [2]


def test_latency_is_not_measured_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(gains, "benchmark", claimed([], calls))
    assert quantize(big_gemm(), rows(), config=INTEGERS).report.latency is None
    assert calls == []


# -- what cannot be done ----------------------------------------------------------------------------------------------


def test_an_already_quantized_model() -> None:
    once = quantize(gemm(), rows(), config=INTEGERS).proto()
    with pytest.raises(ModelError, match="already quantized"):
        quantize(once, rows())


def test_nothing_to_quantize() -> None:
    n = Net()
    n("Relu", "x", name="relu", out="y")
    with pytest.raises(ModelError, match="nothing to quantize: the model has no Conv, Gemm or MatMul"):
        quantize(n.model({"x": [2, 16]}, {"y": [2, 16]}), rows())
    with pytest.raises(ModelError, match=r"nothing to quantize: Gemm 'fc1': kept float by rule '\*'"):
        quantize(gemm(), rows(), config=Config(rules=(Rule("*"),)))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"image": np.zeros((4, 16), np.float32)}, "x"),
        ({"x": np.zeros((4, 17), np.float32)}, "17"),
        ({"x": np.zeros((0, 16), np.float32)}, "empty|no sample"),
        ({"x": np.full((16, 16), np.nan, np.float32)}, "NaN"),
    ],
)
def test_data_that_does_not_fit(data: dict[str, np.ndarray], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        quantize(gemm(), data)


def test_a_model_that_the_runtime_refuses() -> None:
    proto = gemm()
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Mystery", "org.example"
    proto.opset_import.append(onnx.helper.make_opsetid("org.example", 1))
    with pytest.raises(RuntimeFailure, match="Mystery"):
        quantize(proto, rows())


def test_an_unknown_range_method_and_target() -> None:
    with pytest.raises(onnxq.ConfigError, match="nonsense"):
        quantize(gemm(), rows(), config=Config().with_range("nonsense"))
    with pytest.raises(onnxq.ConfigError, match="target is one of auto"):
        quantize(gemm(), rows(), config=Config(target="z80"))


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_old_opsets_come_out_within_13_to_20(opset: int) -> None:
    n = Net()
    h = n("Relu", n.conv("x", 3, 8, name="conv"), name="relu")
    h = n("Flatten", n("GlobalAveragePool", h, name="gap"), name="flatten")
    n("Gemm", h, n.weight("w", 10, 8), n.vector("b", 10), name="fc", transB=1, out="y")
    proto = n.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 10]}, opset=opset, ir_version=4)
    data = {"x": np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)}
    result = quantize(proto, data, config=Config(placement="all", min_agreement=0.0))
    (imported,) = result.proto().opset_import
    assert 13 <= imported.version <= 20
    assert {f.kernel for f in result.report.assignments} == {"QLinearConv", "QGemm"}


def test_transformer_mlp_and_silu_from_end_to_end() -> None:
    for make in (transformer_mlp, silu):
        proto = make()
        data = feeds(proto, 12)
        result = quantize(proto, data, config=Config(placement="all", min_agreement=0.0))
        assert all(f.integer for f in result.report.assignments)
        assert result.report.sqnr_db is not None
        assert result.report.sqnr_db > least(make.__name__)


def test_a_float_model_without_room_is_not_run_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data is not looked at: what is made is what is made without any."""
    proto = transformer_mlp()
    without = quantize(proto, config=Config(placement="all"))
    monkeypatch.setattr(Memory, "holds", lambda *_: False)
    monkeypatch.setattr("onnxq.search.search.made_up", lambda *_: pytest.fail("the float model was run"))
    found = quantize(proto, feeds(proto, 24), config=Config(placement="all", memory=200))
    assert found.comparison is None
    assert found.report.warnings == (NO_ROOM,)
    assert [w.storage for w in found.plan.weights] == [w.storage for w in without.plan.weights]
