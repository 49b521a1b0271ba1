"""Weights that several nodes read: what of them lies in the file, once, and what the runtime makes of it at load.

| readers of a constant                                  | in the file                       | made at load          |
|--------------------------------------------------------|-----------------------------------|-----------------------|
| one needs floats: a rule, an operator without integers | floats                            | the codes of products |
| products, rows of a table, what computes in float      | codes, in the format of most bits | transposes, floats    |
| products with it and with its transpose                | the codes of one of them          | those of the other    |
| products in blocks of 4 bits, and rows of a table      | the blocks                        |                       |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import onnx_ir as ir

from onnxq.kernels import ops
from onnxq.kernels.held import readers
from onnxq.kernels.targets import Target
from onnxq.numerics import Granularity, PerAxis, PerBlock
from onnxq.plan.types import Storage, Weight
from onnxq.query import nodes, values_by_name
from onnxq.weights import NBits, WeightFormat, weight_format

Place = tuple[str, int]  # node and input


class Agreed(NamedTuple):
    """What became of weights; ``floats``: the nodes of those that stay float, each with one that needs the floats."""

    weights: list[Weight]
    floats: dict[str, str]


def agreed(model: ir.Model, weights: Sequence[Weight], target: Target) -> Agreed:
    """``weights`` of ``model``, each by itself so far, as those of one constant get along."""
    groups: dict[str, list[Weight]] = {}
    for weight in weights:
        groups.setdefault(weight.tensor, []).append(weight)
    values, by_name = values_by_name(model), {n.name or "": n for n in nodes(model)}
    found: dict[Place, Weight] = {}
    floats: dict[str, str] = {}
    for tensor, group in groups.items():
        places = {(node.name or "", index) for node, index in readers(values[tensor])}
        sharing = _Sharing(group, by_name, target)
        others = sorted(name for name, _ in places - {(w.node, w.index) for w in group})
        if others or values[tensor].is_graph_output():
            made = sharing.beside_floats()
            left = {w.node for w in group} - {w.node for w in made}
            floats.update(dict.fromkeys(left, others[0] if others else tensor))
            group = made
        elif len(group) > 1:
            group = sharing.together()
        found.update({(w.node, w.index): w for w in group})
    return Agreed([found[w.node, w.index] for w in weights if (w.node, w.index) in found], floats)


@dataclass(frozen=True)
class _Sharing:
    """The weights ``group`` of one constant."""

    group: Sequence[Weight]
    nodes: Mapping[str, ir.Node]
    target: Target

    def beside_floats(self) -> list[Weight]:
        """What becomes of them where the file holds floats: codes only save time then, and what saves none has none."""
        return [made for weight in self.group if (made := self._at_load(weight)) is not None]

    def together(self) -> list[Weight]:
        """What becomes of them where the file holds codes alone: those of one of them, which all others read."""
        if len({(w.stored, w.granularity, w.shift) for w in self.group}) == 1:
            return list(self.group)
        stored = max((w.stored for w in self.group), key=_fineness)
        group = [self._folded(w, stored) for w in self.group]
        owner = min((w for w in group if w.stored == stored), key=lambda w: _FIRST.index(w.storage))
        return [self._reading(weight, owner) for weight in group]

    def _reading(self, weight: Weight, owner: Weight) -> Weight:
        """``weight`` as it reads the codes of ``owner``."""
        same = replace(weight, qtype=owner.qtype, granularity=owner.granularity, stored=owner.stored, shift=0)
        floats = replace(same, storage=Storage.PACKED)
        if weight.storage is Storage.GATHERED:
            return same if self._has_rows(weight, owner) else floats
        if weight.storage is Storage.PACKED:
            return floats
        if weight.granularity == owner.granularity and weight.stored == owner.stored:
            return same
        return self._at_load(weight) or floats

    def _has_rows(self, gathered: Weight, owner: Weight) -> bool:
        """Whether the codes of ``owner`` are those of whole rows, which can be picked one by one."""
        if isinstance(owner.stored, NBits):
            indices = self.nodes[gathered.node].inputs[1]
            ranked = indices is not None and indices.shape is not None
            return ranked and isinstance(owner.granularity, PerBlock) and owner.granularity.axis == 1
        return owner.granularity == PerAxis(0)

    def _folded(self, weight: Weight, stored: WeightFormat) -> Weight:
        """``weight`` by itself in the format ``stored``, or in its own where only a kernel reads that."""
        if isinstance(stored, NBits):
            return weight
        if weight.storage is Storage.BLOCKS:
            weight = replace(weight, storage=Storage.DYNAMIC, qtype=self.target.weights)
        return replace(weight, granularity=_channels(weight), stored=stored)

    def _at_load(self, weight: Weight) -> Weight | None:
        """``weight`` made at load, of a byte each: that takes no room. None where no kernel computes with it."""
        node = self.nodes[weight.node]
        storage = Storage.DYNAMIC if weight.storage is Storage.BLOCKS else weight.storage
        if not storage.computes and (not storage.measures or ops.weight_slot(node) is None):
            return None
        return replace(
            weight,
            qtype=self.target.weights,
            granularity=_channels(weight),
            storage=storage,
            stored=weight_format("int8"),
            at_load=True,
        )


# Whose codes lie in the file where not all can: rows of a table are read at every run.
_FIRST = (
    Storage.GATHERED,
    Storage.BLOCKS,
    Storage.INTEGER,
    Storage.FUSED,
    Storage.DYNAMIC,
    Storage.TWO_PARTS,
    Storage.PACKED,
)


def _fineness(stored: WeightFormat) -> tuple[int, bool, bool, int]:
    """What the format of two readers has more of that serves both."""
    return stored.bits, isinstance(stored, NBits), stored.block > 0, -stored.block


def _channels(weight: Weight) -> Granularity:
    """One scale for every output channel of ``weight``, or every row of a table."""
    of = weight.granularity
    if weight.storage is Storage.GATHERED:
        return PerAxis(0)
    if isinstance(weight.stored, NBits) and isinstance(of, PerBlock):
        return PerAxis(1 - of.axis)
    return of
