"""An adaptation that is interrupted goes on where it was, to the same file; what cannot be resumed is said."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from adapting import correlated, deep, runtime

from onnxq import Config, ConfigError, quantize
from onnxq.adapt import adapter as adapter_module
from onnxq.adapt import levels
from onnxq.adapt import runtime as home
from onnxq.adapt.checkpoint import Checkpoint
from onnxq.files.cache import CACHE_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.network]

CONFIG = Config(weights="int3", placement="all", adapt="iterative")
DATA = {"x": correlated(256, 32, 1)}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(home.VARIABLE, str(runtime()))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(levels, "_STEPS", 20)
    return tmp_path / "cache" / "adaptation"


def net() -> onnx.ModelProto:
    return deep().model({"x": ["n", 32]}, {"y": ["n", 10]})


class Stopped(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("after", [1, 2, 3])
def test_what_was_interrupted_ends_as_if_it_had_not_been(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize(net(), DATA, config=CONFIG)
    offer, taken = adapter_module.Adapter._keep, []

    def stopping(adapter: adapter_module.Adapter) -> None:
        offer(adapter)
        taken.append(adapter.steps[-1].what)
        if len(taken) == after:
            raise Stopped

    shutil.rmtree(Path(os.environ[CACHE_VARIABLE]) / "adaptation")
    monkeypatch.setattr(adapter_module.Adapter, "_keep", stopping)
    with pytest.raises(Stopped):
        quantize(net(), DATA, config=CONFIG)
    monkeypatch.setattr(adapter_module.Adapter, "_keep", offer)
    resumed = quantize(net(), DATA, config=replace(CONFIG, resume=True))
    found, usual = resumed.report.adaptation, whole.report.adaptation
    assert found is not None
    assert usual is not None
    assert found.notes[-1] == f"resumed behind: {taken[-1]}"
    assert [(s.what, s.before, s.after, s.kept, s.curve) for s in found.steps] == [
        (s.what, s.before, s.after, s.kept, s.curve) for s in usual.steps
    ]
    assert [p.proto().SerializeToString(deterministic=True) for p in (resumed, whole)] == [
        whole.proto().SerializeToString(deterministic=True)
    ] * 2


def test_another_model_or_other_choices_are_another_adaptation() -> None:
    quantize(net(), DATA, config=CONFIG)
    for data, config in (({"x": correlated(256, 32, 2)}, CONFIG), (DATA, replace(CONFIG, weights="int4"))):
        found = quantize(net(), data, config=replace(config, resume=True)).report.adaptation
        assert found is not None
        assert found.notes[0].startswith("nothing to resume")
    with pytest.raises(ConfigError, match="resume goes with adapt"):
        Config(resume=True)


def test_the_budget_is_no_part_of_what_is_resumed(place: Path) -> None:
    quantize(net(), DATA, config=replace(CONFIG, adapt_seconds=0.01))
    found = quantize(net(), DATA, config=replace(CONFIG, resume=True)).report.adaptation
    assert found is not None
    assert found.notes[-1] == "resumed behind: closed form, channels together"
    assert any(step.curve for step in found.steps)
    assert len(list(place.glob("*.npz"))) == 1


def test_steps_are_known_by_their_codes_whatever_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, adapt="fast")
    whole = quantize(net(), DATA, config=config)
    monkeypatch.setattr(adapter_module, "CLOSED_FORM", replace(levels.CLOSED_FORM, text="said otherwise"))
    resumed = quantize(net(), DATA, config=replace(config, resume=True)).report.adaptation
    assert whole.report.adaptation is not None
    assert resumed is not None
    assert resumed.steps == whole.report.adaptation.steps  # as they were saved: nothing was done again
    assert [step.code for step in resumed.steps] == ["closed_form"]


def test_a_file_that_is_damaged_is_as_none(place: Path) -> None:
    quantize(net(), DATA, config=CONFIG)
    (file,) = place.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    found = quantize(net(), DATA, config=replace(CONFIG, resume=True)).report.adaptation
    assert found is not None
    assert found.notes[0].startswith("nothing to resume")


def test_a_full_disk_costs_nothing_but_a_note(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxq.files.cache.os.replace", full)
    found = quantize(net(), DATA, config=replace(CONFIG, adapt="fast")).report.adaptation
    assert found is not None
    assert found.kept
    assert found.notes == (f"progress could not be saved in {place} (No space left on device)",)
    assert list(place.iterdir()) == []


def test_only_the_newest_are_kept(place: Path) -> None:
    for seed in range(6):
        quantize(net(), DATA, config=replace(CONFIG, adapt="fast", seed=seed))
    assert len(list(place.glob("*.npz"))) == 4


def test_what_is_loaded_is_what_was_saved() -> None:
    """Through the files of a whole run: biases that adapting added among it."""
    seen = []
    save = Checkpoint.save

    def watched(checkpoint: Checkpoint, state: object) -> str | None:
        problem = save(checkpoint, state)  # type: ignore[arg-type]
        seen.append((checkpoint, state))
        return problem

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", watched)
        quantize(net(), DATA, config=CONFIG)
    checkpoint, state = seen[-1]
    again = checkpoint.load()
    assert again is not None
    assert (again.rates, again.steps, again.layers) == (state.rates, state.steps, state.layers)
    assert again.best.tensors == state.best.tensors
    assert again.best.weights.keys() == state.best.weights.keys()
    for key, weight in again.best.weights.items():
        assert weight.params == state.best.weights[key].params
        assert (weight.codes == state.best.weights[key].codes).all()
    assert {k: v.tolist() for k, v in again.best.biases.items()} == {
        k: v.tolist() for k, v in state.best.biases.items()
    }
