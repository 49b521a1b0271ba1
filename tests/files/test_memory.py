"""The budget of a run, and the files and waits that keep to it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from onnxq.files.memory import BASE_BYTES, Memory
from onnxq.files.scratch import ArrayFile, Scratch, let_go


def test_a_run_takes_twice_the_model_and_what_is_always_there_unless_told() -> None:
    assert Memory.of(None, 65_000_000).limit == 130_000_000 + BASE_BYTES
    assert Memory.of(500, 65_000_000).limit == 500_000_000


def test_its_parts_stay_within_a_budget() -> None:
    memory = Memory.of(1000, 0)
    assert 0 < memory.kept < memory.workspace
    assert memory.kept + memory.workspace < memory.limit


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, np.bool_])
def test_arrays_in_one_file_come_back_in_any_order(tmp_path: Path, dtype: type) -> None:
    file = ArrayFile(tmp_path / "arrays")
    arrays = [np.arange(6).reshape(2, 3).astype(dtype), np.ones((), dtype), np.zeros((0, 4), dtype), np.ones(5, dtype)]
    assert [file.append(array) for array in arrays] == [0, 1, 2, 3]
    for index in (3, 0, 2, 1):
        np.testing.assert_array_equal(file[index], arrays[index])
        assert (file[index].dtype, file[index].shape) == (arrays[index].dtype, arrays[index].shape)
    assert file.nbytes == sum(array.nbytes for array in arrays)
    file.clear()
    assert (len(file), file.nbytes, (tmp_path / "arrays").exists()) == (0, 0, False)


def test_what_was_let_go_of_is_read_again(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, budget=0)
    kept = scratch.kept(np.arange(1 << 18, dtype=np.float64))
    sums = scratch.zeros((512, 512), np.float64)
    sums += 3.0
    let_go(sums[10:20].T)
    scratch.release()
    np.testing.assert_array_equal(kept, np.arange(1 << 18))
    assert (sums == 3.0).all()
    let_go(np.ones((3, 4)))  # not mapped: nothing happens


def test_threads_wait_until_there_is_room_and_what_is_too_large_runs_alone() -> None:
    scratch = Scratch(workspace=10)
    lock, running, most = threading.Lock(), [0], [0]

    def work(size: int) -> None:
        with scratch.working(size):
            with lock:
                running[0] += size
                most[0] = max(most[0], running[0])
                assert running[0] <= 10 or running[0] == size
            with lock:
                running[0] -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (4, 4, 4, 50, 3, 10, 9) * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert most[0] >= 50


def test_room_is_free_again_after_an_error() -> None:
    scratch = Scratch(workspace=10)
    with pytest.raises(KeyError), scratch.working(10):
        raise KeyError
    with scratch.working(10):
        pass
