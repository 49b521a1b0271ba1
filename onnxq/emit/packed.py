"""Codes of few bits in the file, 8-bit integers in the runtime: constant nodes that unpack a weight once, at load.

Only operators of opset 13 and older, so that onnxruntime 1.17 and newer fold them: Cast, Gather in a table with one row
for every packed group (``numerics.packing``) or for two of them, Add, Reshape, Slice, Transpose. What is folded is an
ordinary int8 weight. With another optimisation level than the default nothing is folded and the result is the same,
slowly.

What is packed follows from the codes and the format alone: the levels of a codebook are the codes that occur, and the
multiple of a block is the greatest common divisor of its codes, or any other number that divides them and leaves
quotients that fit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.config.formats import WeightFormat
from onnxq.emit.pieces import Pieces, graph_of
from onnxq.errors import ModelError
from onnxq.graph.nodes import Place
from onnxq.numerics import Granularity, PerAxis
from onnxq.numerics.packing import Packing

Ints = npt.NDArray[np.integer]

# Packed bytes of a weight from which they are looked up two at a time: the table of byte pairs, made at load as well,
# costs a few hundred microseconds, once where weights share it. Two thirds of the time and of the memory of bytes.
_PAIRED = 1 << 16
_PAIRED_ALONE = 1 << 19
# Blocks look up int32 indices, a table of 1 MB if by pairs: nothing gained by that.
_NEVER = 1 << 62


def expanded(
    pieces: Pieces,
    codes: Ints,
    stored: WeightFormat,
    granularity: Granularity,
    name: str,
    *,
    place: Place,
    shift: int = 0,
    native: bool = False,
) -> ir.Value:
    """A value that holds ``codes + shift``, ``[..] int8``, once the runtime has folded constants.

    ``name`` is the weight's. ``native``: 4 bits are an int4 tensor, which takes opset 21, where the format allows it.
    Raises ``ModelError`` where the codes are not of the format.
    """
    if not stored.packed:
        shifted = (codes + codes.dtype.type(shift)).astype(codes.dtype)
        return pieces.initializer(graph_of(place.node), f"{name}_quantized", shifted)
    if native and stored.native and not shift:
        return _native(pieces, codes, name, place)
    spelled = _Spelled(pieces, name, place, Packing(stored.bits), shift)
    if stored.block:
        return spelled.blocks(codes, stored.block, transposed=granularity == PerAxis(codes.ndim - 1) and codes.ndim > 1)
    if stored.codebook:
        return spelled.levels(codes, np.unique(codes))
    half = 1 << (stored.bits - 1)
    return spelled.levels(codes, np.arange(-half, half, dtype=codes.dtype))


def _native(pieces: Pieces, codes: Ints, name: str, place: Place) -> ir.Value:
    """``codes`` as an int4 tensor and one Cast. (DequantizeLinear reads int4 too, but no integer kernel fuses that.)"""
    import ml_dtypes

    stored = pieces.initializer(graph_of(place.node), f"{name}_int4", codes.astype(ml_dtypes.int4))
    return pieces.node("Cast", [stored], f"{name}_unpacked", place=place, to=ir.DataType.INT8)


class _Spelled:
    def __init__(self, pieces: Pieces, name: str, place: Place, packing: Packing, shift: int) -> None:
        self.pieces, self.name, self.place, self.packing, self.shift = pieces, name, place, packing, shift
        self.graph = graph_of(place.node)

    def levels(self, codes: Ints, levels: Ints) -> ir.Value:
        """Codes that are all among ``levels``, ascending, at most ``2^bits`` of them."""
        count = 1 << self.packing.bits
        uniform = levels.size == count and int(levels[-1]) - int(levels[0]) == count - 1
        where = (codes - levels[0]).astype(np.uint8) if uniform else np.searchsorted(levels, codes)
        if levels.size > count or not np.array_equal(levels[np.minimum(where, levels.size - 1)], codes):
            raise ModelError(f"weight '{self.name}' has codes that {self.packing.bits} bits do not hold")
        padded = np.concatenate([levels, np.repeat(levels[-1:], count - levels.size)])
        groups, held = self._groups(
            self.packing.table(padded + codes.dtype.type(self.shift)),
            where,
            pairs_from=_PAIRED if uniform else _PAIRED_ALONE,
        )
        return self._shaped(groups, codes.shape, of=held)

    def blocks(self, codes: Ints, size: int, *, transposed: bool) -> ir.Value:
        """``codes = multiple * level``, blocks of ``size`` along the inputs of each channel."""
        rows = (codes.T if transposed else codes.reshape(codes.shape[0], -1)).astype(np.int64)
        channels, n = rows.shape
        count = -(-n // size)
        padded = np.zeros((channels, count * size), np.int64)
        padded[:, :n] = rows
        parts = padded.reshape(channels, count, size)
        multiple = np.maximum(np.gcd.reduce(parts, axis=2), 1)
        quotients, half = parts // multiple[:, :, None], 1 << (self.packing.bits - 1)
        if quotients.size and np.abs(quotients).max() >= half:
            raise ModelError(f"weight '{self.name}' has blocks that {self.packing.bits} bits do not hold")
        steps = np.arange(2 * half, dtype=np.int32)
        groups, held = self._groups(self.packing.table(steps), quotients + half, pairs_from=_NEVER)
        index = self._shaped(groups, parts.shape, of=held)
        # Row m of the table holds m times each level; the last one is that of the largest multiple.
        most = int(multiple.max(initial=1))
        table = (np.arange(most + 1)[:, None] * (steps - half) + self.shift).astype(np.int8)
        offsets = self._constant((multiple.astype(np.uint8))[:, :, None], "multiples")
        rows_of = self._node("Cast", [offsets], "multiples_int", to=ir.DataType.INT32)
        first = self._node("Mul", [rows_of, self._shared(np.asarray(2 * half, np.int32), "row")], "rows")
        where = self._node("Add", [index, first], "where")
        values = self._node("Gather", [self._shared(table.ravel(), "multiples"), where], "blocks", axis=0)
        if n != count * size or len(codes.shape) != 2 or transposed:
            values = self._node(
                "Reshape", [values, self._constant(np.asarray([channels, count * size]), "rows")], "matrix"
            )
        if n != count * size:
            values = self._sliced(values, n, axis=1)
        if transposed:
            return self._node("Transpose", [values], "columns")
        return self._node("Reshape", [values, self._constant(np.asarray(codes.shape), "shape")], "unpacked")

    def _groups(self, table: npt.NDArray[Any], codes: Ints, *, pairs_from: int) -> tuple[ir.Value, int]:
        """Rows of ``table`` that hold ``codes``, and how many; from ``pairs_from`` bytes on those of pairs."""
        packed = self.packing.pack(codes)
        size, group = packed.main.size, self.packing.group
        if packed.extra is None and size >= pairs_from:
            pairs = np.zeros(-(-size // 2) * 2, np.uint8)
            pairs[:size] = packed.main
            index = self._index(pairs.view("<u2").astype(np.uint16), "packed")
            return self._node("Gather", [self._pairs(table), index], "codes", axis=0), pairs.size * group
        index = self._index(packed.main, "packed")
        if packed.extra is not None:
            more, extra_table = self._index(packed.extra, "extra"), self.packing.extra_table()
            shared_extra = self._shared(extra_table, f"extra{self.packing.extra_bits}")
            added = self._node("Gather", [shared_extra, more], "extra_bits", axis=0)
            added = self._shaped(added, packed.main.shape, of=packed.extra.size * extra_table.shape[1])
            index = self._node("Add", [index, added], "groups")
        return self._node("Gather", [self._shared(table, "levels"), index], "codes", axis=0), size * group

    def _index(self, packed: npt.NDArray[Any], what: str) -> ir.Value:
        return self._node("Cast", [self._constant(packed, what)], f"{what}_index", to=ir.DataType.INT32)

    def _pairs(self, table: npt.NDArray[Any]) -> ir.Value:
        """``[65536, 2 group]``: what each pair of bytes, the first in the low bits, stands for."""
        rows, group = table.shape
        key = (id(self.graph), "pairs", table.dtype.str, table.tobytes())
        if key not in self.pieces.made:
            both = self._shared(np.asarray([rows, rows, group]), "pairs_shape")
            spread = []
            for shape in ([1, rows, group], [rows, 1, group]):
                single = [self._shared(table, "levels"), self._shared(np.asarray(shape), "pairs_shape")]
                spread.append(self._node("Expand", [self._node("Reshape", single, "pairs_of"), both], "pairs_of"))
            joined = self._node("Concat", spread, "pairs_joined", axis=2)
            final = self._shared(np.asarray([rows * rows, 2 * group]), "pairs_shape")
            self.pieces.made[key] = self._node("Reshape", [joined, final], "pairs")
        return self.pieces.made[key]

    def _shaped(self, groups: ir.Value, shape: tuple[int, ...], *, of: int) -> ir.Value:
        """The first elements of ``groups``, which holds ``of``, in ``shape``."""
        count = math.prod(shape)
        if of != count:
            flat = self._node("Reshape", [groups, self._shared(np.asarray([-1]), "flat")], "flat")
            groups = self._sliced(flat, count, axis=0)
        return self._node("Reshape", [groups, self._constant(np.asarray(shape), "shape")], "unpacked")

    def _sliced(self, value: ir.Value, stop: int, *, axis: int) -> ir.Value:
        ends = [self._shared(np.asarray([x]), "index") for x in (0, stop, axis)]
        return self._node("Slice", [value, *ends], "cut")

    def _node(self, op: str, inputs: list[ir.Value], what: str, **attributes: int) -> ir.Value:
        return self.pieces.node(op, inputs, f"{self.name}_{what}", place=self.place, **attributes)

    def _constant(self, data: npt.NDArray[Any], what: str) -> ir.Value:
        return self.pieces.initializer(self.graph, f"{self.name}_{what}", data)

    def _shared(self, data: npt.NDArray[Any], what: str) -> ir.Value:
        """``data`` as a constant that all weights of the graph with equal needs read."""
        key = (id(self.graph), "packed", what, data.dtype.str, data.shape, data.tobytes())
        if key not in self.pieces.made:
            self.pieces.made[key] = self.pieces.initializer(self.graph, f"packed_{what}", data)
        return self.pieces.made[key]
