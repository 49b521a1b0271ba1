"""Passes as data, and the one runner that makes good what each of them needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby

import onnx_ir as ir

from onnxq.graph.passes.naming import unique_names
from onnxq.graph.passes.shapes import infer_shapes
from onnxq.graph.passes.unused import remove_unused
from onnxq.kernels.targets import Target

_log = logging.getLogger("onnxq.graph")

# Passes of a group may give each other more to do; this many rounds serve every model seen.
ROUNDS = 16


class Need(Enum):
    """What a pass counts on, in the order in which it is made good: each of them needs those before it."""

    PRUNED = "no node and no constant that nothing needs"
    NAMES = "every node and value has a name of its own"
    SHAPES = "shapes and types are inferred as far as onnx can"


@dataclass(eq=False)
class Work:
    """A model on its way, changed in place, and what the passes are told besides and have to say.

    ``lowest``: the opset that it shall have at least. ``claims``: shapes that the file claims, until they are checked.
    ``everywhere``: whether the least block of another float type changes to float32 too.
    """

    model: ir.Model
    target: Target
    lowest: int
    notes: list[str] = field(default_factory=list)
    claims: dict[ir.Value, ir.Shape] = field(default_factory=dict)
    everywhere: bool = False


@dataclass(frozen=True)
class Pass:
    """A step that keeps what a model computes. ``run`` returns how much it changed, 0 where nothing.

    Neighbours with ``repeat`` run in rounds until none of them changes anything; their shapes are inferred once a
    round, which is what takes time.
    """

    name: str
    run: Callable[[Work], int]
    needs: Collection[Need] = ()
    repeat: bool = False


def run_passes(work: Work, passes: Sequence[Pass], *, skip: Collection[str] = ()) -> None:
    """Runs ``passes`` on ``work`` in their order, those called as in ``skip`` left out.

    What passes need is inferred, named and pruned anew only behind a pass that changed something. The logger
    ``onnxq.graph`` tells at level DEBUG how much each changed.

    Raises:
        ValueError: ``skip`` names no pass.
    """
    unknown = set(skip) - {p.name for p in passes}
    if unknown:
        raise ValueError(f"no pass {sorted(unknown)[0]!r}: there are {', '.join(p.name for p in passes)}")
    run = _Run(work)
    for repeat, group in groupby((p for p in passes if p.name not in skip), key=lambda p: p.repeat):
        members = list(group)
        for number in range(ROUNDS if repeat else 1):
            run.ensure({need for p in members if repeat for need in p.needs})
            changes = sum([run.apply(p, number) for p in members])
            if not changes:
                break


_RESTORE: dict[Need, Callable[[ir.Model], int]] = {
    Need.PRUNED: remove_unused,
    Need.NAMES: unique_names,
    Need.SHAPES: infer_shapes,
}


class _Run:
    """What holds of the model at the moment."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.holds: set[Need] = set()

    def ensure(self, needs: Collection[Need]) -> None:
        """Makes good all of ``needs``, and what those need, that does not hold."""
        last = max((list(Need).index(need) for need in needs), default=-1)
        for need in list(Need)[: last + 1]:
            if need not in self.holds:
                count = _RESTORE[need](self.work.model)
                _log.debug("%s: %d", _RESTORE[need].__name__, count)
                self.holds.add(need)

    def apply(self, one: Pass, number: int) -> int:
        """Runs ``one`` in round ``number`` of its group; returns how much it changed."""
        # In a round, shapes are as old as the round.
        self.ensure([need for need in one.needs if not (one.repeat and need is Need.SHAPES)])
        changes = one.run(self.work)
        _log.debug("%s%s: %d changes", one.name, f" (round {number + 1})" if one.repeat else "", changes)
        if changes:
            self.holds.clear()
        return changes
