"""The pages: no dead link, no figure that is not its JSON's, no command, key or version that is not there."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.version import Version

import onnxq
from onnxq.cli import app
from onnxq.config import PRESETS, Config, choice_table, config_from

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("benchmarks/*.md"),
        ROOT / "models/README.md",
    )
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


def from_folder(folder: str, name: str) -> ModuleType:
    """The module `name` that lies in `folder` of the repository, outside of any package."""
    sys.path.insert(0, str(ROOT / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / folder))


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, kind: str) -> Iterator[str]:
    """The code blocks of a page whose language is `kind`."""
    for block in BLOCK.finditer(text_of(page)):
        if block["kind"].split()[:1] == [kind]:
            yield block["text"]


def anchors(page: Path) -> set[str]:
    """The anchors of a page: its headings as a repository's host and the site spell them."""
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    dead = []
    for target in LINK.findall(BLOCK.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        meant = (ROOT / page).parent / name if name else ROOT / page
        if not meant.exists() or (anchor and anchor not in anchors(meant)):
            dead.append(target)
    assert dead == []


def test_dead_links_are_seen() -> None:
    assert "the-methods-compared" in anchors(ROOT / "docs/ranges.md")
    assert "the-method-compared" not in anchors(ROOT / "docs/ranges.md")
    assert LINK.findall("see [this](docs/x.md#y) and ![that](images/z.png)") == ["docs/x.md#y", "images/z.png"]


def test_the_readme_is_short() -> None:
    lines = text_of("README.md").splitlines()
    assert len(lines) < 200
    assert next(i for i, line in enumerate(lines) if "onnxq quantize" in line) < 10


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_code_is_one_on_the_site_too(page: str) -> None:
    """The site takes one word after the fence, and closes what it opened."""
    fences = re.findall(r"^ *```(.*)$", text_of(page), re.MULTILINE)
    assert all(re.fullmatch(r"\w+|", opening) for opening in fences[::2])
    assert len(fences) % 2 == 0
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("page", sorted(from_folder("benchmarks", "readme").PAGES))
def test_every_figure_is_what_its_json_says(page: str) -> None:
    assert from_folder("benchmarks", "readme").filled(page) == text_of(page)


def command_lines() -> Iterator[tuple[str, str]]:
    """(page, command line) of every call of onnxq in the shell blocks of all pages."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                for part in line.split("&&"):
                    if part.strip().startswith("onnxq "):
                        yield page, part.strip()


@pytest.mark.parametrize(("page", "line"), list(command_lines()))
def test_every_command_in_the_docs_can_be_typed(page: str, line: str) -> None:
    _, name, *arguments = shlex.split(line.partition(" > ")[0], comments=True)
    group: Any = typer.main.get_command(app)
    command = group.commands[name]
    with command.make_context(name, arguments):  # parses, and raises what a user would see; runs nothing
        pass


@pytest.mark.parametrize("page", PAGES)
def test_every_configuration_in_the_docs_is_one(page: str) -> None:
    for block in blocks(page, "toml"):
        config_from(tomllib.loads(block), where=page)


def test_the_configuration_reference_has_every_key() -> None:
    hooks = from_folder("docs", "site_hooks")
    names = {field.name for field in dataclasses.fields(Config)}
    rows = [row.split("|")[1].strip(" `") for row in choice_table().splitlines() if row.startswith("| `")]
    assert len(rows) == len(names)
    assert set(rows) == names
    assert [row.split("|")[1].strip(" `") for row in hooks.presets().splitlines()[2:]] == list(PRESETS)


def test_the_python_reference_has_every_name() -> None:
    hooks = from_folder("docs", "site_hooks")
    shown = re.findall(
        r"::: onnxq\.(\w+)", "".join(hooks.GENERATED[part]() for part in ("functions", "classes", "errors"))
    )
    assert sorted(shown) == sorted(set(onnxq.__all__) - {"__version__"})


def test_the_command_line_reference_has_every_option() -> None:
    page = from_folder("docs", "site_hooks").command_line()
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        section = page.partition(f"## onnxq {name}\n")[2].partition("\n## ")[0]
        options = {option for p in command.params for option in (*p.opts, *p.secondary_opts) if option.startswith("-")}
        assert {option for option in options if f"`{option}" not in section} == set(), name


def test_every_part_that_is_generated_has_its_place() -> None:
    marks = {mark for page in PAGES for mark in re.findall(r"<!-- generated: ([a-z-]+) -->", text_of(page))}
    assert marks == set(from_folder("docs", "site_hooks").GENERATED)


def test_links_are_led_to_where_pages_stand_on_the_site() -> None:
    hooks = from_folder("docs", "site_hooks")

    def led(link: str, source: str, place: str) -> str:
        match = hooks._LINK.fullmatch(link)
        return hooks.relinked(match, hooks.PurePosixPath(source), hooks.PurePosixPath(place))

    assert led("[a](../models/README.md)", "docs/ranges.md", "ranges.md") == "[a](project/models.md)"
    assert led("[a](docs/glossary.md)", "CONTRIBUTING.md", "project/contributing.md") == "[a](../glossary.md)"
    assert led("[a](bits.md#files)", "docs/ranges.md", "ranges.md") == "[a](bits.md#files)"
    assert led("[a](../results.md)", "docs/how-to/size.md", "how-to/size.md") == "[a](../results.md)"
    assert led("[JSON](../benchmarks/results/cost.json)", "docs/results.md", "results.md") == "JSON"
    assert led("[a](../no/such.md)", "docs/results.md", "results.md") == "[a](../no/such.md)"


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    wanted = [Requirement(text) for text in project["dependencies"]]
    for extra in ("images", "text", "test"):
        wanted += [Requirement(text) for text in project["optional-dependencies"][extra]]
    lowest = {
        r.name.lower(): next(s.version for s in r.specifier if s.operator == ">=")
        for r in wanted
        if r.name not in ("onnxq", "mypy", "ruff")  # a linter's version decides nothing about the package
    }
    pins = [Requirement(line) for line in text_of(".ci/lowest.txt").splitlines() if line and not line.startswith("#")]
    tested = {r.name.lower(): next(iter(r.specifier)).version for r in pins}
    assert {name: Version(version) for name, version in tested.items()} == {
        name: Version(version) for name, version in lowest.items()
    }


@pytest.mark.slow
def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    """Every step of it, in a folder that has the repository's models, with the Python that runs the tests."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "ONNXQ_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    onnxq_here = f'onnxq() {{ "{sys.executable}" -m onnxq "$@"; }}\n'
    for block in BLOCK.finditer(text_of("docs/tutorial.md")):
        if block["text"].startswith("pip "):
            continue  # what the tests run in is installed already
        run = {"sh": ["bash", "-euc", onnxq_here + block["text"]], "python": [sys.executable, "-c", block["text"]]}
        done = subprocess.run(run[block["kind"]], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block['text']}\n{done.stdout}\n{done.stderr}"
    assert {p.name for p in (tmp_path / "work").glob("model.*")} == {
        "model.onnx",
        "model.int8.onnx",
        "model.q.onnx",
        "model.w4a8.onnx",
    }
