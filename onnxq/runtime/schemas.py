"""What onnxruntime knows of operators: how many inputs and outputs each has, and the types of its attributes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

# A model's default domain by its other name.
_ALIASES = {"ai.onnx": ""}


@dataclass(frozen=True)
class Slots:
    """Inputs or outputs of an operator: between ``least`` and ``most`` of them.

    Those at ``required`` are never empty, nor are those from ``every`` on, of which there may be any number.
    """

    least: int
    most: int
    required: tuple[int, ...]
    every: int

    def obstacle(self, given: Sequence[bool], *, kind: str) -> str | None:
        """What is wrong with inputs or outputs of which ``given`` says which are not empty; None: nothing.

        ``kind``: how one of them is called in messages.
        """
        count = len(given)
        if not self.least <= count <= self.most:
            if self.most >= _NO_END:
                wanted = f"at least {self.least}"
            else:
                wanted = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
            return f"has {count} {kind}{'' if count == 1 else 's'}, and {wanted} are what the operator takes"
        needed = (*self.required, *range(self.every, count))
        empty = next((i for i in needed if i < count and not given[i]), None)
        return None if empty is None else f"lacks {kind} {empty}"


@dataclass(frozen=True)
class Schema:
    """One version of an operator. ``attributes``: the type of each by name, as ``INT`` or ``FLOATS``."""

    inputs: Slots
    outputs: Slots
    attributes: Mapping[str, str]
    required: tuple[str, ...]


# A count that schemas use for "any number".
_NO_END = 2**31 - 1


def schema(domain: str, op_type: str, version: int) -> Schema | None:
    """The ``Schema`` by which onnxruntime checks an operator at this opset; None where it has none or a retired one."""
    domain = _ALIASES.get(domain, domain)
    versions = _registered().get((domain, op_type), ())
    since = max((s for s, _ in versions if s <= version), default=None)
    return None if since is None else _schema(domain, op_type, since)


@cache
def _schema(domain: str, op_type: str, since: int) -> Schema | None:
    found = next(s for v, s in _registered()[domain, op_type] if v == since)
    if found.deprecated:
        return None  # its inputs and attributes are not written down
    return Schema(
        _slots(found.min_input, found.max_input, found.inputs),
        _slots(found.min_output, found.max_output, found.outputs),
        {name: kind for name, a in found.attributes.items() if (kind := _name(a.type)).isidentifier()},
        tuple(name for name, a in found.attributes.items() if a.required),
    )


def _slots(least: int, most: int, parameters: Sequence[Any]) -> Slots:
    options = [_name(p.option) for p in parameters]
    # onnxruntime itself lets an empty one of many through, and dies of it in Einsum.
    every = options.index("Variadic") if "Variadic" in options else _NO_END
    return Slots(least, most, tuple(i for i, option in enumerate(options) if option == "Single"), every)


def _name(member: Any) -> str:
    """The name of a member of an enum, which onnx and onnxruntime wrap differently."""
    return str(member).rpartition(".")[2]


@cache
def _registered() -> Mapping[tuple[str, str], Sequence[tuple[int, Any]]]:
    """(version, schema) of every version of every operator, by domain and name."""
    try:
        # Not documented, and in every build of onnxruntime that PyPI has; it knows the operators of onnxruntime's own.
        from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema as every_schema
    except ImportError:
        from onnx.defs import get_all_schemas_with_history as every_schema
    found: dict[tuple[str, str], list[tuple[int, Any]]] = defaultdict(list)
    for one in every_schema():
        found[one.domain, one.name].append((one.since_version, one))
    return dict(found)
