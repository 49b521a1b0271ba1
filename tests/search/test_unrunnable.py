"""Models that onnxruntime refuses, or that fail in a run, as soon as some of their nodes are on integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from test_bodies import state_times_outer_weight
from zoo import Net, mobilenet, residual, transformer_mlp

from onnxq import Config, DataError, RuntimeFailure, quantize
from onnxq.adapt.runtime import VARIABLE
from onnxq.config.presets import preset
from onnxq.pipeline import Result
from onnxq.plan import ReasonCode, Storage
from onnxq.search import gains, strategies
from onnxq.search.attempt import Attempt, Search

INTEGERS = Config(placement="all")
ANCHORS = ("stem", "conv1", "conv2", "fc")
INTEGER_NODES = (*ANCHORS, "add", "gap")
REAL = ort.InferenceSession
WORDS = "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel today"

Refuses = Callable[[onnx.ModelProto], bool]


def never(proto: onnx.ModelProto) -> bool:
    return False


class Machine:
    """An onnxruntime that refuses, when it loads or when it runs, some models; ``loads`` and ``runs`` are counted."""

    def __init__(self) -> None:
        self.loading: Refuses = lambda proto: False
        self.running: Refuses = lambda proto: False
        self.fails_on: Callable[[dict[str, Any]], bool] = lambda feed: True
        self.loads = 0

    def open(self, source: bytes | str, *args: Any, **how: Any) -> Any:
        self.loads += 1
        proto = onnx.ModelProto.FromString(source if isinstance(source, bytes) else Path(source).read_bytes())
        if self.loading(proto):
            raise RuntimeError(WORDS)
        session, fails = REAL(source, *args, **how), self.running(proto)
        return _Session(session, self.fails_on) if fails else session


class _Session:
    def __init__(self, session: ort.InferenceSession, fails_on: Callable[[dict[str, Any]], bool]) -> None:
        self._session, self._fails_on = session, fails_on

    def run(self, outputs: Any, feed: dict[str, Any]) -> Any:
        if self._fails_on(feed):
            raise RuntimeError(WORDS)
        return self._session.run(outputs, feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(ort, "InferenceSession", made.open)
    return made


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def on_integers(proto: onnx.ModelProto, name: str) -> bool:
    """Whether the node called ``name`` lies between quantizers as onnxruntime fuses them.

    Of what stays float the input may be dequantized too, but then channel by channel.
    """
    for graph in graphs(proto.graph):
        makers = {o: n for n in graph.node for o in n.output}
        scalars = {t.name for t in graph.initializer if not t.dims}
        for node in graph.node:
            if node.name == name:
                maker = makers.get(node.input[0])
                reads = maker is not None and maker.op_type == "DequantizeLinear" and maker.input[1] in scalars
                return node.op_type in INTEGERS_BY_NAME or (
                    reads and (node.op_type in FLOAT_OUTPUTS or _ends_in_codes(graph, node.output[0]))
                )
    return False


INTEGERS_BY_NAME = ("MatMulIntegerToFloat", "MatMulNBits")
FLOAT_OUTPUTS = ("Gemm", "MatMul")


def _ends_in_codes(graph: onnx.GraphProto, value: str) -> bool:
    readers = [n for n in graph.node if value in n.input]
    if [n.op_type for n in readers] == ["Relu"]:
        return _ends_in_codes(graph, readers[0].output[0])
    return bool(readers) and all(n.op_type == "QuantizeLinear" for n in readers)


def any_of(*names: str) -> Refuses:
    return lambda proto: any(on_integers(proto, name) for name in names)


def images(count: int = 24) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)}


def left(result: Result) -> set[str]:
    """The nodes that stay float since the runtime cannot run them."""
    return {s.node for s in result.plan.skipped if s.code is ReasonCode.UNRUNNABLE}


def reason(result: Result, node: str) -> str:
    return result.report.reasons[node]


@pytest.mark.parametrize("data", [images(), None], ids=["data", "no data"])
@pytest.mark.parametrize("when", ["loading", "running"])
@pytest.mark.parametrize(
    "names", [("conv2",), ("add",), ("conv1", "fc"), ("stem", "conv1", "conv2", "fc", "add", "gap")]
)
def test_just_what_cannot_run_stays_float(machine: Machine, names: tuple[str, ...], when: str, data: Any) -> None:
    proto = batchnormed() if data is None else residual()
    plain = quantize(proto, data, config=INTEGERS)
    setattr(machine, when, any_of(*names))
    result = quantize(proto, data, config=INTEGERS)
    assert not any(on_integers(result.proto(), name) for name in names)
    assert left(result) <= set(names)
    assert set(plain.plan.anchors) - set(names) <= set(result.plan.anchors)
    if data is not None:
        assert result.comparison is not None
        assert result.comparison.sqnr_db is not None
        assert result.comparison.sqnr_db > 30
    for name in left(result):
        assert reason(result, name) == "onnxruntime cannot run it on integers: no kernel today"
    told = [note for note in result.report.notes if "cannot run the model with integers there" in note]
    assert len(told) == 1
    assert all(name in told[0] for name in left(result))


def batchnormed() -> onnx.ModelProto:
    """``residual`` whose ranges are known without data: normalisations tell them."""
    n = Net(1)

    def normed(x: str, cin: int, name: str) -> str:
        y = n.conv(x, cin, 8, name=name, bias=False)
        parts = [
            n.const(f"{name}_gamma", np.ones(8)),
            n.vector(f"{name}_beta", 8),
            n.vector(f"{name}_mean", 8),
            n.const(f"{name}_var", np.ones(8)),
        ]
        return n("BatchNormalization", y, *parts, name=f"{name}_bn")

    x = n("Relu", normed("x", 3, "stem"), name="stem_relu")
    y = n("Relu", normed(x, 8, "conv1"), name="relu1")
    y = n("Relu", n("Add", normed(y, 8, "conv2"), x, name="add"), name="relu2")
    y = n("Flatten", n("GlobalAveragePool", y, name="gap"), name="flatten")
    n("Gemm", y, n.weight("fc_w", 10, 8), n.vector("fc_b", 10), name="fc", out="y", transB=1)
    return n.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 10]})


def test_two_that_fail_only_together_cost_one(machine: Machine) -> None:
    machine.loading = lambda proto: on_integers(proto, "conv1") and on_integers(proto, "conv2")
    result = quantize(residual(), images(), config=INTEGERS)
    assert len(left(result)) == 1
    assert {"conv1", "conv2"} & set(result.plan.integer)


def test_what_costs_least_goes_first(machine: Machine) -> None:
    """Without the Add on integers the convolutions can stay there."""
    machine.running = lambda proto: on_integers(proto, "add") and on_integers(proto, "conv2")
    result = quantize(residual(), images(), config=INTEGERS)
    assert set(ANCHORS) <= set(result.plan.integer)
    assert left(result) == {"add"}


def test_a_sample_that_only_the_quantized_model_fails_on(machine: Machine) -> None:
    data = images(64)
    data["x"][:, 0, 0, 0] = np.arange(64)
    machine.running = any_of("conv1")
    machine.fails_on = lambda feed: bool((feed["x"][:, 0, 0, 0] > 40).any())
    result = quantize(residual(), data, config=INTEGERS)
    assert left(result) == {"conv1"}


def test_layers_that_measure_at_run_time_fall_back_too(machine: Machine) -> None:
    machine.loading = lambda proto: any(n.op_type.startswith("Dynamic") for g in graphs(proto.graph) for n in g.node)
    x = {"x": np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)}
    result = quantize(state_times_outer_weight(), x, config=INTEGERS)
    assert left(result) == {"step"}
    assert [w.storage for w in result.plan.weights if w.node == "step"] == [Storage.PACKED]


def test_weights_that_cannot_even_be_stored_stay_float(machine: Machine) -> None:
    def stored(proto: onnx.ModelProto) -> bool:
        return any(t.name.startswith("up_w") and t.data_type == onnx.TensorProto.INT8 for t in proto.graph.initializer)

    n = Net(3)
    y = n("Relu", n.linear("x", 16, 128, name="up"), name="relu")
    n.linear(n("Relu", n.linear(y, 128, 128, name="mid"), name="relu2"), 128, 4, name="down", out="y")
    proto = n.model({"x": ["n", 16]}, {"y": ["n", 4]})
    machine.loading = stored
    x = {"x": np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)}
    result = quantize(proto, x, config=INTEGERS)
    assert left(result) == {"up"}
    assert {w.node for w in result.plan.weights} == {"mid", "down"}


@pytest.mark.parametrize("data", [images(), None], ids=["data", "no data"])
def test_a_model_that_cannot_run_quantized_at_all_is_passed_through(machine: Machine, data: Any) -> None:
    """Not even what was prepared runs: node names of onnxq are in it, or nodes that the original has are gone."""
    proto = batchnormed()
    machine.loading = lambda seen: not any(n.op_type == "BatchNormalization" for n in seen.graph.node)
    result = quantize(proto, data, config=replace(INTEGERS, equalize="none"))
    assert [n.op_type for n in result.proto().graph.node] == [n.op_type for n in proto.graph.node]
    assert result.report.result.file_bytes == result.report.source.file_bytes  # no entry that says how it was made
    assert not result.plan.weights
    assert any("passed through as it was given" in note and "no kernel today" in note for note in result.report.notes)
    if data is not None:
        assert result.comparison is not None
        assert [o.max_abs_error for o in result.comparison.outputs] == [0.0]


def test_a_float_model_that_does_not_run_is_still_an_error(machine: Machine) -> None:
    machine.running = lambda proto: True
    with pytest.raises(RuntimeFailure, match="no kernel today"):
        quantize(residual(), images(), config=INTEGERS)
    machine.running, machine.loading = (lambda proto: False), (lambda proto: True)
    with pytest.raises(RuntimeFailure, match="no kernel today"):
        quantize(residual(), config=INTEGERS)


@pytest.mark.parametrize("sample", range(0, 24, 6))
def test_a_sample_that_the_float_model_fails_on_is_still_an_error(machine: Machine, sample: int) -> None:
    data = images()
    data["x"][:, 0, 0, 0] = np.arange(24)
    machine.running = lambda proto: True
    machine.fails_on = lambda feed: bool((feed["x"][:, 0, 0, 0] == sample).any())
    with pytest.raises(RuntimeFailure, match="no kernel today"):
        quantize(residual(), data, config=replace(INTEGERS, equalize="none"))
    assert machine.loads < 10  # nobody looks for what causes it


def test_data_that_does_not_fit_is_still_an_error() -> None:
    with pytest.raises(DataError):
        quantize(residual(), {"x": np.zeros((24, 5, 8, 8), np.float32)}, config=INTEGERS)


# -- strategies that fail by themselves -------------------------------------------------------------------------------


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeFailure("onnxruntime failed while running the model: no more memory", hint="report it")


@pytest.mark.parametrize(
    ("what", "where", "config"),
    [
        ("tuned placement", "tune", Config(placement="all", tune_seconds=5.0)),
        ("adapted weights", "Adapter", Config(placement="all", adapt="fast")),
        ("never slower", "never_slower_itself", Config(placement="all", latency_seconds=0.1)),
    ],
)
def test_a_strategy_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, what: str, where: str, config: Config
) -> None:
    if where == "never_slower_itself":
        monkeypatch.setattr("onnxq.search.gains.benchmark", failing)
    else:
        monkeypatch.setattr(strategies, where, failing)
    data = images(64)
    result = quantize(residual(), data, config=config)
    plain = quantize(residual(), data, config=replace(config, tune_seconds=0.0, latency_seconds=0.0, adapt="none"))
    assert f"left out ({what}): no more memory" in result.report.notes
    assert set(result.plan.anchors) == set(plain.plan.anchors) == set(ANCHORS)
    assert result.comparison is not None


def test_a_trial_of_tuning_that_fails_is_one_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.search.tune.benchmark", failing)
    result = quantize(residual(), images(), config=Config(placement="all", tune_seconds=1.0))
    assert result.report.tuning == ()
    assert not [note for note in result.report.notes if note.startswith("left out")]
    assert set(result.plan.anchors) == set(ANCHORS)


def test_a_harder_try_that_fails_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair goes on from where it would have without."""
    config = Config(placement="all", guard_sqnr=60.0)
    with monkeypatch.context() as patched:
        patched.setattr(strategies, "equalized_more_and_rounded_together", lambda *_: None)
        plain = quantize(residual(), images(64), config=config)
    monkeypatch.setattr(strategies, "equalized_more_and_rounded_together", failing)
    result = quantize(residual(), images(64), config=config)
    assert result.plan.anchors == plain.plan.anchors
    assert set(result.plan.anchors) < set(ANCHORS)


def test_channels_are_left_as_they_are_where_equalizing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.search.search.equalized_for", failing)
    result = quantize(residual(), images(), config=Config(placement="all"))
    assert any(note.startswith("channels were not equalized: onnxruntime failed") for note in result.report.notes)
    assert set(result.plan.anchors) == set(ANCHORS)


def test_of_a_repair_the_candidates_that_fail_do_not_count(machine: Machine) -> None:
    """No model with just one layer in float runs, so it takes two."""
    machine.running = lambda proto: sum(on_integers(proto, name) for name in ANCHORS) == len(ANCHORS) - 1
    result = quantize(residual(), images(64), config=Config(placement="all", guard_sqnr=48.0, equalize="none"))
    codes = [s.code for s in result.plan.skipped if s.node in ANCHORS]
    assert codes == [ReasonCode.ACCURACY] * 2
    assert result.good
    assert not [note for note in result.report.notes if note.startswith("left out")]


def test_a_layer_that_does_not_run_alone_counts_as_the_noisiest(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sizes are unknown, layers are ranked by what each loses when it alone is on integers."""
    monkeypatch.setattr(strategies, "tensor_shapes", lambda *_: {})
    machine.loading = lambda proto: [name for name in ANCHORS if on_integers(proto, name)] == ["fc"]
    result = quantize(residual(), images(64), config=Config(placement="all", guard_sqnr=48.0, equalize="none"))
    assert "fc" not in result.plan.anchors
    assert result.good


def test_without_repair_the_verdict_is_that_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "repair", failing)
    result = quantize(residual(), images(64), config=Config(placement="all", guard_sqnr=200.0))
    assert any(note.startswith("left out (float fallback): ") for note in result.report.notes)
    assert result.comparison is not None
    assert not result.good


def test_what_fails_only_when_it_is_timed_is_judged_anew(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some time after it was judged the machine can no longer run one layer on integers."""
    real = gains.benchmark

    def late(*given: Any, **how: Any) -> Any:
        if machine.running is never:
            machine.running = any_of("conv1")
        return real(*given, **how)

    machine.running = never
    monkeypatch.setattr(gains, "benchmark", late)
    monkeypatch.setattr(gains, "slower", lambda report: False)
    before = quantize(residual(), images(64), config=INTEGERS).comparison
    result = quantize(residual(), images(64), config=Config(placement="all", latency_seconds=0.1))
    assert left(result) == {"conv1"}
    assert result.report.latency is not None
    plain = quantize(residual(), images(64), config=INTEGERS)  # conv1 is refused at once
    assert plain.comparison is not None
    assert result.comparison is not None
    assert result.comparison.sqnr_db == pytest.approx(plain.comparison.sqnr_db, abs=0.5)
    assert before is not None
    assert result.comparison.sqnr_db != before.sqnr_db


def test_a_missing_training_runtime_is_still_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(RuntimeFailure, match="holds no"):
        quantize(residual(), images(64), config=Config(placement="all", adapt="iterative"))


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_more_where_nothing_fails(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for proto, data in ((residual(), images()), (mobilenet(), None), (transformer_mlp(), None)):
        quantize(proto, data, config=INTEGERS)
        guarded, machine.loads = machine.loads, 0

        def bare(search: Search, attempt: Attempt, all_of: Any) -> Attempt:
            for strategy in all_of:
                attempt = strategy(search, attempt) or attempt
            return attempt

        with monkeypatch.context() as patched:
            patched.setattr("onnxq.search.search.improved", bare)
            quantize(proto, data, config=INTEGERS)
        assert guarded == machine.loads
        machine.loads = 0


def test_what_cannot_run_with_few_bits_either(machine: Machine) -> None:
    machine.loading = lambda proto: any(n.op_type == "MatMulNBits" and n.name == "mid" for n in proto.graph.node)
    n = Net(3)
    y = n("Relu", n.linear("x", 16, 128, name="up"), name="relu")
    y = n("Relu", n.linear(y, 128, 128, name="mid"), name="relu2")
    n.linear(n.linear(y, 128, 128, name="mid2"), 128, 4, name="down", out="y")
    x = {"x": np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)}
    result = quantize(n.model({"x": ["n", 16]}, {"y": ["n", 4]}), x, config=preset("w4"))
    storage = {w.node: w.storage for w in result.plan.weights}
    assert storage["mid"] is Storage.PACKED
    assert storage["mid2"] is Storage.BLOCKS
    assert left(result) == {"mid"}
