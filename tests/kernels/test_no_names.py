"""No operator name decides anything outside ``onnxq/kernels``: everything else asks the records there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import onnx.defs
import onnxruntime.capi.onnxruntime_pybind11_state as runtime
import pytest

import onnxq
from onnxq.kernels.operators import OPERATORS

ROOT = Path(onnxq.__file__).parent

# The room whose work is rewriting operators, and the files elsewhere that do it too, each with its reason.
ALLOWED = {
    "kernels/": "holds the records",
    "graph/passes/": "rewrites float graphs: patterns of operators, and what stands in their place",
    "graph/linear.py": "reads the geometry of each kind of layer from its attributes",
    "graph/rescale.py": "writes factors of channels into each kind of weight",
    "emit/operands.py": "spells what a layer that measures its ranges becomes, by operator",
    "emit/nbits.py": "spells MatMulNBits in the place of a product and its bias",
    "emit/enlarged.py": "spells a Resize that repeats pixels as joining",
    "emit/sums.py": "spells sums so that onnxruntime leaves them alone",
    "adapt/gradients.py": "exact rewrites of what has no gradient, by operator",
    "adapt/training_graph.py": "spells fake quantizers",
}
# Calls that make a node of the operator that their first or second argument names: they decide nothing.
MAKES = {"new_node", "make_node", "node", "op", "_new", "emit", "build"}
# Names that are words of Python or of onnxq too, where nothing is an operator.
NOT_OPERATORS = {
    ("graph/instrument.py", "If"): "bodies of If, Loop and Scan are structure, not arithmetic",
    ("graph/flow.py", "Loop"): "bodies of If, Loop and Scan are structure, not arithmetic",
    ("graph/sizes.py", "Loop"): "bodies of If, Loop and Scan are structure, not arithmetic",
    ("graph/kinds.py", "Constant"): "a Constant is a tensor, not arithmetic",
    ("graph/foreign.py", "Constant"): "a Constant is a tensor, not arithmetic",
    ("measure/size.py", "Constant"): "a Constant is a tensor, not arithmetic",
    ("plan/__init__.py", "Constant"): "the class of onnxq.plan",
}


def operator_names() -> frozenset[str]:
    """Every operator that onnx or this onnxruntime knows, and those with a record."""
    known = {s.name for s in onnx.defs.get_all_schemas_with_history()}
    return frozenset(known | {s.name for s in runtime.get_all_operator_schema()} | set(OPERATORS))


def deciding(tree: ast.Module, names: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line and text of each operator name in ``tree`` that is no docstring and does not name a node being made."""
    for parent in ast.walk(tree):
        made = isinstance(parent, ast.Call) and _called(parent) in MAKES
        for child in ast.iter_child_nodes(parent):
            is_text = isinstance(child, ast.Constant) and isinstance(child.value, str)
            if not is_text or (made and child in parent.args[:2]):
                continue
            if child.value in names and not isinstance(parent, ast.Expr | ast.JoinedStr):
                yield child.lineno, child.value


def _called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Call):  # NodeBuilder(place)("Add", ...)
        return "build" if _called(call.func) == "NodeBuilder" else ""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def found(names: frozenset[str]) -> list[str]:
    told = []
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(tuple(ALLOWED)):
            continue
        for line, name in deciding(ast.parse(path.read_text(encoding="utf-8")), names):
            if (place, name) not in NOT_OPERATORS:
                told.append(f"{place}:{line}: {name}")
    return told


def test_no_operator_name_decides_anything_elsewhere() -> None:
    assert found(operator_names()) == [], "ask onnxq.kernels.operators, and add a field to the record if need be"


@pytest.mark.parametrize("place", sorted(ALLOWED))
def test_what_is_allowed_is_needed(place: str) -> None:
    names = operator_names()
    paths = (ROOT / place).glob("**/*.py") if place.endswith("/") else [ROOT / place]
    assert any(any(deciding(ast.parse(p.read_text(encoding="utf-8")), names)) for p in paths)


@pytest.mark.parametrize(("place", "name"), sorted(NOT_OPERATORS))
def test_exceptions_are_needed(place: str, name: str) -> None:
    tree = ast.parse((ROOT / place).read_text(encoding="utf-8"))
    assert name in {text for _, text in deciding(tree, operator_names())}


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ('node.op_type == "Conv"', ["Conv"]),
        ('node.op_type in ("Conv", "Gemm")', ["Conv", "Gemm"]),
        ('SLOW = {"Softmax": 3}', ["Softmax"]),
        ('is_op(node, "Relu", "Clip")', ["Relu", "Clip"]),
        ('def f(op="Add"): ...', ["Add"]),
        ('match op:\n    case "Mul": ...', ["Mul"]),
        ('new_node("Conv", [x])', []),
        ('new_node("Conv", [x], name="Add")', ["Add"]),
        ('"Conv"', []),
        ('f"a Conv {x}"', []),
        ('kind = "conv"', []),
    ],
)
def test_what_the_walk_finds(code: str, names: list[str]) -> None:
    assert [name for _, name in deciding(ast.parse(code), operator_names())] == names
