"""The page on extending: what it says to write is enough, tried section by section on copies of the tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo import Net, feeds

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
NEW_FILE = re.compile(r"# (?P<path>\S+\.py)\n")

# What holds for every module, whoever adds it: order of rooms, one place that rounds, no names of operators.
RULES = ("tests/test_public.py", "-k", "room or rounds or ends or floors")
NAMES = ("tests/kernels/test_no_names.py", "-k", "decides")


@dataclass(frozen=True)
class Section:
    """A section of the page: new files by path, ``(path, text of a diff)``, and scripts."""

    files: dict[str, str]
    diffs: list[tuple[str, str]]
    scripts: list[str]


def section(title: str) -> Section:
    text = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert text, title
    found = Section({}, [], [])
    for block in BLOCK.finditer(text):
        path = NEW_FILE.match(block["text"])
        if block["kind"] == "diff":
            head, _, body = block["text"].partition("\n")
            found.diffs.append((head.removeprefix("--- "), body))
        elif block["kind"] == "python" and path:
            found.files[path["path"]] = block["text"].partition("\n")[2]
        elif block["kind"] == "python":
            found.scripts.append(block["text"])
    return found


def changed(text: str, diff: str) -> str:
    """``text`` as ``diff`` changes it: what each of its hunks takes stands there exactly once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        assert {line[0] for line in lines} <= set(" +-"), hunk
        old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        assert text.count(old) == 1, f"is not there once:\n{old}"
        text = text.replace(old, new)
    return text


def tree(folder: Path, found: Section) -> Path:
    """A copy of what the repository runs, changed as the section says; beside it what its scripts read."""
    ignored = shutil.ignore_patterns("__pycache__", "results", "apps")
    for name in ("onnxq", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for path, text in found.files.items():
        assert not (folder / path).exists(), f"the page says that {path} is new"
        (folder / path).write_text(text, encoding="utf-8")
    for path, diff in found.diffs:
        file = folder / path
        file.write_text(changed(file.read_text(encoding="utf-8"), diff), encoding="utf-8")
    beside(folder)
    return folder


def beside(folder: Path) -> None:
    """``model.onnx`` and ``inputs.npz``, ``audio.onnx`` and a folder of ``recordings``."""
    n = Net(0)
    x = n("Relu", n.conv("image", 16, 64, name="first"), name="r1")
    x = n("Relu", n.conv(x, 64, 64, name="second"), name="r2")
    x = n("Flatten", n("GlobalAveragePool", x, name="pool"), name="flat")
    n("Gemm", x, n.weight("w", 32, 64), n.vector("b", 32), name="last", transB=1, out="scores")
    model = n.model({"image": ["batch", 16, 16, 16]}, {"scores": ["batch", 32]})
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "inputs.npz", image=np.concatenate([f["image"] for f in feeds(model, 64)]))
    n = Net(1)
    n.linear(n("Relu", n.linear("audio", 64, 48, name="a"), name="r"), 48, 8, name="b", out="y")
    onnx.save(n.model({"audio": ["batch", 64]}, {"y": ["batch", 8]}), folder / "audio.onnx")
    (folder / "recordings").mkdir()
    sounds = (np.random.default_rng(0).standard_normal((24, 64)) * 3000).astype("<i2")
    for i, sound in enumerate(sounds):
        with wave.open(str(folder / "recordings" / f"{i:02}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(sound.tobytes())


def run(folder: Path, *arguments: str) -> str:
    """What Python prints in ``folder``, with the copy of onnxq that lies there."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(folder),
        "HOME": str(folder),
        "ONNXQ_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def command(folder: Path, line: str) -> str:
    """What a command of onnxq prints, run as the installed one is."""
    return run(folder, "-c", "import sys; from onnxq.cli import main; sys.exit(main())", *line.split()[1:])


def passes(folder: Path, *tests: str) -> None:
    out = run(folder, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", *tests)
    assert re.search(r"\d+ passed", out)


def checked(folder: Path, script: str, check: str) -> None:
    """Runs a script of the page, and then ``check``, which sees its names."""
    out = run(folder, "-c", f"{script}\nimport onnxq as onnxq_here\n{check}\nprint('checked', onnxq_here.__file__)")
    assert out.splitlines()[-1] == f"checked {folder / 'onnxq' / '__init__.py'}"


def test_an_operator(tmp_path: Path) -> None:
    found = section("An operator")
    folder = tree(tmp_path, found)
    passes(folder, *found.files)
    passes(folder, "tests/kernels/test_operators.py", "-k", "Tile")
    passes(folder, *RULES)
    passes(folder, *NAMES)
    (measuring,) = re.findall(r"^python (benchmarks/\S+ --only Tile)$", PAGE, re.MULTILINE)
    # In the shortest time there is: what it writes is looked at, not how long it took.
    run(folder, *measuring.split(), "--largest", "2000", "--runs", "1", "--repeats", "1")
    check = """
from onnxq.kernels.costs import cost_table
from onnxq.kernels.operators import find
from onnxq.kernels.targets import resolve_target
target = resolve_target("auto").name
assert {("Tile", "float"), ("Tile", "int8")} <= cost_table(target).grids.keys()
assert cost_table(target).knows(find("Tile", "").name)
"""
    checked(folder, "", check)


def test_without_its_record_the_operator_stays_float(tmp_path: Path) -> None:
    found = section("An operator")
    folder = tree(tmp_path, Section(found.files, [], []))
    with pytest.raises(AssertionError, match="1 failed"):
        passes(folder, *found.files)


def test_a_range_method(tmp_path: Path) -> None:
    found = section("A range method")
    folder = tree(tmp_path, found)
    own = next(path for path in found.files if path.startswith("tests/"))
    every = [f"tests/ranges/test_ranges_{what}.py" for what in ("choose", "methods", "extrapolated")]
    passes(folder, own, *every, "-k", "rms or best")
    passes(folder, *RULES)
    (script,) = found.scripts
    checked(folder, script, 'assert result.config.weight_range == "rms" and result.report.sqnr_db > 20.0')


def test_a_weight_format(tmp_path: Path) -> None:
    found = section("A weight format")
    assert not found.diffs
    assert not found.files
    (script,) = found.scripts
    check = """
import onnx
from onnx import numpy_helper
assert {str(w.stored) for w in result.plan.weights} == {"pot4"}
assert result.report.sqnr_db > 10.0
tensors = [numpy_helper.to_array(t) for t in onnx.load("model.pot4a8.onnx").graph.initializer]
table = next(t for t in tensors if t.dtype == np.int8 and t.shape == (256, 2))
assert set(np.unique(table)) <= set(LEVELS)
"""
    checked(tree(tmp_path, found), script, check)


def test_a_target(tmp_path: Path) -> None:
    found = section("A target")
    folder = tree(tmp_path, found)
    passes(folder, "tests/kernels/test_targets.py", "tests/kernels/test_target_facts.py")
    (script,) = found.scripts
    check = """
assert onnxq.load_config("c.toml").target == "arm64-i8mm"
assert result.config.target == "arm64-i8mm" and len(result.plan.layers) == 3
"""
    (folder / "c.toml").write_text('target = "arm64-i8mm"\n')
    checked(folder, script, check)


def test_a_calibration_source(tmp_path: Path) -> None:
    found = section("A calibration source")
    folder = tree(tmp_path, found)
    passes(folder, *RULES)
    (script,) = found.scripts
    check = """
inside = onnxq.quantize("audio.onnx", "recordings")
assert inside.report.provenance["calibration"] == "recordings/, 24 recordings"
assert min(inside.report.sqnr_db, result.report.sqnr_db) > 20.0
from onnxq.graph.io import load
from onnxq.graph.signature import signature
read = onnxq.open_feed("recordings", signature(load("audio.onnx")).inputs)
for one, same in zip(read, Recordings("recordings"), strict=True):
    np.testing.assert_array_equal(one["audio"], same["audio"])
"""
    checked(folder, script, check)
    (line,) = re.findall(r"^(onnxq quantize audio.onnx .*)$", PAGE, re.MULTILINE)
    command(folder, f"{line} --latency 0")
    assert (folder / "audio.int8.onnx").exists()
    (folder / "recordings" / "00.wav").write_bytes(b"RIFF")
    with pytest.raises(AssertionError, match="cannot be read as a recording"):
        command(folder, f"{line} --latency 0")


def test_an_adaptation_level(tmp_path: Path) -> None:
    found = section("An adaptation level")
    folder = tree(tmp_path, found)
    (script,) = found.scripts
    check = """
adaptation = result.report.adaptation
assert adaptation.level == "last" and len(adaptation.steps) == 1
assert [layer.node for layer in adaptation.layers] in ([], ["last"])
assert len(adaptation.layers) == adaptation.steps[0].kept
"""
    checked(folder, script, check)
    command(folder, "onnxq quantize model.onnx --calib inputs.npz --weights int4 --adapt last --latency 0")
    with pytest.raises(AssertionError, match="adapt is one of none, last, fast"):
        command(folder, "onnxq quantize model.onnx --calib inputs.npz --adapt first")


def test_every_file_that_the_page_names_is_there() -> None:
    made = {path for title in re.findall(r"^## (.+)$", PAGE, re.MULTILINE) for path in section(title).files}
    named = set(re.findall(r"`([\w/-]+/[\w./-]*)`", BLOCK.sub("", PAGE)))
    assert len(named) > 20
    made |= {"onnxq/kernels/cost_tables/arm64-i8mm.json"}  # measured, not written
    assert {n for n in named - made if not ((ROOT / n).exists() or (ROOT / "onnxq" / n).exists())} == set()


def test_a_diff_that_does_not_fit_is_seen() -> None:
    assert changed("a\nb\nc\n", " a\n-b\n+d\n") == "a\nd\nc\n"
    assert changed("a\nb\nc\n", " a\n+x\n@@\n-c\n") == "a\nx\nb\n"
    with pytest.raises(AssertionError, match="is not there once"):
        changed("a\nb\na\n", "-a\n")
