"""What `mkdocs build` does beyond copying pages: reference pages from the code, and links that leave `docs/`.

A page shows `<!-- generated: NAME -->` where the text of `GENERATED[NAME]` goes. Files of the repository that are read
in two places (CONTRIBUTING, the READMEs of folders) are pages of the site too; a link to any other file becomes plain
text, since the site has no repository beside it. All of it works without a network.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import onnxq
from onnxq import config, errors
from onnxq.measure.kinds.kind import kind_table

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = PurePosixPath("docs")

# Files outside of docs/ that are pages of the site, and where they stand there.
ADOPTED = {
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "benchmarks/README.md": "project/benchmarks.md",
    "models/README.md": "project/models.md",
}
_HOME = {**{new: old for old, new in ADOPTED.items()}}

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_MARK = re.compile(r"<!-- generated: ([a-z-]+) -->")


def public(kind: str) -> Iterator[str]:
    """Names of `onnxq.__all__` that are a `function`, a `class` or an `error`, in alphabetic order."""
    for name in sorted(onnxq.__all__, key=str.lower):
        value = getattr(onnxq, name)
        if inspect.isclass(value):
            found = "error" if issubclass(value, Exception) else "class"
        else:
            found = "function" if callable(value) else "value"
        if found == kind:
            yield name


def directives(*kinds: str) -> str:
    """A mkdocstrings directive for each public name of `kinds`."""
    return "\n\n".join(f"::: onnxq.{name}" for kind in kinds for name in public(kind))


def error_tree() -> str:
    """The exception tree, as `onnxq.errors` draws it."""
    _, _, drawing = (errors.__doc__ or "").partition("::\n")
    return f"```text\n{inspect.cleandoc(drawing)}\n```"


def command_line() -> str:
    """A section for each command: usage, arguments and options by panel, examples."""
    import typer

    from onnxq.cli import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
        panels.setdefault(panel, []).append(parameter)
    parts = [f"## onnxq {name}", inspect.cleandoc(command.help or "")]
    for panel, parameters in panels.items():
        rows = [
            f"| {_spelled(p)} | {_cell(p.help or '')}{' **Required.**' if p.required else ''} |" for p in parameters
        ]
        head = "argument" if panel == "Arguments" else "option"
        parts.append("\n".join([f"**{panel}**", "", f"| {head} | meaning |", "|---|---|", *rows]))
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.strip().startswith("onnxq ")]
    if examples:
        parts.append("\n".join(["**Examples**", "", "```sh", *examples, "```"]))
    return "\n\n".join(parts)


def _spelled(parameter: Any) -> str:
    """An option as one types it: `--labels KEY`, `-o`, `--layers / --no-layers`."""
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name).upper()}`"
    value = "" if getattr(parameter, "is_flag", False) else f" {parameter.metavar or parameter.name.upper()}"
    return ", ".join(f"`{option}{value}`" for option in (*parameter.opts, *parameter.secondary_opts))


def presets() -> str:
    """A row for each preset: the keys that it sets."""
    rows = [
        f"| `{name}` | {', '.join(f'`{key} = {_toml(value)}`' for key, value in changed.items()) or 'the defaults'} |"
        for name, changed in config.PRESETS.items()
    ]
    return "\n".join(["| preset | sets |", "|---|---|", *rows])


def exit_codes() -> str:
    """The table of exit codes, as `onnxq.cli.commands` has it."""
    from onnxq.cli import commands

    lines = (commands.__doc__ or "").splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


GENERATED: dict[str, Callable[[], str]] = {
    "functions": lambda: directives("function"),
    "classes": lambda: directives("class"),
    "errors": lambda: directives("error"),
    "error-tree": error_tree,
    "command-line": command_line,
    "config": config.choice_table,
    "kinds": kind_table,
    "presets": presets,
    "exit-codes": exit_codes,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site, with those that it adopts."""
    from mkdocs.structure.files import File

    for old, new in ADOPTED.items():
        files.append(File.generated(config, new, content=(ROOT / old).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page with what is generated in its place, and links that leave `docs/` led home."""
    text = _MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)
    place = PurePosixPath(page.file.src_uri)
    source = PurePosixPath(_HOME.get(page.file.src_uri, str(DOCS / place)))
    return _LINK.sub(lambda link: relinked(link, source, place), text)


def relinked(link: re.Match[str], source: PurePosixPath, place: PurePosixPath) -> str:
    """A link of the repository's file `source`, which is the page `place` of the site, as it must be there.

    What does not exist stays as it is, so that the strict build fails over it.
    """
    target, hash_, anchor = link["target"].partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return link[0]
    meant = os.path.normpath(source.parent / target)
    if meant.startswith(f"{DOCS}/"):
        there = meant.removeprefix(f"{DOCS}/")
    elif meant in ADOPTED:
        there = ADOPTED[meant]
    elif meant == "README.md":
        there = "index.md"
    else:
        return link["text"] if (ROOT / meant).exists() and not link["image"] else link[0]
    return f"{link['image']}[{link['text']}]({os.path.relpath(there, place.parent)}{hash_}{anchor})"
