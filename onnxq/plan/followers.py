"""Which operators without weights run on integers between those that have some."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.kernels import ops
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Layout
from onnxq.plan.units import maker_of, read, written
from onnxq.query import array, constant, is_float

# Additive masks hold numbers like -1e4 or -3.4e38: a range that includes them has no codes left for anything else.
MASK_MAGNITUDE = 1e4


def followers(candidates: Mapping[str, ir.Node], anchors: Mapping[str, ir.Node]) -> dict[str, ir.Node]:
    """The greatest set of candidates that all read integers and are read by at least one node that wants them."""
    between = [n for n in anchors.values() if operator(n).between_codes]
    chosen = _Chosen([*anchors.values()], [*candidates.values()], between)
    waiting = [*candidates.values()]
    while True:
        while waiting:
            node = waiting.pop()
            if id(node) in chosen.followers and not chosen.useful(node):
                waiting += chosen.drop(node)
        lost = chosen.out_of_layout()
        if not lost:
            break
        for node in lost:
            waiting += chosen.drop(node)
    return {name: node for name, node in candidates.items() if id(node) in chosen.followers}


class _Chosen:
    """The nodes that are on integers still, while those are dropped that cannot be: ``anchors`` never are.

    Whoever is dropped is looked at once; what that changes are its neighbours, and the layout further on.
    """

    def __init__(
        self, anchors: Collection[ir.Node], candidates: Collection[ir.Node], between: Collection[ir.Node]
    ) -> None:
        self.followers = {id(n): n for n in candidates}
        self._readers = {id(n): n for n in (*anchors, *candidates)}
        self._written = {id(n): written(n) for n in (*anchors, *candidates)}
        self._makers: dict[int, list[ir.Node]] = defaultdict(list)  # by the id of the value
        for node in (*between, *candidates):
            for value in self._written[id(node)]:
                self._makers[id(value)].append(node)
        self._wanted = {id(n.inputs[0]) for n in between}
        self._reads = Counter(id(value) for node in self._readers.values() for value in _data(node))

    def useful(self, node: ir.Node) -> bool:
        """Whether ``node`` reads integers, and somebody reads it as such."""
        return _reads_integers(node, self._is_integer) and any(self._reads[id(v)] for v in self._written[id(node)])

    def drop(self, node: ir.Node) -> Iterator[ir.Node]:
        """Takes ``node`` out; those that have lost their last maker of integers by it, or their last reader."""
        del self.followers[id(node)], self._readers[id(node)]
        for value in self._written[id(node)]:
            self._makers[id(value)].remove(node)
            if not self._is_integer(value):
                yield from (use.node for use in value.uses())
        for value in _data(node):
            self._reads[id(value)] -= 1
            if not self._reads[id(value)]:
                yield from self._makers.get(id(value), ())

    def out_of_layout(self) -> list[ir.Node]:
        """The followers that want the layout of integer convolutions and do not get it.

        A node has it behind such a convolution, or between two: onnxruntime moves the layout on only where another
        one, or what takes it on, reads it again.
        """
        picky = [n for n in self.followers.values() if ops.wants_channels_last(n)]
        if not picky:
            return []
        starts = [n for n in self._readers.values() if operator(n).layout is Layout.STARTS]
        behind, ahead = self._behind(starts), self._ahead(starts)

        def fits(node: ir.Node) -> bool:
            maker = None if node.inputs[0] is None else maker_of(node.inputs[0])
            if maker is None or id(maker) not in behind:
                return False
            return operator(maker).layout is Layout.STARTS or any(
                id(reader) in ahead and (index == 0 or operator(reader).layout is not Layout.STARTS)
                for reader, index in self._uses(node)
            )

        return [n for n in picky if not fits(n)]

    def _behind(self, starts: Iterable[ir.Node]) -> set[int]:
        """The ``id`` of each node whose result has the layout of one of ``starts``."""
        readers: dict[int, list[ir.Node]] = defaultdict(list)  # those that pass the layout on, by who they have it from
        for node in self._readers.values():
            if ops.keeps_channels_last(node):
                for maker in map(maker_of, read(node)):
                    readers[id(maker)].append(node)
        return _reached(starts, lambda node: readers.get(id(node), ()))

    def _ahead(self, starts: Iterable[ir.Node]) -> set[int]:
        """The ``id`` of each node that takes the layout to one of ``starts``, and of those."""
        makers: dict[int, list[ir.Node]] = defaultdict(list)  # those that pass the layout on, by who reads it
        for node in self._readers.values():
            if ops.keeps_channels_last(node):
                for reader, index in self._uses(node):
                    if index == 0 or operator(reader).layout is not Layout.STARTS:
                        makers[id(reader)].append(node)
        return _reached(starts, lambda node: makers.get(id(node), ()))

    def _is_integer(self, value: ir.Value) -> bool:
        return id(value) in self._wanted or bool(self._makers.get(id(value)))

    def _uses(self, node: ir.Node) -> Iterator[tuple[ir.Node, int]]:
        """Who reads what ``node`` writes, and as which of its inputs."""
        return ((use.node, use.idx) for out in self._written[id(node)] for use in out.uses())


def _reached(nodes: Iterable[ir.Node], further: Callable[[ir.Node], Iterable[ir.Node]]) -> set[int]:
    """The ``id`` of each of ``nodes`` and of all that ``further`` leads to from there."""
    pending = list(nodes)
    seen = {id(n) for n in pending}
    while pending:
        for node in further(pending.pop()):
            if id(node) not in seen:
                seen.add(id(node))
                pending.append(node)
    return seen


def _data(node: ir.Node) -> list[ir.Value]:
    """The activations that ``node`` reads, each as often as it does."""
    slots = [0] if ops.weight_slot(node) is not None else ops.data_inputs(node)
    return [value for i in slots if (value := node.inputs[i]) is not None]


def _reads_integers(node: ir.Node, is_integer: Callable[[ir.Value], bool]) -> bool:
    computed = 0
    for index in ops.data_inputs(node):
        value = node.inputs[index]
        assert value is not None
        if constant(value) is not None:
            if not (ops.constants_allowed(node) and _tame(value)):
                return False
        elif is_integer(value):
            computed += 1
        elif not (is_float(value) and (ops.cheap_operand(node, value) or ops.quantizes_its_inputs(node))):
            return False
    return computed > 0 or ops.quantizes_its_inputs(node)


def _tame(value: ir.Value) -> bool:
    data = array(value)
    return data is not None and data.size > 0 and is_float(value) and bool(np.abs(data).max() < MASK_MAGNITUDE)
