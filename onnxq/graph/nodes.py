"""Making nodes: under the names that they are given, at one place of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.edit import new_constant, owner


@dataclass(frozen=True)
class Before:
    """New nodes go in front of ``node``, in the order in which they are made."""

    node: ir.Node


@dataclass(frozen=True)
class After:
    """New nodes go behind ``node``, in the order in which they are made."""

    node: ir.Node


@dataclass(frozen=True)
class AtEnd:
    """New nodes go to the end of ``graph``."""

    graph: ir.Graph


Place: TypeAlias = Before | After


def behind(value: ir.Value, graph: ir.Graph) -> Place:
    """The place in ``graph`` where ``value`` is known and nothing has read it yet."""
    writer = value.producer()
    return Before(graph[0]) if writer is None else After(writer)


class NodeBuilder:
    """Puts nodes at ``place``: ``build("Relu", [x], name="r")`` is the output of a new node there.

    ``fresh`` makes a name one that nobody has; without it names are taken as they are, and the caller sees to it that
    they are unique (the passes leave that to their runner).
    """

    def __init__(self, place: Place | AtEnd, *, fresh: Callable[[str], str] | None = None) -> None:
        self.place = place
        self._fresh = fresh or (lambda name: name)

    @property
    def graph(self) -> ir.Graph:
        """The graph or body that nodes are put into."""
        return self.place.graph if isinstance(self.place, AtEnd) else owner(self.place.node)

    def __call__(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str,
        output: str | None = None,
        like: ir.Value | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """The output of a new node.

        Args:
            op, inputs, domain: the operator and what it reads.
            name: the node's.
            output: the output's name, else it is called after the node.
            like: a tensor whose type and shape are the output's.
            attributes: as Python values; None are left out.
        """
        return self.node(op, inputs, name=name, outputs=(output,), domain=domain, like=like, **attributes).outputs[0]

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str,
        outputs: Sequence[str | None] = (None,),
        like: ir.Value | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Node:
        """A new node with so many ``outputs``, of which those without a name are called after the node."""
        kept = {key: value for key, value in attributes.items() if value is not None}
        made = ir.node(op, list(inputs), kept or None, domain=domain, num_outputs=len(outputs), name=self._fresh(name))
        for index, (value, given) in enumerate(zip(made.outputs, outputs, strict=True)):
            value.name = self._fresh(f"{name}_output{index or ''}" if given is None else given)
            if like is not None:
                value.type, value.shape = like.type, like.shape
        self._put(made)
        return made

    def constant(self, data: npt.ArrayLike, name: str) -> ir.Value:
        """``data`` as a constant of the graph."""
        return new_constant(self.graph, np.asarray(data), name=self._fresh(name))

    def _put(self, node: ir.Node) -> None:
        if isinstance(self.place, AtEnd):
            self.place.graph.append(node)
        elif isinstance(self.place, Before):
            self.graph.insert_before(self.place.node, node)
        else:
            self.graph.insert_after(self.place.node, node)
            self.place = After(node)
