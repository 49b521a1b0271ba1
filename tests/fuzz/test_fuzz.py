"""A short run of the fuzzer, and what longer ones have found: no traceback, no dead process, no hang.

The cases of a kind are counted through, so a run is the same one everywhere; ``fuzz.py`` makes longer ones, every week
in a workflow of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("resource", reason="limits of processes are those of Unix")
pytest.importorskip("PIL")
pytest.importorskip("tokenizers")

from fuzz import one
from fuzz_cases import CASES
from fuzz_harness import SECONDS, Outcome, load_all, run
from fuzz_valid import outputs, sqnr, valid

from onnxq import OnnxqError, quantize

# By kind, so many that all together take less than a minute.
SHORT = {"structure": 60, "model_bytes": 25, "arrays": 15, "config": 10, "preprocessor": 10, "texts": 5, "options": 10}
CORPUS = sorted(p for p in (Path(__file__).parent / "corpus").iterdir() if p.is_dir())


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    load_all()


def check(kind: str, numbers: range) -> None:
    found = {number: one(kind, number) for number in numbers}
    assert not {n: (o.kind, o.where, o.text[-2000:]) for n, o in found.items() if not o.right}


def test_every_kind_is_run() -> None:
    assert SHORT.keys() == CASES.keys()


@pytest.mark.parametrize("kind", SHORT)
def test_what_is_spoiled_is_refused_or_done(kind: str) -> None:
    check(kind, range(SHORT[kind]))


@pytest.mark.parametrize("folder", CORPUS, ids=lambda p: p.name)
def test_what_was_found_stays_found(folder: Path, tmp_path: Path) -> None:
    """Each folder holds files and the command that once ended in a traceback or worse."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    outcome = run((tmp_path / "command.txt").read_text().split(), tmp_path)
    assert outcome.right, (outcome.kind, outcome.where, outcome.text[-2000:])


def test_the_harness_tells_a_fault_from_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxq.cli

    def ends(main: object) -> Outcome:
        monkeypatch.setattr(onnxq.cli, "main", main)
        return run([], tmp_path)

    def printing(text: str, code: int) -> object:
        def main() -> int:
            import sys

            print(text, file=sys.stderr)
            return code

        return main

    def dying() -> int:
        import os

        os.abort()

    assert ends(printing("error: no such file", 2)).kind == "refused"
    assert ends(printing("", 0)).kind == "ok"
    assert ends(printing("error: this is a bug in onnxq: x", 1)).kind == "bug"
    assert ends(printing("Traceback (most recent call last):", 0)).kind == "unclean"
    assert ends(printing("error: a\nerror: b", 2)).kind == "bug"
    assert ends(lambda: 1 / 0).kind == "bug"
    assert ends(dying).kind == "killed"
    monkeypatch.setattr("fuzz_harness.SECONDS", 0.2)
    assert SECONDS > 0.2
    assert ends(lambda: __import__("time").sleep(60)).kind == "hang"
    monkeypatch.undo()
    monkeypatch.setattr("fuzz_harness.GROWTH", 2**27)
    assert ends(lambda: len(b"x" * 2**29) and 0).kind == "memory"


def check_reports(numbers: range) -> None:
    """Of models that are reported as good, the SQNR is that of the calibration data too, to 6 dB, at every output."""
    far, judged = {}, 0
    for number in numbers:
        case = valid(number)
        try:
            result = quantize(case.proto, dict(case.data), config=case.config)
        except OnnxqError:
            continue
        if not result.good or result.report.sqnr_db is None:
            continue
        plain, quantized = (outputs(p.SerializeToString(), case.data) for p in (case.proto, result.proto()))
        worst = min(sqnr(plain[name], quantized[name]) for name in plain)
        judged += 1
        if result.report.sqnr_db > worst + 6:
            far[number] = (result.report.sqnr_db, worst)
    assert judged > len(numbers) / 2
    assert not far


def test_the_report_does_not_flatter() -> None:
    check_reports(range(8))


@pytest.mark.slow
def test_no_report_flatters() -> None:
    check_reports(range(8, 60))
