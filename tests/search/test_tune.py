"""Tuning: what wins is kept, noise is not, a lucky winner is caught, and what was found is remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bench import Bench, bench
from zoo import Net, feeds, mobilenet, prepared

from onnxq.config import Config, Rule, config_from, config_text, load_config
from onnxq.kernels.targets import TARGETS
from onnxq.measure.latency import Latency, LatencyReport
from onnxq.pipeline import quantize
from onnxq.plan import KeptFloat, Storage
from onnxq.plan.place import Placement
from onnxq.search import tune as tuning
from onnxq.search.remember import cache_folder, recall, remember, tuning_key
from onnxq.search.tune import Trial, Tuning, tune

Judge = Callable[[bytes, bytes, int], tuple[float, float, float]]


def claimed(judge: Judge, calls: list[int]) -> Any:
    """A ``benchmark`` in which ``judge(before, after, threads)`` says ratio and interval."""

    def fake(models: Any, timed: Any, *, threads: tuple[int, ...], **_: Any) -> LatencyReport:
        rows: list[Latency] = []
        calls.append(len(models))
        for count in threads:
            ratio, low, high = judge(models[0], models[1], count)
            rows.append(Latency("a", count, 20, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
            rows.append(Latency("b", count, 20, ratio, ratio, ratio, ratio, ratio, low, high))
        return LatencyReport(tuple(rows), (), False, 0)

    return fake


def builder(proto: onnx.ModelProto, folder: Path, **how: Any) -> Bench:
    return bench(prepared(proto), Config(), TARGETS["x86-vnni"], feeds(proto, 4), folder, **how)


def integers(content: bytes) -> int:
    """How many QuantizeLinear nodes there are, for want of a stopwatch."""
    return sum(n.op_type == "QuantizeLinear" for n in onnx.load_model_from_string(content).graph.node)


def tuned(judge: Judge, folder: Path, monkeypatch: pytest.MonkeyPatch, *, seconds: float = 30.0) -> Tuning:
    monkeypatch.setattr(tuning, "benchmark", claimed(judge, []))
    start = Placement({"stem": KeptFloat("test", Storage.PACKED)})
    made = builder(mobilenet(), folder, placement=start)
    found = tune(made.candidate, made.context, feeds(mobilenet(), 1), threads=(1, 2), seconds=seconds, seed=0)
    assert made.candidate.placement is start
    return found


def test_what_is_faster_beyond_noise_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the fewer quantizers there are the faster: everything ends in float."""

    def fewer(before: bytes, after: bytes, threads: int) -> tuple[float, float, float]:
        ratio = (1 + integers(after)) / (1 + integers(before))
        return ratio, ratio - 0.01, ratio + 0.01

    found = tuned(fewer, tmp_path, monkeypatch)
    assert found.trials[0].what == "integers wherever they can be"
    assert not found.trials[0].kept
    assert any(t.kept for t in found.trials)
    assert found.trials[-1].what == "the best of these, against the start"
    assert len(found.placement.keep_float) > 1


def test_rules_of_the_user_come_before_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(before: bytes, after: bytes, threads: int) -> tuple[float, float, float]:
        ratio = (1 + integers(after)) / (1 + integers(before))
        return ratio, ratio - 0.01, ratio + 0.01

    monkeypatch.setattr(tuning, "benchmark", claimed(fewer, []))
    config = Config(rules=(Rule("stem", "int8"), Rule("head", "float")))
    made = bench(prepared(mobilenet()), config, TARGETS["x86-vnni"], feeds(mobilenet(), 4), tmp_path)
    found = tune(made.candidate, made.context, feeds(mobilenet(), 1), threads=(1,), seconds=30.0, seed=0)
    assert any(t.kept for t in found.trials)
    assert "stem" not in found.placement.keep_float


def test_noise_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(lambda *_: (0.97, 0.93, 1.01), tmp_path, monkeypatch)
    assert found.trials
    assert not any(t.kept for t in found.trials)
    assert set(found.placement.keep_float) == {"stem"}


def test_what_is_slower_with_some_number_of_threads_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuned(lambda a, b, n: (0.5, 0.4, 0.6) if n == 1 else (1.2, 1.1, 1.3), tmp_path, monkeypatch)
    assert not any(t.kept for t in found.trials)


def test_a_winner_by_luck_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is timed second looks faster, until the last time."""
    calls: list[int] = []

    def lucky(before: bytes, after: bytes, threads: int) -> tuple[float, float, float]:
        calls.append(threads)
        return (0.9, 0.88, 0.92) if len(calls) <= 2 else (1.0, 0.98, 1.02)

    found = tuned(lucky, tmp_path, monkeypatch)
    assert found.trials[0].kept
    assert not found.trials[-1].kept
    assert set(found.placement.keep_float) == {"stem"}


def test_tuning_ends_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(tuned(lambda *_: (1.0, 0.9, 1.1), tmp_path, monkeypatch, seconds=0.0).trials) == 1


# -- remembered -------------------------------------------------------------------------------------------------------

FOUND = Tuning(
    Placement({"a": KeptFloat("slow", Storage.PACKED), "b": KeptFloat("slow", None)}, frozenset({"c"})),
    "standard",
    (Trial("something", 0.9, 0.85, 0.95, True),),
)


def test_what_was_found_is_remembered_if_as_much_time_was_spent() -> None:
    remember("key", FOUND, 20.0)
    assert recall("key", 20.0) == replace(FOUND, reused=True)
    assert recall("key", 21.0) is None
    assert recall("other", 1.0) is None


def test_an_unreadable_entry_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remember("key", FOUND, 20.0)
    (cache_folder() / "tuning" / "key.json").write_text('{"seconds": 99}')
    assert recall("key", 1.0) is None
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    remember("key", FOUND, 20.0)  # costs the next call its time, no more
    assert recall("key", 1.0) is None


def weights(seed: int, width: int = 8) -> onnx.ModelProto:
    n = Net(seed)
    n("Gemm", "x", n.weight("w", width, 6), n.vector("b", width), name="fc", transB=1, out="y")
    return n.model({"x": ["n", 6]}, {"y": ["n", width]})


def test_the_key_is_of_the_graph_its_sizes_and_the_choices_not_of_the_weights() -> None:
    def key(proto: onnx.ModelProto | None = None, rows: int = 1, config: Config | None = None, threads: int = 1) -> str:
        model = prepared(weights(0) if proto is None else proto)
        return tuning_key(model, config or Config(), {"x": np.zeros((rows, 6), np.float32)}, (threads,))

    assert key() == key(weights(1))
    others = [
        key(weights(0, width=9)),
        key(rows=2),
        key(threads=2),
        key(config=Config(rules=(Rule("fc"),))),
        key(config=Config(target="x86-avx2")),
    ]
    assert len({key(), *others}) == 6


def test_a_second_call_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(tuning, "benchmark", claimed(lambda *_: (1.0, 0.9, 1.1), calls))
    config, proto = Config(placement="all", tune_seconds=1.0, min_agreement=0.0), mobilenet()
    first = quantize(proto, feeds(proto, 16), config=config)
    timed = len(calls)
    second = quantize(proto, feeds(proto, 16), config=config)
    assert timed > 0
    assert len(calls) == timed
    assert first.report.tuning == second.report.tuning != ()
    assert first.proto().SerializeToString() == second.proto().SerializeToString()


# -- as a configuration -----------------------------------------------------------------------------------------------


def test_a_configuration_survives_being_written(tmp_path: Path) -> None:
    config = Config(samples=17, min_sqnr=20.0, rules=(Rule("a[0]*", "stored"), Rule('q"uote', "int8-gemm")))
    path = tmp_path / "c.toml"
    path.write_text(config_text(config))
    assert load_config(path) == config
    assert config_text(Config()) == "\n"
    assert config_from({}) == Config()


def test_the_result_says_how_to_get_it_again(tmp_path: Path) -> None:
    proto = mobilenet()
    config = Config(placement="all", rules=(Rule("stem", "float"),), min_agreement=0.0)
    first = quantize(proto, feeds(proto, 16), config=config)
    path = tmp_path / "tuned.toml"
    path.write_text(config_text(first.config))
    again = quantize(proto, feeds(proto, 16), config=load_config(path))
    assert first.config.placement == "all"
    assert again.plan.integer == first.plan.integer
    assert again.plan.weights == first.plan.weights
