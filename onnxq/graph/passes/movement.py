"""Chains of Reshape and Transpose, spelled so that as little as possible is moved, and maps keep their channels last.

However long such a chain is, all it does is permute the *atoms* of the shape: the factors into which the reshapes cut
the dimensions. So it can be spelled as one Reshape into atoms, one Transpose, one Reshape. That is done

- where a chain has several transpositions (patches unfolded from a map: two become one);
- where a chain begins or ends with a map ``[B, C, H, W]`` and with the channels innermost on its other side, as tokens
  ``[B, N, C]`` are. Integer convolutions want their channels last, and onnxruntime puts a transposition to that layout
  in front of them and one back behind them. With the chain's own transposition spelled at the map, both are each
  other's inverse and go; and what is left to permute has all channels of a pixel side by side.

Transpositions of single bytes are worth avoiding: on two threads, ``[2016, 2, 14, 2]`` with the middle two swapped took
1566 us, on one 53 (onnxruntime 1.32).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import (
    constant,
    integer,
    integers,
    is_op,
    label,
    sole_consumer,
    supersede,
)
from onnxq.graph.nodes import Before, NodeBuilder

Dim: TypeAlias = "int | str | None"


def tidy_movement(model: ir.Model) -> int:
    """Spells chains of Reshape and Transpose anew where that moves less; returns how many. Needs shapes."""
    count = 0
    for graph in all_graphs(model):
        for chain in list(_chains(graph)):
            count += _respell(chain)
    return count


def _chains(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """The longest runs of Reshape and Transpose in which each reads only the one before, with a Transpose in it."""
    for node in graph:
        source = node.inputs[0] if _moves(node) else None
        before = None if source is None else source.producer()
        if source is None or (before is not None and _moves(before) and sole_consumer(source) is node):
            continue
        chain = [node]
        while (after := sole_consumer(chain[-1].outputs[0])) is not None and _moves(after):
            if after.inputs[0] is not chain[-1].outputs[0]:
                break
            chain.append(after)
        if any(is_op(n, "Transpose") for n in chain):
            yield chain


def _moves(node: ir.Node) -> bool:
    if is_op(node, "Transpose"):
        return integers(node, "perm") is not None
    return is_op(node, "Reshape") and not integer(node, "allowzero", 0) and constant(node.inputs[1]) is not None


class _Misfit(Exception):
    """The dimensions of a reshape are no products of atoms, or contain the open batch with something else."""


@dataclass
class _Atoms:
    """``source``: the atoms of each dimension of the source; ``dims``: of each dimension now; ``size``: of each atom,
    None for an open batch.
    """

    source: list[list[int]] = field(default_factory=list)
    dims: list[list[int]] = field(default_factory=list)
    size: dict[int, int | None] = field(default_factory=dict)

    @staticmethod
    def of(shape: Sequence[Dim]) -> _Atoms:
        if any(not isinstance(d, int) or d < 1 for d in shape[1:]):
            raise _Misfit
        found = _Atoms()
        for dim in shape:
            atom = found._new(dim if isinstance(dim, int) else None)
            found.source.append([atom])
            found.dims.append([atom])
        return found

    def _new(self, size: int | None) -> int:
        atom = len(self.size)
        self.size[atom] = size
        return atom

    def _split(self, atom: int, left: int, right: int) -> tuple[int, int]:
        """Cuts ``atom`` into two of these sizes, everywhere."""
        pair = [self._new(left), self._new(right)]
        for atoms in (*self.source, *self.dims):
            if atom in atoms:
                at = atoms.index(atom)
                atoms[at : at + 1] = pair
        return pair[0], pair[1]

    def transpose(self, perm: Sequence[int]) -> None:
        self.dims = [self.dims[p] for p in perm]

    def reshape(self, target: Sequence[int]) -> None:
        """Regroups as ONNX's Reshape does: 0 copies a dimension, -1 takes what is left."""
        flat = [atom for dim in self.dims for atom in dim]
        copied: list[list[int]] = []
        if target and target[0] == 0 and self.dims:  # the batch, which may be open
            copied.append(flat[: len(self.dims[0])])
            flat, target = flat[len(self.dims[0]) :], target[1:]
        if any(t == 0 and i >= len(self.dims) for i, t in enumerate(target, start=len(copied))):
            raise _Misfit
        sizes = [self._product(self.dims[i]) if t == 0 else t for i, t in enumerate(target, start=len(copied))]
        if None in sizes or sizes.count(-1) > 1:
            raise _Misfit
        middle = sizes.index(-1) if -1 in sizes else len(sizes)
        front = [self._take(flat, size, first=True) for size in sizes[:middle]]
        back = [self._take(flat, size, first=False) for size in reversed(sizes[middle + 1 :])][::-1]
        if -1 not in sizes and flat:
            raise _Misfit
        self.dims = [*copied, *front, *([flat] if -1 in sizes else []), *back]

    def _take(self, flat: list[int], wanted: int | None, *, first: bool) -> list[int]:
        """Removes from one end of ``flat`` atoms whose product is ``wanted``, and returns them in order."""
        taken: list[int] = []
        while wanted != 1:
            if not flat or wanted is None:
                raise _Misfit
            atom = flat.pop(0 if first else -1)
            size = self.size[atom]
            if size is None:
                raise _Misfit
            if size > wanted:
                if size % wanted:
                    raise _Misfit
                pair = self._split(atom, *((wanted, size // wanted) if first else (size // wanted, wanted)))
                atom, other = pair if first else pair[::-1]
                flat.insert(0 if first else len(flat), other)
                size = wanted
            elif wanted % size:
                raise _Misfit
            wanted //= size
            taken.insert(len(taken) if first else 0, atom)
        return taken

    def _product(self, atoms: Sequence[int]) -> int | None:
        sizes = [self.size[a] for a in atoms]
        return None if None in sizes else math.prod(s for s in sizes if s is not None)

    def target(self, groups: Sequence[Sequence[int]]) -> list[int]:
        """The shape for a Reshape to dimensions made of these atoms, -1 for the one with an open batch."""
        return [-1 if (product := self._product(g)) is None else product for g in groups]


def _respell(chain: list[ir.Node]) -> bool:
    source, last = chain[0].inputs[0], chain[-1].outputs[0]
    if source is None or source.shape is None:
        return False
    spelled = _spelled(chain)
    try:
        atoms = _Atoms.of([d if isinstance(d, int) else d.value for d in source.shape])
        for op, numbers in spelled:
            if op == "Transpose":
                atoms.transpose(numbers)
            else:
                atoms.reshape(numbers)
    except _Misfit:
        return False
    steps = _steps(atoms)
    if steps is None or steps == spelled or _transposes(steps) > _transposes(spelled):
        return False
    if _transposes(steps) == _transposes(spelled) and not _at_a_map(steps):
        return False
    value, build = source, NodeBuilder(Before(chain[0]))
    for index, (op, numbers) in enumerate(steps):
        name = f"{label(chain[-1])}_{index}"
        if op == "Transpose":
            value = build("Transpose", [value], name=name, perm=list(numbers))
        else:
            target = build.constant(np.asarray(numbers, np.int64), f"{name}_shape")
            value = build("Reshape", [value, target], name=name)
        value.type = last.type
    if steps:
        value.shape = last.shape
    supersede(last, value)
    for node in reversed(chain):
        build.graph.remove(node, safe=True)
    return True


_Step: TypeAlias = "tuple[str, tuple[int, ...]]"
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def _spelled(chain: Sequence[ir.Node]) -> list[_Step]:
    """``chain`` as steps."""
    found: list[_Step] = []
    for node in chain:
        if is_op(node, "Transpose"):
            found.append(("Transpose", tuple(integers(node, "perm") or ())))
        else:
            shape = constant(node.inputs[1])
            found.append(("Reshape", tuple(() if shape is None else shape.tolist())))
    return found


def _transposes(steps: Sequence[_Step]) -> int:
    return sum(op == "Transpose" for op, _ in steps)


def _at_a_map(steps: Sequence[_Step]) -> bool:
    """Whether a map is turned at the beginning or the end."""
    return bool(steps) and (steps[0] == ("Transpose", _LAST) or steps[-1] == ("Transpose", _FIRST))


def _steps(atoms: _Atoms) -> list[_Step] | None:
    """The shortest spelling of what ``atoms`` say; None where nothing can be said."""
    now, final = [list(d) for d in atoms.source], [list(d) for d in atoms.dims]
    steps: list[_Step] = []
    innermost = [d[-1] for d in final if d]
    turned_back = len(final) == 4 and len(final[1]) == 1 and now[-1][-1:] == final[1]
    if len(now) == 4 and len(now[1]) == 1 and innermost and innermost[-1] == now[1][0]:
        steps.append(("Transpose", _LAST))
        now = [now[i] for i in _LAST]
    if turned_back:
        final = [final[i] for i in _LAST]
    order, wanted = ([a for dim in dims for a in dim] for dims in (now, final))
    if sorted(order) != sorted(wanted):
        return None  # a permutation of another rank: onnxruntime refuses it when it runs
    blocks = _blocks(order, wanted)
    if len(blocks) > 1:
        ranked = sorted(range(len(blocks)), key=lambda i: wanted.index(blocks[i][0]))
        into = atoms.target(blocks)
        if into.count(-1) > 1:
            return None
        if now != blocks:
            steps.append(("Reshape", tuple(into)))
        steps.append(("Transpose", tuple(ranked)))
        now = [blocks[i] for i in ranked]
    if now != final:
        target = atoms.target(final)
        if target.count(-1) > 1:
            return None
        steps.append(("Reshape", tuple(target)))
    if turned_back:
        steps.append(("Transpose", _FIRST))
    return steps


def _blocks(order: Sequence[int], wanted: Sequence[int]) -> list[list[int]]:
    """``order`` cut where neighbours are no neighbours in ``wanted``."""
    at = {atom: i for i, atom in enumerate(wanted)}
    blocks: list[list[int]] = []
    for atom in order:
        if blocks and at[atom] == at[blocks[-1][-1]] + 1:
            blocks[-1].append(atom)
        else:
            blocks.append([atom])
    return blocks
