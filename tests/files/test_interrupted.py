"""Processes that end in the middle: nothing is half there, and what they left goes with the next one."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import toys
from onnx import numpy_helper

from onnxq.files import temporary
from onnxq.files.atomic import staged
from onnxq.files.temporary import sweep, temporary_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no locks that end with their process there")

HOLD = """
import sys, time
from pathlib import Path
from onnxq.files.atomic import staged
from onnxq.files.temporary import temporary_folder
place = Path(sys.argv[1])
with temporary_folder(place) as folder, staged(place / "out.onnx") as (half,):
    (folder / "array").write_bytes(b"x" * 100)
    half.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(600)
"""


def holder(place: Path) -> subprocess.Popen[str]:
    """A process that holds a temporary folder and a staged file in ``place``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_is_in_use_stays_and_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    process = holder(tmp_path)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 2
    sweep(tmp_path)
    with staged(tmp_path / "out.onnx"):
        assert set(made) <= set(tmp_path.iterdir())
    process.kill()
    process.wait()
    assert set(made) <= set(tmp_path.iterdir())
    sweep(tmp_path)
    with staged(tmp_path / "out.onnx") as (half,):
        half.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"whole"


def test_only_own_folders_are_swept(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "owner.lock").touch()
    (tmp_path / "onnxq-link").symlink_to(target, target_is_directory=True)
    (tmp_path / "onnxq-notes.txt").write_text("of the user")
    (tmp_path / "onnxq-project").mkdir()  # no lock: none of ours
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_whose_owner_died_while_making_it_goes_after_a_while(tmp_path: Path) -> None:
    new, old = tmp_path / ".onnxq-new-1", tmp_path / ".onnxq-new-2"
    new.mkdir()
    old.mkdir()
    os.utime(old, (time.time() - 100, time.time() - 100))
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [new.name]


def test_the_first_folder_of_a_process_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    monkeypatch.setattr(temporary, "_swept", set())
    with temporary_folder(tmp_path) as folder:
        assert [p for p in tmp_path.iterdir() if p.name.startswith("onnxq-")] == [folder]


SAVE = """
import os, signal, sys
import numpy as np, onnx_ir as ir
from onnxq.graph.io import load, save
model = load(sys.argv[1])
for value in model.graph.initializers.values():
    array = np.full(value.const_value.shape.numpy(), float(sys.argv[3]), np.float32)
    value.const_value = ir.tensor(array, name=value.name)
last, calls = int(sys.argv[4]), 0

def watched(call):
    def wrapper(*given, **more):
        global calls
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return call(*given, **more)
    return wrapper

os.replace, os.unlink = watched(os.replace), watched(os.unlink)
save(model, sys.argv[2], external_above=0)
print(calls)
"""


def two_weights(path: Path) -> None:
    """A model of two weights, large enough to lie in a data file."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.random((32, 32), np.float32), f"w{i}") for i in range(2)]
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["N", 32]) for name in ("x", "y")]
    nodes = [onnx.helper.make_node("MatMul", ["x", "w0"], ["h"]), onnx.helper.make_node("MatMul", ["h", "w1"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


def saving(source: Path, target: Path, value: int, last: int = 10**6) -> subprocess.CompletedProcess[str]:
    arguments = [str(source), str(target), str(value), str(last)]
    return subprocess.run([sys.executable, "-c", SAVE, *arguments], capture_output=True, text=True, check=False)


def held(target: Path) -> float:
    """The value that all weights of ``target`` have."""
    values = np.unique([numpy_helper.to_array(w) for w in onnx.load(target).graph.initializer])
    assert len(values) == 1  # those of one save
    return float(values[0])


def test_a_model_with_a_data_file_is_whole_whenever_its_process_is_killed(tmp_path: Path) -> None:
    source, target = tmp_path / "source.onnx", tmp_path / "out" / "m.onnx"
    target.parent.mkdir()
    two_weights(source)
    assert saving(source, target, 1).returncode == 0
    steps = int(saving(source, target, 1).stdout)
    assert steps >= 4
    seen = set()
    for last in range(steps):
        assert saving(source, target, 2 + last, last).returncode == -signal.SIGKILL
        seen.add(held(target) == 2 + last)
    assert seen == {True, False}  # killed before and behind the step that counts
    assert saving(source, target, 100).returncode == 0
    assert held(target) == 100
    assert sorted(p.name for p in target.parent.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_of_two_runs_into_one_output_one_is_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "source.onnx", tmp_path / "m.onnx"
    two_weights(source)
    code = SAVE.replace("save(model", "for _ in range(20):\n    save(model")
    arguments = [[str(source), str(target), str(value), str(10**6)] for value in (1, 2, 3)]
    running = [subprocess.Popen([sys.executable, "-c", code, *given], stdout=subprocess.PIPE) for given in arguments]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert held(target) in (1, 2, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data", "source.onnx"]


# -- the command -----------------------------------------------------------------------------------------------------


class Place:
    """A folder with a model, data, an older output, and a place of its own for temporary files."""

    def __init__(self, root: Path) -> None:
        self.model, self.data, self.out = root / "m.onnx", root / "d.npz", root / "out" / "q.onnx"
        self.temporary = root / "tmp"
        for folder in (self.out.parent, self.temporary):
            folder.mkdir()
        self.model.write_bytes(toys.classifier().SerializeToString())
        np.savez(self.data, image=toys.images(16))
        self.digest = hashlib.sha256(self.model.read_bytes()).hexdigest()

    def start(self, *more: str, limit: str = "", **environment: str) -> subprocess.Popen[str]:
        code = f"import sys\n{limit}\nfrom onnxq.cli.app import main\nsys.exit(main())"
        command = [sys.executable, "-c", code, "quantize", str(self.model), "-c", str(self.data), "-o", str(self.out)]
        env = {**os.environ, "TMPDIR": str(self.temporary), **environment}
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, "--latency", "0", *more], stdout=pipe, stderr=pipe, text=True, env=env)

    def left(self) -> list[str]:
        """What of onnxq lies among the temporary files (onnxruntime may keep a file of its own there)."""
        return [path.name for path in self.temporary.iterdir() if "onnxq" in path.name]

    def check(self) -> None:
        assert hashlib.sha256(self.model.read_bytes()).hexdigest() == self.digest
        assert self.left() == []
        assert [path.name for path in self.out.parent.iterdir()] in ([], ["q.onnx"])
        if self.out.exists():
            onnx.checker.check_model(onnx.load(self.out))


def test_sigterm_cleans_up(tmp_path: Path) -> None:
    place = Place(tmp_path)
    process = place.start("--adapt", "fast")
    while not place.left():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "error: interrupted"
    place.check()


@pytest.mark.parametrize("limit", [0, 1, 100, 4096, 40_000])
def test_a_full_disk_is_one_line_and_nothing_half_written(limit: int, tmp_path: Path) -> None:
    """Files may not grow beyond ``limit`` bytes: wherever that happens, it is told alike."""
    place = Place(tmp_path)
    place.out.write_bytes(b"older")
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    process = place.start(limit=code)
    _, said = process.communicate(timeout=120)
    if process.returncode == 0:
        assert place.out.stat().st_size <= limit  # it all went in
        place.check()
        return
    assert process.returncode == 2, said
    lines = [line for line in said.splitlines() if line.startswith(("error:", "hint:"))]
    assert lines[0].startswith("error: ")
    assert "bug" not in said
    assert place.out.read_bytes() == b"older"
    assert place.left() == []
    assert [path.name for path in place.out.parent.iterdir()] == ["q.onnx"]


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    found = []
    place = Place(tmp_path)
    for seed in ("1", "2"):
        process = place.start(PYTHONHASHSEED=seed)
        process.communicate(timeout=120)
        assert process.returncode == 0
        found.append(place.out.read_bytes())
        place.out.unlink()
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("adapt", ["none", "fast"])
def test_killed_at_any_moment(adapt: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    start = time.monotonic()
    process = place.start("--adapt", adapt)
    process.communicate(timeout=300)
    assert process.returncode == 0
    whole = time.monotonic() - start
    rng = np.random.default_rng(0)
    for _ in range(15):
        process = place.start("--adapt", adapt)
        time.sleep(float(rng.uniform(0.3, 1.0)) * whole)
        process.kill()
        process.communicate()
        onnx.checker.check_model(onnx.load(place.out))
        assert hashlib.sha256(place.model.read_bytes()).hexdigest() == place.digest
    process = place.start("--adapt", adapt)
    process.communicate(timeout=300)
    assert process.returncode == 0
    place.check()
