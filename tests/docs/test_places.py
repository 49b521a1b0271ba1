"""The pages name files and rooms that are there, and rooms in the order that the imports keep to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`([\w/.-]*\w\.py)`")
FOLDER = re.compile(r"`((?:onnxq|tests|benchmarks|models)/[\w/-]+)`")


def prose(page: str) -> str:
    return CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def is_there(name: str) -> bool:
    """Whether ``name`` is a path from the root or from ``onnxq``, or if it has no folder a file of any room."""
    if "/" in name:
        return (ROOT / name).exists() or (ROOT / "onnxq" / name).exists()
    return any(True for room in ("onnxq", "benchmarks", "tests") for _ in (ROOT / room).rglob(name))


def missing(text: str) -> set[str]:
    return {name for name in (*FILE.findall(text), *FOLDER.findall(text)) if not is_there(name)}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    assert missing(prose(page)) == set()


def test_a_file_that_is_not_there_is_seen() -> None:
    found = missing("in `joining.py`, `emit/held.py`, `emit/pinned.py`, `onnxq/search`, `onnxq/tuning`, `optimum.py`")
    assert found == {"joining.py", "emit/held.py", "onnxq/tuning"}


def order() -> list[str]:
    """``ORDER`` of the test of the imports."""
    for node in ast.parse((ROOT / "tests/test_public.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            return list(ast.literal_eval(node.value))
    raise AssertionError("tests/test_public.py has no ORDER")


def test_the_rooms_are_those_of_the_tree_in_the_order_of_their_imports() -> None:
    rooms = re.findall(
        r"^\| `(\w+)(?:/|\.py)` \|", prose("docs/how-it-works.md").partition("## Rooms")[2], re.MULTILINE
    )
    assert rooms == [room for room in order() if not room.startswith("_")]
