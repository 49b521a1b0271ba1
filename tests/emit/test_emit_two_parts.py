"""Linear layers whose input is rounded in two parts: what they compute, and when there are any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from emitting import Emitted, emitted, session, sqnr
from zoo import Net, feeds

from onnxq.config import Config
from onnxq.emit import weight_key
from onnxq.measure.assignment import assignments
from onnxq.measure.kernels import kernel_map
from onnxq.plan import KeptFloat, ReasonCode, Storage

TWO_PARTS = KeptFloat.of(ReasonCode.TWO_PARTS, Storage.TWO_PARTS)
F32 = Any


def product(*, bias: bool = True, rank: int = 2) -> onnx.ModelProto:
    n = Net()
    n.linear("x", 64, 48, name="mm", bias=bias, out="y")
    shape = ["n", *[3] * (rank - 2)]
    return n.model({"x": [*shape, 64]}, {"y": [*shape, 48]})


def gemm(*, transposed: bool) -> onnx.ModelProto:
    n = Net()
    shape = (48, 64) if transposed else (64, 48)
    n("Gemm", "x", n.weight("w", *shape, fan=64), n.vector("b", 48), name="mm", transB=int(transposed), out="y")
    return n.model({"x": ["n", 64]}, {"y": ["n", 48]})


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "product": lambda: product(bias=False),
    "product and bias": product,
    "product of rank 3": lambda: product(rank=3),
    "gemm": lambda: gemm(transposed=False),
    "gemm, transposed": lambda: gemm(transposed=True),
}


def rounded(x: F32) -> tuple[F32, F32, int]:
    """Codes, scale and zero point as DynamicQuantizeLinear is defined."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = int(np.clip(np.rint((0 - low) / scale), 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8), scale, zero


def expected(e: Emitted, x: F32) -> F32:
    """What the layer computes, in numpy: sums of integers, each times its scales in float32."""
    (weight,) = e.plan.weights
    stored = e.parameters.weights[weight_key(weight)]
    columns = weight.granularity.axis == 1  # type: ignore[union-attr]
    codes = (stored.codes if columns else stored.codes.T).astype(np.int64)
    scales = stored.params.scale.reshape(-1)
    total = np.zeros(1, np.float32)
    for _ in range(2):
        q, scale, zero = rounded(x)
        sums = (q.astype(np.int64) - zero) @ codes
        total = total + sums.astype(np.float32) * (scale * scales)
        x = x - (q.astype(np.float32) - np.float32(zero)) * scale
    bias = [e.parameters.biases.get((b.node, b.index)) for b in e.plan.biases]
    constants = {
        n: v.const_value.numpy() for n, v in e.prepared.graph.initializers.items() if v.const_value is not None
    }
    added = [constants[b.tensor] if data is None else data for b, data in zip(e.plan.biases, bias, strict=True)]
    return total + sum(added, np.float32(0))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimized", [False, True])
def test_it_computes_what_numpy_does(name: str, optimized: bool) -> None:
    proto = MODELS[name]()
    e = emitted(proto, keep_float={"mm": TWO_PARTS})
    assert [w.storage for w in e.plan.weights] == [Storage.TWO_PARTS]
    for scale in (0.01, 1.0, 100.0):
        (feed,) = feeds(proto, 1, scale=scale)
        (found,) = session(e.content, optimized=optimized).run(None, feed)
        wanted = expected(e, feed["x"])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("name", MODELS)
def test_both_products_run_on_integers_and_the_layer_keeps_its_name(name: str) -> None:
    e = emitted(MODELS[name](), keep_float={"mm": TWO_PARTS})
    kernels = kernel_map(e.content)
    assert [n.kind for n in kernels.nodes if n.kind.endswith("compute")] == ["integer compute"] * 2
    found = {a.node: a for a in assignments(e.content, kernels)}
    assert found["mm"].integer
    assert e.plan.layers == ("mm",)
    (skipped,) = e.plan.skipped
    assert skipped.code is ReasonCode.TWO_PARTS


def test_an_input_with_outliers_loses_little_more_than_its_weights_do() -> None:
    proto = product()
    (feed,) = feeds(proto, 1)
    feed["x"][:, 5] *= 300.0
    reference = session(proto).run(None, feed)
    noises = {}
    for storage in (Storage.DYNAMIC, Storage.TWO_PARTS, Storage.PACKED):
        e = emitted(proto, keep_float={"mm": KeptFloat("measured", storage)})
        noises[storage] = sqnr(reference, session(e.content).run(None, feed))
    assert noises[Storage.TWO_PARTS] > noises[Storage.DYNAMIC] + 3.0
    assert noises[Storage.TWO_PARTS] > noises[Storage.PACKED] - 0.1


def test_layers_of_one_input_round_it_once() -> None:
    n = Net()
    outs = {n("MatMul", "x", n.weight(f"{name}_w", 64, 32, fan=64), name=name): ["b", 4, 32] for name in "qkv"}
    e = emitted(n.model({"x": ["b", 4, 64]}, outs), keep_float=dict.fromkeys("qkv", TWO_PARTS))
    found = [node.op_type for node in e.proto.graph.node]
    assert found.count("DynamicQuantizeLinear") == 2
    assert found.count("Sub") == 1
    assert found.count("MatMulIntegerToFloat") == 6


def test_where_there_is_no_such_kernel_the_weight_is_stored() -> None:
    standard = emitted(product(), config=Config(operators="standard"), keep_float={"mm": TWO_PARTS})
    assert [w.storage for w in standard.plan.weights] == [Storage.PACKED]
    n = Net()
    n("Conv", "x", n.weight("w", 64, 32, 3, 3), name="conv", out="y")
    e = emitted(n.model({"x": [1, 32, 8, 8]}, {"y": [1, 64, 6, 6]}), keep_float={"conv": TWO_PARTS})
    assert [w.storage for w in e.plan.weights] == [Storage.PACKED]


def test_a_bias_that_is_no_vector_is_added_behind() -> None:
    n = Net()
    n("Gemm", "x", n.weight("w", 64, 48), n.const("b", np.float32([[2.5]])), name="mm", out="y")
    proto = n.model({"x": ["n", 64]}, {"y": ["n", 48]})
    e = emitted(proto, keep_float={"mm": TWO_PARTS})
    (feed,) = feeds(proto, 1)
    assert sqnr(session(proto).run(None, feed), session(e.content).run(None, feed)) > 30.0


@pytest.mark.parametrize("text", ["int4", "int4:32", "codebook4"])
def test_few_bits_may_be_all_that_the_file_holds(text: str) -> None:
    proto = product()
    e = emitted(proto, config=Config(weights=text, first_last=text), keep_float={"mm": TWO_PARTS})
    assert [w.storage for w in e.plan.weights] == [Storage.TWO_PARTS]
    (feed,) = feeds(proto, 1)
    packed = emitted(
        proto, config=Config(weights=text, first_last=text), keep_float={"mm": KeptFloat("r", Storage.PACKED)}
    )
    ours, theirs = (session(of.content).run(None, feed) for of in (e, packed))
    assert sqnr(theirs, ours) > 25.0
