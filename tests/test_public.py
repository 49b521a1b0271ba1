"""The public surface, what importing costs, and which room may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxq

PACKAGE = Path(onnxq.__file__).parent

# Ground floor first: a module imports only from its own room and the rooms before it.
ORDER = [
    "errors",
    "_version",
    "files",
    "config",
    "numerics",
    "runtime",
    "query",
    "kernels",
    "ranges",
    "weights",
    "graph",
    "measure",
    "calibrate",
    "plan",
    "report",
    "emit",
    "parameters",
    "equalize",
    "build",
    "adapt",
    "search",
    "pipeline",
    "analysis",
    "cli",
    "__main__",
]
# Floors that know nothing of the model format and run nothing.
NO_ONNX = ("errors", "config", "files", "numerics", "ranges", "weights")

PUBLIC = {
    "Comparison",
    "Config",
    "ConfigError",
    "DataError",
    "Evaluation",
    "Feed",
    "FeedOptions",
    "ImageOptions",
    "Inspection",
    "LatencyReport",
    "ModelError",
    "NumericsError",
    "OnnxqError",
    "OutputError",
    "Plan",
    "Report",
    "Result",
    "Rule",
    "RuntimeFailure",
    "__version__",
    "benchmark",
    "evaluate",
    "inspect",
    "load_config",
    "open_feed",
    "quantize",
    "run_model",
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """(name without ``onnxq.``, syntax tree) of every module but the package's own ``__init__``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, those inside functions included; imports for type checkers only are not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from imports(other)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names if module == "onnxq")
        else:
            yield from imports(node)


def room(module: str) -> str:
    return module.partition(".")[0]


def test_the_public_names() -> None:
    assert set(onnxq.__all__) == PUBLIC
    assert len(onnxq.__all__) == len(PUBLIC)
    assert set(dir(onnxq)) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(onnxq, name) is not None


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'onnxq' has no attribute 'quantise'"):
        _ = onnxq.quantise


def test_public_things_are_documented() -> None:
    for name in PUBLIC - {"__version__"}:
        assert (getattr(onnxq, name).__doc__ or "").strip(), name


@pytest.mark.parametrize(
    "statement", ["import onnxq", "import onnxq; dir(onnxq); onnxq.__version__", "import onnxq.errors"]
)
def test_importing_costs_nothing(statement: str) -> None:
    heavy = "numpy onnx onnx_ir onnxruntime rich typer PIL tokenizers"
    code = f"{statement}; import sys; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_no_room_imports_a_room_above_it() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name, tree in modules()
        for target, line in imports(tree)
        if target.startswith("onnxq.") and ORDER.index(room(target.removeprefix("onnxq."))) > ORDER.index(room(name))
    ]
    assert wrong == []


def test_every_room_has_its_place() -> None:
    assert {room(name) for name, _ in modules()} <= set(ORDER)


def test_the_lower_floors_know_no_model_format() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name, tree in modules()
        if room(name) in NO_ONNX
        for target, line in imports(tree)
        if target.partition(".")[0] in ("onnx", "onnx_ir", "onnxruntime", "ml_dtypes")
    ]
    assert wrong == []


def test_every_room_says_that_it_is_internal() -> None:
    """Only what ``onnxq`` exports is public."""
    rooms = {path.parent.name: ast.parse(path.read_text("utf-8")) for path in PACKAGE.glob("*/__init__.py")}
    assert [name for name, tree in rooms.items() if "Internal" not in (ast.get_docstring(tree) or "")] == []


@pytest.mark.parametrize("name", ["quantize", "evaluate", "inspect", "benchmark", "open_feed", "load_config"])
def test_what_the_public_functions_return_is_public(name: str) -> None:
    assert getattr(onnxq, name).__annotations__["return"].rpartition(".")[2] in PUBLIC


@pytest.mark.parametrize("name", ["plan", "report", "config"])
def test_what_a_result_holds_is_public(name: str) -> None:
    assert onnxq.Result.__annotations__[name] in PUBLIC


def test_nothing_imports_torch() -> None:
    assert [
        name for name, tree in modules() for target, _ in imports(tree) if target.partition(".")[0] == "torch"
    ] == []


def test_only_numerics_rounds() -> None:
    """``np.rint``, ``np.round``, ``.round(`` and the built-in: one rounding rule, in one room."""
    wrong = []
    for name, tree in modules():
        if room(name) == "numerics":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("rint", "round", "round_", "around", "fix"):
                wrong.append(f"{name}:{node.lineno} {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "round":
                wrong.append(f"{name}:{node.lineno} round()")
    assert wrong == []


def test_no_code_writes_down_the_ends_of_an_integer_type() -> None:
    """-128, 127, 255 are derived from bits and sign; ``numerics`` is the only room that may hold such a number."""
    wrong = [
        f"{name}:{node.lineno} {node.value}"
        for name, tree in modules()
        if room(name) in ("kernels", "ranges", "weights", "plan", "parameters", "emit", "build", "search", "pipeline")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value in (127, 128, 255, 2**31 - 1)
    ]
    assert wrong == []


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
