"""Stacks of matrices in every format: one matrix after another, exact, and as small as the format says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from emitting import emitted, session
from sharing import run, stack, weight_bytes
from zoo import Net, feeds, prepared

from onnxq import Config, quantize
from onnxq.config import preset
from onnxq.emit import weight_key
from onnxq.measure import kernel_map
from onnxq.numerics import noise
from onnxq.plan import Storage

FORMATS = ["int8", "int6", "int5", "int4", "int3", "int2", "int4:32", "int3:16", "int2:64", "codebook4", "codebook2"]
SHAPES = {(4, 64, 48): 4, (3, 37, 41): 4, (4, 1, 64, 48): 5, (2, 3, 1, 32, 40): 6, (8, 4, 64): 4}


def with_every_matrix(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return session(proto).run(None, {"x": x})[0]


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_runtime_reads_is_what_was_stored(shape: tuple[int, ...], text: str) -> None:
    """A product with the identity shows every entry of every matrix."""
    n = Net(1)
    n("MatMul", "x", n.weight("stack", *shape, fan=shape[-2]), name="stacked", out="y")
    size = [*[1] * (len(shape) - 2), shape[-2], shape[-2]]
    proto = n.model({"x": size}, {"y": [*shape[:-1], shape[-1]]})
    e = emitted(proto, config=Config(weights=text, first_last=text))
    (weight,) = e.plan.weights
    assert weight.storage is Storage.PACKED
    eye = np.eye(shape[-2], dtype=np.float32).reshape(size)
    for optimized in (True, False):
        (found,) = session(e.content, optimized=optimized).run(None, {"x": eye})
        np.testing.assert_allclose(found, e.parameters.weights[weight_key(weight)].dequantize(), rtol=0, atol=1e-7)
    scales = e.parameters.weights[weight_key(weight)].params.scale
    few = shape[-2] < 8
    assert scales.size == (shape[-1] if few else int(np.prod(shape)) // shape[-2])


@pytest.mark.parametrize("text", ["int8", "int4", "int4:32", "codebook3"])
def test_a_matrix_of_a_stack_is_rounded_as_it_would_be_alone(text: str) -> None:
    """Matrices a thousand times as large beside it change nothing."""
    n, one = Net(2), Net(2)
    data = n.rng.standard_normal((3, 64, 32)).astype(np.float32) * np.float32([1, 1000, 0.01])[:, None, None]
    n("MatMul", "x", n.const("w", data), name="stacked", out="y")
    one("MatMul", "x", one.const("w", data[:1]), name="stacked", out="y")
    if text == "codebook3":  # its levels are of all matrices together
        data[1:] /= np.float32([1000, 0.01])[:, None, None]
    found = []
    for net, count in ((n, 3), (one, 1)):
        proto = net.model({"x": [count, 8, 64]}, {"y": [count, 8, 32]})
        e = emitted(proto, config=Config(weights=text, first_last=text, activations="none"))
        found.append(next(iter(e.parameters.weights.values())).dequantize())
    levels = [noise(data[k], found[0][k]).sqnr_db for k in range(3)]
    assert min(levels) > (35.0 if text == "int8" else 10.0)
    assert max(levels) - min(levels) < 3.0


PRESETS = {
    "int8": Config(placement="all"),
    "w4a8": replace(preset("w4a8"), placement="all"),
    "w4": preset("w4"),
    "w4 everywhere": replace(preset("w4"), first_last="int4:32"),
    "uint4": replace(preset("w4"), weights="uint4:16", first_last="uint4:32"),
    "w2": Config(weights="int2", first_last="int2", placement="all", min_agreement=0.0, guard_sqnr=-99.0),
    "nearest": Config(weights="int4:64", first_last="int4:64", rounding="nearest", placement="all"),
    "adapted": Config(weights="int4:32", first_last="int4:32", adapt="fast", placement="all"),
    "native": Config(weights="int4", first_last="int4", int4_storage="native", placement="all"),
    "standard": Config(weights="int4:32", first_last="int4:32", operators="standard", placement="all"),
}


@pytest.mark.parametrize(
    ("name", "with_data"),
    [*((name, True) for name in PRESETS), *((name, False) for name in ("int8", "w4", "w2"))],
)
@pytest.mark.parametrize(("shape", "rank"), [*SHAPES.items(), ((64, 48), 3), ((1, 64, 48), 3), ((1, 64, 48), 2)])
def test_every_preset_takes_weights_of_every_rank(
    shape: tuple[int, ...], rank: int, name: str, with_data: bool
) -> None:
    proto, data = stack(*shape, rank=rank)
    result = quantize(proto, data if with_data else None, config=PRESETS[name])
    onnx.load_from_string(result.proto().SerializeToString())
    assert "stacked" in {w.node for w in result.plan.weights}
    least = 2.0 if name == "w2" else 9.0
    assert noise(run(proto, data)[0], run(result.proto(), data)[0]).sqnr_db > least
    assert len(result.proto().SerializeToString()) < len(proto.SerializeToString())
    if len(shape) > 2 and shape[0] != 1:
        reasons = {s.node: s.reason for s in result.plan.skipped}
        assert f"its weight has rank {len(shape)}" in reasons["stacked"]
    elif name == "w4 everywhere":
        kernels = [k.op for k in kernel_map(result.proto().SerializeToString()).nodes]
        assert kernels.count("MatMulNBits") == 2


def test_experts_of_four_bits_take_a_sixth() -> None:
    proto, data = stack(8, 128, 96, rank=4)
    result = quantize(proto, data, config=PRESETS["w4 everywhere"])
    assert weight_bytes(result.proto()) < weight_bytes(proto) / 6
    assert len(result.proto().SerializeToString()) < 0.2 * len(proto.SerializeToString())


@pytest.mark.parametrize("with_data", [True, False])
def test_layers_are_reported_under_their_own_names(with_data: bool) -> None:
    """Also where few bits make all other names short, and ranges are measured at run time."""
    n = Net(4)
    x = n("Relu", n.linear("x", 64, 96, name="encoder.first"), name="r1")
    x = n("Relu", n.linear(x, 96, 96, name="encoder.second"), name="r2")
    n("Gemm", x, n.weight("w", 32, 96), n.vector("b", 32), name="decoder.last", out="y", transB=1)
    proto = n.model({"x": ["n", 64]}, {"y": ["n", 32]})
    data = feeds(proto, 1)
    result = quantize(proto, {"x": np.concatenate([data[0]["x"]] * 16)} if with_data else None, config=preset("w4"))
    assert {a.node for a in result.report.assignments} == {"encoder.first", "encoder.second", "decoder.last"}
    assert all(a.integer for a in result.report.assignments)
    assert {n.name for n in prepared(proto).graph} >= {a.node for a in result.report.assignments}
