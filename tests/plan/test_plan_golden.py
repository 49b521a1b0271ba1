"""The plan of every network of the zoo, as text: where QDQ goes is decided by tables, and this is what they decide.

Each golden file was read line by line before it was committed; a change to one is a change of behaviour.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo import ZOO, prepared

from onnxq.config import Config
from onnxq.kernels.targets import TARGETS
from onnxq.plan import make_plan

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ZOO)
def test_plan(name: str) -> None:
    plan = make_plan(prepared(ZOO[name]()), Config(), TARGETS["x86-vnni"])
    assert str(plan).splitlines() == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def test_every_golden_file_belongs_to_a_network() -> None:
    assert {p.stem for p in GOLDEN.iterdir()} == set(ZOO)
