"""Sizes that the package keeps to: a file fits in one sitting, a function on one page, a call in one look."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxq

PACKAGE = Path(onnxq.__file__).parent

MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 60
MOST_PARAMETERS = 7

# What is larger, with the reason why. A command's parameters are its options, so those of ``cli`` are not counted.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS: dict[str, str] = {
    "analysis/evaluation.py evaluate": "public: the keywords are those of the other public functions",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(package: Path) -> Iterator[tuple[str, str]]:
    """(path within ``package``, text) of every module."""
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")


def functions(package: Path) -> Iterator[tuple[str, Function]]:
    """("path name", syntax tree) of every function; of a method the name with that of its class."""
    for path, text in files(package):
        yield from ((f"{path} {name}", function) for name, function in _named(ast.parse(text), ()))


def _named(tree: ast.AST, outer: tuple[str, ...]) -> Iterator[tuple[str, Function]]:
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.ClassDef | Function)
        names = (*outer, node.name) if named else outer
        if isinstance(node, Function):
            yield ".".join(names), node
        yield from _named(node, names)


def lines(function: Function) -> int:
    """Lines from ``def`` to the end; decorators do not count."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> int:
    """How many parameters there are, ``*args`` and ``**kwargs`` included, but for ``self`` and ``cls``."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    bound = bool(positional) and positional[0].arg in ("self", "cls")
    return len(positional) - bound + len(given.kwonlyargs) + (given.vararg is not None) + (given.kwarg is not None)


def long_files(package: Path) -> set[str]:
    return {path for path, text in files(package) if len(text.splitlines()) > MOST_LINES}


def long_functions(package: Path) -> set[str]:
    return {name for name, function in functions(package) if lines(function) > MOST_LINES_OF_A_FUNCTION}


def many_parameters(package: Path) -> set[str]:
    return {
        name
        for name, function in functions(package)
        if not name.startswith("cli/") and parameters(function) > MOST_PARAMETERS
    }


# Equal, not only within: an exception that is needed no more has to go.
def test_files_fit_in_one_sitting() -> None:
    assert long_files(PACKAGE) == LONG_FILES.keys()


def test_functions_fit_on_one_page() -> None:
    assert long_functions(PACKAGE) == LONG_FUNCTIONS.keys()


def test_what_travels_together_is_one_parameter() -> None:
    assert many_parameters(PACKAGE) == MANY_PARAMETERS.keys()


def test_every_exception_has_a_reason() -> None:
    for exceptions in (LONG_FILES, LONG_FUNCTIONS, MANY_PARAMETERS):
        assert all(reason.strip() for reason in exceptions.values())


@pytest.mark.parametrize("more", [0, 1])
def test_what_is_one_over_a_limit_is_found(more: int, tmp_path: Path) -> None:
    """At each limit all is well, one beyond it is not, in methods too; parameters of commands are not counted."""
    (tmp_path / "cli").mkdir()
    (tmp_path / "file.py").write_text("x = 0\n" * (MOST_LINES + more))
    body = "        pass\n" * (MOST_LINES_OF_A_FUNCTION - 1 + more)
    (tmp_path / "method.py").write_text(f"class A:\n    @staticmethod\n    def f():\n{body}")
    names = ", ".join(f"a{i}" for i in range(MOST_PARAMETERS - 2 + more))
    wide = f"class A:\n    def f(self, {names}, *, b, **c): ...\n"
    (tmp_path / "wide.py").write_text(wide)
    (tmp_path / "cli" / "wide.py").write_text(wide)
    assert long_files(tmp_path) == ({"file.py"} if more else set())
    assert long_functions(tmp_path) == ({"method.py A.f"} if more else set())
    assert many_parameters(tmp_path) == ({"wide.py A.f"} if more else set())
