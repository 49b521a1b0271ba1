"""What a command says of its stages where nobody sees a bar: lines that end up in a log."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import toys
from rich.console import Console
from typer.testing import CliRunner

from onnxq.cli.app import app
from onnxq.cli.progress import StageLines, progress_bar


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_for_each_stage_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = StageLines(clock)
    lines.tell("prepare", 0, None)
    clock.now += 1.25
    lines.tell("observe", 0, 8)
    assert capsys.readouterr().err == "Preparing the graph: 1.2 s\n"  # at once, not when all is over
    clock.now += 0.5
    lines.tell("observe", 8, 8)
    assert capsys.readouterr().err == ""
    lines.end()
    assert capsys.readouterr().err == "Observing ranges: 0.5 s\n"


def test_a_long_stage_shows_that_it_is_alive(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = StageLines(clock)
    lines.tell("observe", 0, 96)
    for done in range(1, 8):
        clock.now += 10.0
        lines.tell("observe", done, 96)
    assert capsys.readouterr().err == "Observing ranges: 3 of 96 after 30 s\nObserving ranges: 6 of 96 after 60 s\n"
    lines.tell("repair", 0, None)
    clock.now += 30.0
    lines.tell("repair", 0, None)
    assert capsys.readouterr().err == "Observing ranges: 70.0 s\nFinding noisy layers: going on, 30 s\n"


def test_a_stage_that_comes_again_is_mentioned_if_it_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = StageLines(clock)
    for took in (2.0, 0.5, 1.0):
        lines.tell("observe", 0, 1)
        clock.now += took
        lines.tell("repair", 0, 1)
    lines.end()
    said = capsys.readouterr().err.splitlines()
    assert said == ["Observing ranges: 2.0 s", "Finding noisy layers: 0.0 s", "Observing ranges: 1.0 s"]


def test_what_fails_at_once_shows_its_error_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)

    def fail() -> None:
        with progress_bar(console, quiet=False) as progress:
            progress("prepare", 0, None)
            progress("observe", 0, None)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", [[], ["--json"], ["--quiet"]])
def test_stages_go_to_stderr_and_nowhere_with_quiet(how: list[str], tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    model.write_bytes(toys.classifier().SerializeToString())
    np.savez(data, image=toys.images(16))
    done = CliRunner().invoke(app, ["quantize", str(model), "-c", str(data), "--latency", "0", *how])
    assert done.exit_code == 0, done.output
    stages = re.findall(r"^[A-Z][a-z ]+: \d+\.\d s$", done.stderr, re.MULTILINE)
    assert ("Preparing the graph" in done.stderr, len(stages) >= 3) == (
        (False, False) if how == ["--quiet"] else (True, True)
    )
    assert "Preparing the graph" not in done.stdout
    assert done.stdout.startswith("{") == (how == ["--json"])
