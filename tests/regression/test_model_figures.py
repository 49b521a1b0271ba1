"""The networks of ``models/`` through the command line, cost tables and all, against the committed figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import model_figures
import pytest
import renew
from model_figures import (
    CASES,
    COMMITTED,
    DATA,
    MODELS,
    Figures,
    can_compute,
    committed,
    integer_share,
    measure,
    no_stopwatch,
)

FAST = CASES[0]


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    ("target", "preset"),
    [pytest.param(*case, id="-".join(case), marks=() if case == FAST else pytest.mark.slow) for case in CASES],
)
def test_networks_come_out_as_committed(name: str, target: str, preset: str, tmp_path: Path) -> None:
    if not can_compute(target):
        pytest.skip(f"8-bit products of {target} saturate on this CPU; the figures of x86-avx2 are asked for instead")
    moved = measure(name, target, preset, tmp_path).moved(committed()[f"{target} {preset}"][name])
    runtime = json.loads(COMMITTED.read_text(encoding="utf-8"))["onnxruntime"]
    assert not moved, f"as of onnxruntime {runtime}; if it is meant: python -m tests.regression.renew {name}"


def test_every_network_has_figures() -> None:
    assert {p.stem for p in MODELS.glob("*.onnx")} == set(DATA)
    assert {case: set(rows) for case, rows in committed().items()} == {" ".join(case): set(DATA) for case in CASES}


@pytest.mark.parametrize(
    ("field", "within", "beyond"),
    [
        ("exit_code", 0, 3),
        ("bytes", 201_000, 201_001),
        ("integer_share", 0.899, 0.8989),
        ("sqnr_db", 35.5, 35.49),
        ("sqnr_db", 36.5, 36.51),
        ("agreement", 0.97, 0.9699),
    ],
)
def test_how_far_figures_may_move(field: str, within: float, beyond: float) -> None:
    figures = Figures(0, 200_000, 0.9, 36.0, 0.98)
    assert figures.moved(figures) == []
    assert replace(figures, **{field: within}).moved(figures) == []
    (text,) = replace(figures, **{field: beyond}).moved(figures)
    assert text == f"{field} {getattr(figures, field)} -> {beyond}"


def test_the_share_of_integers_is_by_work_not_by_nodes() -> None:
    assignments = [{"node": "large", "integer": True}, {"node": "small", "integer": False}]
    assert integer_share({"large": 300, "small": 100}, assignments) == 0.75
    renamed = [{"node": "found at run time", "integer": True}, assignments[1]]
    assert integer_share({"large": 300, "small": 100}, renamed) == 0.75
    with pytest.raises(AssertionError):
        integer_share({"large": 300, "small": 100}, [{"node": "lost", "integer": False}, assignments[1]])


def test_a_timed_decision_is_refused() -> None:
    import numpy as np
    from zoo import feeds, gemm

    from onnxq.measure.latency import benchmark

    model = gemm().SerializeToString()
    with no_stopwatch(), pytest.raises(AssertionError, match="timed"):
        benchmark([model, model], feeds(gemm(), 1), seconds=0.01, memory=False)
    assert np.isfinite(benchmark([model], feeds(gemm(), 1), seconds=0.01, memory=False).rows[0].median_ms)


def test_renewing_prints_what_changed_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, file = committed(), tmp_path / "models.json"
    file.write_bytes(COMMITTED.read_bytes())
    for module in (model_figures, renew):
        monkeypatch.setattr(module, "COMMITTED", file)
    monkeypatch.setattr(renew, "can_compute", lambda target: True)
    cases = [" ".join(case) for case in CASES]
    found = {case: before[case]["vit"] for case in cases}
    found[cases[0]] = replace(found[cases[0]], sqnr_db=20.0, exit_code=3)
    found[cases[1]] = replace(found[cases[1]], bytes=found[cases[1]].bytes + 1)
    monkeypatch.setattr(renew, "measure", lambda name, target, preset, folder: found[f"{target} {preset}"])
    assert renew.main(["vit"]) == 0
    assert committed() == {case: {**before[case], "vit": found[case]} for case in cases}
    first, second, last = capsys.readouterr().out.splitlines()
    old = before[cases[0]]["vit"]
    moved = f"exit_code 0 -> 3; sqnr_db {old.sqnr_db} -> 20.0 (beyond the tolerance)"
    assert first == f"{cases[0]} vit: {moved}"
    size = found[cases[1]].bytes
    assert second == f"{cases[1]} vit: bytes {size - 1} -> {size}"
    assert last == "2 of 4 changed"
    assert renew.main(["nosuch"]) == 2
    monkeypatch.setattr(renew, "can_compute", lambda target: target == "x86-avx2")
    assert renew.main([]) == 2
    assert committed()[cases[0]]["vit"] == found[cases[0]]
