"""Nothing is executed but what the user said is code: not what lies in the current or a calibration folder or a cache.

Each test leaves modules about that would write a file when they are run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toys

from onnxq.adapt import runtime as home
from onnxq.errors import RuntimeFailure
from onnxq.runtime.child import run_child
from onnxq.runtime.search_path import without_current

PACKAGES = (
    *("PIL", "archspec", "click", "google", "ml_dtypes", "networkx", "numpy", "onnx", "onnx_ir", "onnxruntime"),
    *("packaging", "pip", "platformdirs", "rich", "threadpoolctl", "tokenizers", "tomli", "typer"),
)
NAMES = {*sys.stdlib_module_names, *PACKAGES}


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """The file that a module writes to when it runs."""
    return tmp_path / "was run"


@pytest.fixture
def hostile(tmp_path: Path, marked: Path) -> Path:
    """A folder with a model, data, and modules named as all that onnxq or Python imports."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in NAMES:
        spoil(folder / f"{name}.py", marked)
    toys.write(toys.classifier(), folder / "net.onnx")
    np.savez(folder / "data.npz", image=toys.images(16))
    return folder


def spoil(path: Path, marked: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"open({str(marked)!r}, 'a').write(__file__ + chr(10))\nraise ImportError(__file__)\n")


def onnxq(
    folder: Path, *arguments: object, module: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command, in ``folder``; ``module``: as ``python -m onnxq``, which puts that folder on the path."""
    script = "import sys; sys.path.pop(0); from onnxq.__main__ import main; sys.exit(main())"
    start = ["-m", "onnxq"] if module else ["-c", script]
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "net.onnx", "-c", "data.npz", "--latency", 0),
        ("benchmark", "net.onnx", "--seconds", 0.1, "--dim", "batch=1"),  # memory is measured by a child
        ("inspect", "net.onnx"),
    ],
)
def test_modules_in_the_current_folder_are_not_run(hostile: Path, marked: Path, arguments: tuple[object, ...]) -> None:
    module = sys.version_info >= (3, 11)  # before, Python itself looks for runpy in the current folder
    done = onnxq(hostile, *arguments, module=module)
    assert done.returncode in (0, 3), done.stderr
    assert not marked.exists(), marked.read_text()


def test_a_current_folder_on_the_path_is_not_searched(hostile: Path, marked: Path) -> None:
    """An empty entry of PYTHONPATH is the current folder, and seldom meant. Python searches it for its own modules."""
    for name in NAMES - set(PACKAGES):
        (hostile / f"{name}.py").unlink()
    path = os.pathsep.join(["", str(Path(home.__file__).parents[2])])
    done = onnxq(hostile, "inspect", "net.onnx", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert not marked.exists(), marked.read_text()


def test_a_child_finds_what_its_parent_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that the user put on the path, onnxq itself; neither the current folder nor a relative one."""
    (tmp_path / "added").mkdir()
    (tmp_path / "added" / "mine.py").write_text("found = 'mine'\n")
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / "json.py").write_text("raise SystemExit('the wrong json')\n")
    script = tmp_path / "script.py"
    script.write_text("import json, sys, mine, onnxq\nprint(json.dumps([mine.found, sys.argv[1:], onnxq.__file__]))\n")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "current"), "added", str(tmp_path / "added"), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "current"))
    done = run_child(script, ["a", "b"], timeout_s=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f'["mine", ["a", "b"], "{Path(home.__file__).parents[1] / "__init__.py"}"]'


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """However that ends: the child writes its number, and is gone soon after its parent was killed."""
    script = tmp_path / "script.py"
    script.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    parent = tmp_path / "parent.py"
    parent.write_text(
        "from pathlib import Path\nfrom onnxq.runtime.child import child\n"
        f"with child(Path({str(script)!r})) as one:\n    print(one.stdout.readline(), flush=True)\n    one.wait()\n"
    )
    with subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        os.kill(number, 0)
        process.kill()
    assert gone(number)


def gone(number: int) -> bool:
    """Whether the process ``number`` ends within a minute; a zombie that nobody waited for has ended."""
    for _ in range(600):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{number}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run_child(script, timeout_s=0.5)


def test_relative_folders_and_the_current_one_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    given = ["", ".", "lib", str(tmp_path), str(tmp_path / "link"), str(tmp_path / "lib"), str(tmp_path / "lib")]
    assert without_current(given) == [str(tmp_path / "lib")]
    packages = str(Path(np.__file__).parents[1])
    monkeypatch.chdir(packages)
    assert without_current([packages]) == [packages]  # where this Python keeps its own


def test_pip_is_that_of_this_python(hostile: Path, marked: Path, tmp_path: Path) -> None:
    """The command fails, as pip is given no place to look for packages; with a pip of its own it would not."""
    cache = {"ONNXQ_CACHE": str(tmp_path / "other cache"), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = onnxq(hostile, "setup", **cache)
    assert done.returncode == 2, done.stderr
    assert "cannot install" in done.stderr or "exists for Python" in done.stderr
    assert not marked.exists(), marked.read_text()


def test_a_runtime_that_somebody_left_in_the_cache_is_not_run(
    hostile: Path, marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = home.default_folder()
    spoil(left / "onnxruntime" / "__init__.py", marked)
    spoil(left / "onnxruntime" / "training" / "api" / "__init__.py", marked)
    cache = {"ONNXQ_CACHE": str(left.parent), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = onnxq(hostile, "quantize", "net.onnx", "-c", "data.npz", "--adapt", "full", "--latency", 0, **cache)
    assert done.returncode == 2, done.stderr
    assert not marked.exists(), marked.read_text()
    for name, value in cache.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeFailure):
        home.training_runtime()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that passes for what the wheel holds."""
    folder = tmp_path / "cache" / "made"
    (folder / "onnxruntime" / "training" / "api").mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").write_text("")
    (folder / "onnxruntime_training_cpu-1.19.2.dist-info").mkdir()
    monkeypatch.setattr(home, "CONTENTS", {home._interpreter(): home.contents(folder)})
    assert home.is_genuine(folder)
    return folder


@pytest.mark.parametrize("what", ["changed", "more", "beside", "missing", "linked", "open to all", "a folder"])
def test_a_runtime_with_anything_else_in_it_is_not_genuine(wheel: Path, what: str) -> None:
    first = wheel / "onnxruntime" / "__init__.py"
    if what == "changed":
        first.write_text("import os\n")
    elif what == "more":
        (wheel / "onnxruntime" / "more.py").write_text("")
    elif what == "beside":
        (wheel / "json.py").write_text("")
    elif what == "missing":
        first.unlink()
    elif what == "linked":
        (wheel / "onnxruntime" / "link").symlink_to(wheel)
    elif what == "open to all":
        first.chmod(0o666)
    else:
        (wheel / "numpy").mkdir()
    assert not home.is_genuine(wheel)


def test_what_pip_compiled_does_not_count(wheel: Path) -> None:
    (wheel / "onnxruntime" / "__pycache__").mkdir()
    (wheel / "onnxruntime" / "__pycache__" / "x.pyc").write_text("")
    assert home.is_genuine(wheel)
    assert not home.is_genuine(wheel.with_name("nothing"))
