"""What formats say of themselves: bytes, bits a weight, names of files; and the reference of every representation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxq.cli.quantizing import suffix
from onnxq.config import PRESETS, Config, preset
from onnxq.errors import NumericsError
from onnxq.numerics import INT8_NARROW, UINT4, PerAxis, PerBlock, QuantParams
from onnxq.numerics.packing import Packing
from onnxq.ranges import Fit
from onnxq.weights import NBits, StoredWeight, for_rows, weight_format
from onnxq.weights.format import Rows
from onnxq.weights.representation import BlockLevels, Levels, Plain, all_levels

NAMES = ("int2", "int3", "int4", "int5", "int6", "int8", "int2:16", "int3:32", "int4:64", "uint4:32")
NAMES += ("codebook2", "codebook3", "codebook4")
HOW = Fit("mse", "tensor", "none", "nearest")


def quantized(text: str, channels: int, inputs: int) -> Rows:
    weight = np.random.default_rng(7).standard_normal((1, channels, inputs)).astype(np.float32)
    qtype = UINT4 if text.startswith("uint") else INT8_NARROW
    return weight_format(text).quantized(weight, None, qtype=qtype, how=HOW, least=np.zeros(()))


@pytest.mark.parametrize("text", NAMES)
@pytest.mark.parametrize(("channels", "inputs"), [(24, 96), (7, 45), (1, 3)])
def test_bytes_are_those_of_the_arrays_in_the_file(text: str, channels: int, inputs: int) -> None:
    found = quantized(text, channels, inputs)
    beside = found.scale.size * 4 + (0 if text.startswith("uint") else channels)  # the zero points of a kernel
    own = Packing(weight_format(text).bits).table(all_levels(4)).size if text.startswith("codebook") else 0
    arrays = found.representation.pack(found.codes[0], axis=0)
    assert sum(a.nbytes for a in arrays.values()) + beside + own == weight_format(text).nbytes(channels, inputs)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int8", 8 + 40 / 1024),
        ("int3", 3 + 40 / 1024),
        ("int4:32", 4 + 8 / 32 + 40 / 1024),
        ("codebook4", 4 + 40 / 1024 + 512 * 8 / (64 * 1024)),
        ("codebook3", 3 + 40 / 1024 + 16384 * 8 / (64 * 1024)),
        ("codebook2", 2 + 40 / 1024 + 1024 * 8 / (64 * 1024)),
        ("uint4:32", 4 + 36 / 32),
    ],
)
def test_bits_a_weight_are_those_of_the_table_of_formats(text: str, bits: float) -> None:
    assert weight_format(text).bits_per_weight(64, 1024) == pytest.approx(bits)


def test_a_kernel_of_blocks_without_zero_points() -> None:
    name = weight_format("int4").in_kernel
    assert name is not None
    assert str(NBits(name)) == "int4:32"
    assert NBits(name).bits_per_weight(64, 1024) == pytest.approx(4 + 32 / 32)
    assert NBits(name) != weight_format("int4:32")  # of the same name, and stored in another way
    for text in ("int3", "int8", "int2:16", "codebook4"):
        assert weight_format(text).in_kernel is None


@pytest.mark.parametrize("text", NAMES)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_reference_reads_what_was_packed(text: str, axis: int) -> None:
    found = quantized(text, 9, 45)
    codes = found.codes[0] if axis == 0 else np.ascontiguousarray(found.codes[0].T)
    stored = found.representation
    np.testing.assert_array_equal(stored.unpack(stored.pack(codes, axis=axis), codes.shape, axis=axis), codes)


@pytest.mark.parametrize("text", ["int4:32", "uint4:16"])
def test_blocks_of_the_kernel_are_laid_out_as_it_reads_them(text: str) -> None:
    """Channel by channel, block by block, the first code of a byte in its low bits; by loops."""
    name, size = weight_format(text).in_kernel, weight_format(text).block
    assert name is not None
    kernel = NBits(name)
    weight = np.random.default_rng(3).uniform(-0.3, 1.0, (1, 3, 40)).astype(np.float32)
    found = kernel.quantized(weight, None, qtype=UINT4, how=HOW, least=np.zeros(()))
    arrays = found.representation.pack(np.ascontiguousarray(found.codes[0].T), axis=1)
    assert ("zero_point" in arrays) == kernel.offset
    real = np.zeros((3, 40), np.float32)
    for channel in range(3):
        for i in range(40):
            block, at = divmod(i, size)
            code = int(arrays["blocks"][channel, block, at // 2]) >> 4 * (at % 2) & 15
            zero = 8
            if kernel.offset:
                row = arrays["zero_point"].reshape(3, -1)[channel]
                zero = int(row[block // 2]) >> 4 * (block % 2) & 15
            real[channel, i] = np.float32(code - zero) * found.scale[0, channel, block]
    chosen = QuantParams(UINT4, found.scale[0], found.zero[0], PerBlock(1, size))
    np.testing.assert_array_equal(real, StoredWeight(found.codes[0], chosen, found.representation).dequantize())
    assert np.square(real - weight[0]).sum() < 0.02 * np.square(weight).sum()


def test_blocks_are_stored_in_lowest_terms() -> None:
    weight = np.zeros((1, 2, 48))
    weight[0, 0, :16] = 6.0 * np.tile([1.0, -1.0], 8)  # every code the largest there is
    weight[0, 0, 16:32] = 0.5
    weight[0, 1, 32:] = [1.0] + [0.25] * 15
    found = weight_format("int4:16").quantized(weight, None, qtype=INT8_NARROW, how=HOW, least=np.zeros(()))
    stored = found.representation
    assert isinstance(stored, BlockLevels)
    codes = found.codes[0].reshape(2, 3, 16)
    np.testing.assert_array_equal(stored.multiples, np.maximum(np.gcd.reduce(codes, axis=2), 1))
    assert stored.multiples[1, 0] == stored.multiples[1, 1] == 1  # nothing but zeros


def test_what_is_known_of_a_weight_is_all_arrays() -> None:
    """What a checkpoint saves makes another representation of the same format."""
    (one, other) = (quantized("codebook3", *shape).representation for shape in ((9, 45), (20, 30)))
    assert isinstance(one, Levels)
    assert set(one.state()) == {"levels"}
    assert set(quantized("int4:64", 9, 45).representation.state()) == {"levels", "multiples"}
    assert set(quantized("uint4:32", 9, 45).representation.state()) == {"zero"}
    assert quantized("int8", 9, 45).representation.state() == {}
    again = replace(other, **one.state())
    assert isinstance(again, Levels)
    np.testing.assert_array_equal(again.levels, one.levels)


def test_a_weight_that_is_all_zero_has_a_codebook_too() -> None:
    found = weight_format("codebook4").quantized(
        np.zeros((1, 3, 20)), None, qtype=INT8_NARROW, how=HOW, least=np.zeros(())
    )
    arrays = found.representation.pack(found.codes[0], axis=0)
    assert not found.representation.unpack(arrays, (3, 20), axis=0).any()


def test_codes_that_are_no_levels_are_refused() -> None:
    with pytest.raises(NumericsError, match="codes that 3 bits do not hold"):
        Levels(3, all_levels(3)).pack(np.asarray([[4]]), axis=0)
    for levels in ([], [1, 0], [1, 1], list(range(9))):
        with pytest.raises(NumericsError, match="3 bits name 1 to 8 levels, in ascending order"):
            Levels(3, np.asarray(levels, np.int16))
    for few, multiple in ((np.asarray([1, 2]), 1), (all_levels(2), 0)):
        with pytest.raises(NumericsError, match="0 among their levels, and multiples of at least 1"):
            BlockLevels(2, few, 16, np.asarray([[multiple]]))
    assert Plain().pack(np.asarray([[4]]), axis=0)["quantized"].tolist() == [[4]]


def test_rows_are_blocks_of_their_own() -> None:
    for text, rows in (("int4:32", "int4"), ("uint4:32", "int4"), ("int3", "int3"), ("codebook4", "codebook4")):
        assert str(for_rows(weight_format(text))) == rows


def test_no_two_formats_give_a_file_the_same_name() -> None:
    choices = [(w, a) for w in NAMES for a in ("uint8", "uint6", "uint4", "none") if a == "none" or w[0] != "u"]
    choices += [("int4:32", "uint8"), ("int4:32", "none"), ("uint4:64", "none")]
    names = {choice: suffix(Config(weights=choice[0], activations=choice[1])) for choice in choices}
    assert len(set(names.values())) == len(names)
    assert {name: suffix(preset(name)) for name in PRESETS} == {name: name for name in PRESETS}
    assert names["int4", "none"] == "w4a32"
    assert names["int4:64", "uint8"] == "w4g64a8"
    assert names["codebook4", "uint8"] == "codebook4a8"
    assert names["uint4:32", "none"] == "uint4g32a32"
    assert suffix(Config(weights="auto", size_budget=0.5)) == "mixed"


def test_the_scale_of_a_channel_reads_its_codes() -> None:
    found = quantized("codebook4", 5, 64)
    chosen = QuantParams(INT8_NARROW, found.scale[0].astype(np.float32), found.zero[0], PerAxis(0))
    kept = StoredWeight(found.codes[0], chosen, found.representation).kept(np.array)
    assert isinstance(kept, StoredWeight)
    assert kept.representation is found.representation
    np.testing.assert_array_equal(kept.dequantize(), found.codes[0] * found.scale[0].astype(np.float32)[:, None])
