"""Arrays that go to files: they hold what was put in, and a model made of them is the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo import feeds, residual, transformer_mlp

from onnxq import Config, quantize
from onnxq.files import memory, scratch
from onnxq.files.scratch import Scratch
from onnxq.graph import runtime_model
from onnxq.runtime.session import open_session


def test_what_is_small_or_within_the_budget_stays_in_memory(tmp_path: Path) -> None:
    room = Scratch(tmp_path, budget=3 << 20)
    small, first, second = np.ones(10), np.ones(1 << 18), np.arange(1 << 18, dtype=np.float64)
    assert room.kept(small) is small
    assert room.kept(first) is first  # 2 MB of 3
    kept = room.kept(second)
    assert isinstance(kept, np.memmap)
    np.testing.assert_array_equal(kept, second)
    assert not kept.flags.writeable
    assert Scratch().kept(second) is second


def test_zeros_can_be_added_to(tmp_path: Path) -> None:
    sums = Scratch(tmp_path, budget=0).zeros((512, 512), np.float64)
    assert isinstance(sums, np.memmap)
    sums += 2.0
    assert (sums == 2.0).all()
    assert Scratch().zeros((3,), np.float32).dtype == np.float32


@pytest.mark.parametrize("adapt", ["none", "fast"])
@pytest.mark.parametrize("weights", ["int8", "int4", "codebook4"])
def test_models_are_the_same_whether_arrays_are_in_memory_or_not(
    weights: str, adapt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto, data = residual(), feeds(residual(), 24)
    config = Config(placement="all", weights=weights, adapt=adapt)
    usual = quantize(proto, data, config=config).proto().SerializeToString(deterministic=True)
    maps = in_files(monkeypatch)
    assert quantize(proto, data, config=config).proto().SerializeToString(deterministic=True) == usual
    assert maps


def test_a_result_outlives_the_files_it_was_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = in_files(monkeypatch)
    monkeypatch.setattr(runtime_model, "IN_MEMORY_BYTES", 0)
    proto = transformer_mlp()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    result = quantize(
        tmp_path / "m.onnx", feeds(proto, 24), config=Config(placement="all", weights="int4", first_last="int4")
    )
    (path, *_) = result.save(tmp_path / "q.onnx")
    assert maps
    assert not any(file.exists() for file in maps)
    feed = feeds(proto, 1, seed=3)[0]
    assert np.isfinite(open_session(path).run(None, feed)[0]).all()


def in_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every array goes to a file from now on; the files."""
    made = []
    mapped = Scratch._map

    def watched(room: Scratch, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        array = mapped(room, shape, dtype)
        made.append(Path(str(array.filename)))
        return array

    monkeypatch.setattr(scratch, "SMALL_BYTES", 64)
    monkeypatch.setattr(memory, "_KEPT", 0)
    monkeypatch.setattr(Scratch, "_map", watched)
    return made
