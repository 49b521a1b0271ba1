"""Nodes that compute in float, those of one operator and reason together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class LeftGroup:
    """Nodes of one operator type that compute in float for one ``reason``, whose ``code`` no wording changes.

    ``nodes``: their names.
    """

    op: str
    reason: str
    nodes: tuple[str, ...]
    code: str = ""


class Left(NamedTuple):
    """A node that computes in float, and why."""

    op: str
    reason: str
    code: str
    node: str


def grouped(left: list[Left]) -> tuple[LeftGroup, ...]:
    """Nodes of one operator and reason together, the largest group first."""
    groups: dict[Left, list[str]] = {}
    for one in left:
        groups.setdefault(one._replace(node=""), []).append(one.node)
    found = (LeftGroup(of.op, of.reason, tuple(names), of.code) for of, names in groups.items())
    return tuple(sorted(found, key=lambda g: -len(g.nodes)))
