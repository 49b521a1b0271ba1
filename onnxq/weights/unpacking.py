"""Packed codes back to 8-bit integers by constant nodes, which the runtime runs once, when it loads the model.

Only operators of opset 13 and older, so that onnxruntime 1.17 and newer fold them: Cast, Gather in a table with one row
for every packed group (``numerics.packing``) or for two of them, Add, Reshape, Slice, Transpose. What is folded is an
ordinary int8 weight. With another optimisation level than the default nothing is folded and the result is the same,
slowly.

What a graph is made of is left to a ``Writer``: nothing here knows a model format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from onnxq.numerics.packing import Packed, Packing

V = TypeVar("V")

# Packed bytes of a weight from which they are looked up two at a time: the table of byte pairs, made at load as well,
# costs a few hundred microseconds, once where weights share it. Two thirds of the time and of the memory of bytes.
PAIRED = 1 << 16
PAIRED_ALONE = 1 << 19


class Writer(Protocol[V]):
    """Makes constants and nodes for one weight, in front of what reads it; ``V``: a value of the graph.

    ``what`` ends the name of what is made, which begins with that of the weight. ``native``: whether tensors of 4-bit
    types may be used, which takes opset 21.
    """

    @property
    def native(self) -> bool: ...

    def constant(self, data: npt.NDArray[Any], what: str) -> V:
        """``data`` as a constant."""
        ...

    def shared(self, data: npt.NDArray[Any], what: str) -> V:
        """``data`` as a constant that all weights of the graph with equal needs read."""
        ...

    def int4(self, codes: npt.NDArray[Any], what: str) -> V:
        """``codes`` from -8 to 7 as a constant of the 4-bit type."""
        ...

    def node(self, op: str, inputs: Sequence[V], what: str, **attributes: int) -> V:
        """The output of a new node."""
        ...

    def cast(self, value: V, to: npt.DTypeLike, what: str) -> V:
        """``value`` in another type."""
        ...

    def once(self, key: tuple[Hashable, ...], make: Callable[[], V]) -> V:
        """What ``make`` made when the graph was first asked for ``key``."""
        ...


def looked_up(
    writer: Writer[V], table: npt.NDArray[Any], packing: Packing, packed: Packed, *, pairs_from: int | None = None
) -> tuple[V, int]:
    """Rows of ``table``, one for each group of ``packed``, and how many elements they hold.

    ``pairs_from``: the bytes from which they are looked up in pairs; None: never.
    """
    size, group = packed.main.size, packing.group
    if packed.extra is None and pairs_from is not None and size >= pairs_from:
        pairs = np.zeros(-(-size // 2) * 2, np.uint8)
        pairs[:size] = packed.main
        index = _index(writer, pairs.view("<u2").astype(np.uint16), "packed")
        return writer.node("Gather", [_pairs(writer, table), index], "codes", axis=0), pairs.size * group
    index = _index(writer, packed.main, "packed")
    if packed.extra is not None:
        more, extra_table = _index(writer, packed.extra, "extra"), packing.extra_table()
        shared_extra = writer.shared(extra_table, f"extra{packing.extra_bits}")
        added = writer.node("Gather", [shared_extra, more], "extra_bits", axis=0)
        added = shaped(writer, added, packed.main.shape, of=packed.extra.size * extra_table.shape[1])
        index = writer.node("Add", [index, added], "groups")
    return writer.node("Gather", [writer.shared(table, "levels"), index], "codes", axis=0), size * group


def shaped(writer: Writer[V], groups: V, shape: tuple[int, ...], *, of: int) -> V:
    """The first elements of ``groups``, which holds ``of``, in ``shape``."""
    count = math.prod(shape)
    if of != count:
        flat = writer.node("Reshape", [groups, writer.shared(np.asarray([-1]), "flat")], "flat")
        groups = sliced(writer, flat, count, axis=0)
    return writer.node("Reshape", [groups, writer.constant(np.asarray(shape), "shape")], "unpacked")


def sliced(writer: Writer[V], value: V, stop: int, *, axis: int) -> V:
    """``value`` up to ``stop`` along ``axis``."""
    ends = [writer.shared(np.asarray([x]), "index") for x in (0, stop, axis)]
    return writer.node("Slice", [value, *ends], "cut")


def _index(writer: Writer[V], packed: npt.NDArray[Any], what: str) -> V:
    return writer.cast(writer.constant(packed, what), np.int32, f"{what}_index")


def _pairs(writer: Writer[V], table: npt.NDArray[Any]) -> V:
    """``[65536, 2 group]``: what each pair of bytes, the first in the low bits, stands for."""
    rows, group = table.shape

    def make() -> V:
        both = writer.shared(np.asarray([rows, rows, group]), "pairs_shape")
        spread = []
        for shape in ([1, rows, group], [rows, 1, group]):
            single = [writer.shared(table, "levels"), writer.shared(np.asarray(shape), "pairs_shape")]
            spread.append(writer.node("Expand", [writer.node("Reshape", single, "pairs_of"), both], "pairs_of"))
        joined = writer.node("Concat", spread, "pairs_joined", axis=2)
        final = writer.shared(np.asarray([rows * rows, 2 * group]), "pairs_shape")
        return writer.node("Reshape", [joined, final], "pairs")

    return writer.once(("pairs", table.dtype.str, table.tobytes()), make)
