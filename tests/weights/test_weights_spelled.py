"""The nodes that unpack a weight, run in numpy: they compute what the reference does.

Graphs and onnxruntime have no part in it; ``tests/emit/test_emit_packed.py`` has the same with both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.weights import Foldable, Levels, Plain
from onnxq.weights.representation import BlockLevels, Nibbles, all_levels

Array = npt.NDArray[Any]

OPS: dict[str, Callable[..., Array]] = {
    "Gather": lambda table, index, axis: np.take(table, index, axis=axis),
    "Add": lambda a, b: a + b,
    "Mul": lambda a, b: a * b,
    "Reshape": lambda x, shape: x.reshape(tuple(shape)),
    "Expand": lambda x, shape: np.broadcast_to(x, tuple(shape)),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis=axis),
    "Slice": lambda x, start, stop, axis: x.take(range(int(start[0]), int(stop[0])), axis=int(axis[0])),
    "Transpose": lambda x: x.T,
}


@dataclass
class Calculator:
    """A ``Writer`` whose values are arrays: it computes at once what a runtime would, and notes down what it did."""

    native: bool = False
    bytes_written: int = 0
    ops: list[str] = field(default_factory=list)
    made: dict[tuple[Hashable, ...], Array] = field(default_factory=dict)

    def constant(self, data: Array, what: str) -> Array:
        self.bytes_written += data.nbytes
        return data

    def shared(self, data: Array, what: str) -> Array:
        return data

    def int4(self, codes: Array, what: str) -> Array:
        assert codes.min() >= -8
        assert codes.max() <= 7
        self.ops.append("int4")
        return codes

    def node(self, op: str, inputs: Sequence[Array], what: str, **attributes: int) -> Array:
        self.ops.append(op)
        return OPS[op](*inputs, **attributes)

    def cast(self, value: Array, to: npt.DTypeLike, what: str) -> Array:
        self.ops.append("Cast")
        return value.astype(to)

    def once(self, key: tuple[Hashable, ...], make: Callable[[], Array]) -> Array:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def example(kind: str, shape: tuple[int, ...], axis: int) -> tuple[Array, Foldable]:
    """Codes of ``shape`` of all levels, and how they are stored."""
    rng = np.random.default_rng(3)
    if kind == "int8":
        return rng.integers(-127, 127, shape).astype(np.int8), Plain()
    bits = int(kind[-1])
    if kind.startswith("levels"):
        levels = np.sort(rng.choice(np.arange(-126, 127), 2**bits - 1, replace=False)).astype(np.int16)
        return rng.choice(levels, shape).astype(np.int8), Levels(bits, levels)
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
    if kind.startswith("int"):
        return codes.astype(np.int8), Levels(bits, all_levels(bits))
    rows = np.moveaxis(codes, axis, 0).reshape(shape[axis], -1)
    multiples = rng.integers(1, 8, (shape[axis], -(-rows.shape[1] // 16)))
    rows = rows * np.repeat(multiples, 16, axis=1)[:, : rows.shape[1]]
    rest = [n for i, n in enumerate(shape) if i != axis]
    codes = np.moveaxis(rows.reshape(shape[axis], *rest), 0, axis)
    return codes.astype(np.int8), BlockLevels(bits, all_levels(bits), 16, multiples)


KINDS = ["int8", "int2", "int3", "int4", "int5", "int6"]
KINDS += [f"{kind}{bits}" for kind in ("levels", "blocks") for bits in (2, 3, 4)]
SHAPES = [((6, 5, 3, 3), 0), ((5, 32), 0), ((33, 7), 1), ((1, 1), 0), ((3, 50), 0)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("shift", [0, -1])
def test_what_is_spelled_is_what_was_stored(kind: str, shape: tuple[int, ...], axis: int, shift: int) -> None:
    codes, stored = example(kind, shape, axis)
    found = stored.spelled(Calculator(), codes, axis=axis, shift=shift)
    np.testing.assert_array_equal(found, codes + shift)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(stored.unpack(stored.pack(codes, axis=axis), shape, axis=axis), codes)


@pytest.mark.parametrize("kind", ["int4", "levels4", "int2"])
def test_pairs_of_bytes_are_looked_up_in_one_table(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.weights.unpacking.PAIRED", 4)
    monkeypatch.setattr("onnxq.weights.unpacking.PAIRED_ALONE", 4)
    writer = Calculator()
    codes, stored = example(kind, (7, 9), 0)
    for _ in range(2):
        np.testing.assert_array_equal(stored.spelled(writer, codes, axis=0, shift=0), codes)
    assert writer.ops.count("Concat") == 1
    assert writer.ops.count("Gather") == 2


def test_four_bits_may_be_a_tensor_of_their_own() -> None:
    for kind, shift, native in (("int4", 0, True), ("int4", -1, False), ("int3", 0, False), ("levels4", 0, False)):
        writer = Calculator(native=True)
        codes, stored = example(kind, (4, 20), 0)
        np.testing.assert_array_equal(stored.spelled(writer, codes, axis=0, shift=shift), codes + shift)
        assert (writer.ops == ["int4", "Cast"]) == native


def test_zeros_can_be_added_where_they_are_a_level_and_nothing_moves() -> None:
    found = {kind: example(kind, (4, 20), 0)[1].extensible for kind in KINDS}
    assert found == {kind: kind.startswith("int") for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "ops"),
    [
        ("int8", []),
        ("int4", ["Cast", "Gather", "Reshape"]),
        ("levels2", ["Cast", "Gather", "Reshape"]),
        ("int3", ["Cast", "Cast", "Gather", "Reshape", "Add", "Gather", "Reshape"]),
        ("blocks4", ["Cast", "Gather", "Reshape", "Cast", "Mul", "Add", "Gather", "Reshape", "Transpose"]),
    ],
)
def test_the_nodes_of_a_weight(kind: str, ops: list[str]) -> None:
    """Few and always the same: a file of another release must not differ."""
    writer = Calculator()
    codes, stored = example(kind, (32, 8), 1)
    stored.spelled(writer, codes, axis=1, shift=0)
    assert writer.ops == ops
    packed = sum(a.nbytes for a in stored.pack(codes, axis=1).values())
    assert packed <= writer.bytes_written <= packed + 8 * 8  # beside it only shapes


def test_the_bytes_in_the_file() -> None:
    """By hand: the first code of a group in the lowest bits, what is above a byte in extra ones."""
    codes = np.asarray([[-2, 1, 0, -1, 1]], np.int8)
    assert Levels(2, all_levels(2)).pack(codes, axis=0)["packed"].tolist() == [0b01_10_11_00, 0b11]
    three = Levels(3, all_levels(3)).pack(np.asarray([[-4, 3, 0, -1, 1]], np.int8), axis=0)
    # 011 100 111 000 and 000 000 000 101: the low bytes, and 0111 and 0000 above them
    assert three["packed"].tolist() == [0b00_111_000, 0b00_000_101]
    assert three["extra"].tolist() == [0b0000_0111]
    book = Levels(2, np.asarray([-90, -3, 40, 127], np.int8)).pack(np.asarray([[127, -90, 40, -3]], np.int8), axis=0)
    assert book["packed"].tolist() == [0b01_10_00_11]
    blocks = BlockLevels(4, all_levels(4), 2, np.asarray([[3, 1]])).pack(np.asarray([[-6, 9, 7]], np.int8), axis=0)
    assert blocks["packed"].tolist() == [0b1011_0110, 0b1000_1111]
    assert blocks["multiples"].tolist() == [[3, 1]]
    kernel = Nibbles(2, np.asarray([[8, 3]], np.uint8)).pack(np.asarray([[1, 15, 7]], np.uint8), axis=0)
    assert kernel["blocks"].tolist() == [[[0xF1], [0x37]]]  # the last block is filled up with its zero
    assert kernel["zero_point"].tolist() == [0x38]
