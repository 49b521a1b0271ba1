"""Channels that are multiplied in float beside a layer: the same numbers, taken where one channel drowns the others."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from equalizing import RNG, TARGET, feeds, model, node, rand
from equivalence import equivalent

from onnxq import Result, quantize
from onnxq.config import Config
from onnxq.equalize import Terms, equalized, equalized_as
from onnxq.equalize.factors import best_without, from_steps, to_steps
from onnxq.equalize.reads import Read
from onnxq.equalize.sites import find_sites
from onnxq.plan import make_plan


def some_factors(channels: int) -> np.ndarray:
    factors = np.exp(0.5 * RNG.standard_normal(channels))
    factors[[1, channels - 1]] = 0.0
    return factors


LAYERS = {
    "matmul": [node("MatMul", "s w", "y")],
    "matmul with a bias": [node("MatMul", "s w", "m"), node("Add", "b m", "y")],
    "bias, then more": [node("MatMul", "s w", "m"), node("Add", "m b", "a"), node("Tanh", "a", "y")],
    "two readers": [node("MatMul", "s w", "m"), node("MatMul", "s v", "n"), node("Add", "m n", "y")],
    "read twice": [node("MatMul", "s w", "m"), node("Tanh", "m", "n"), node("Add", "m n", "y")],
}


@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_computed_stays(layer: str) -> None:
    constants = {"w": rand(16, 8), "v": rand(16, 8), "b": rand(8)}
    graph = model([node("Sigmoid", "x", "s"), *LAYERS[layer]], ("batch", 6, 16), constants)
    changed = ir.serde.deserialize_model(ir.serde.serialize_model(graph))
    (site,) = find_sites(changed, costly=True)
    added = site.scale(some_factors(16))
    present = {n.name for n in changed.graph}
    assert set(added) <= present
    assert {n.name for n in graph.graph} <= present
    assert present - {n.name for n in graph.graph} == set(added)
    assert [o.name for o in changed.graph.outputs] == [o.name for o in graph.graph.outputs]
    for feed in feeds(graph, 3):
        assert equivalent(graph, changed, feed) < 1e-5


def test_nodes_stay_in_an_order_that_can_run() -> None:
    """Readers are told in the order in which they came to read, which need not be that of the graph."""
    nodes = [node("Sigmoid", "x", "s"), *LAYERS["two readers"]]
    changed = model(nodes, ("batch", 6, 16), {"w": rand(16, 8), "v": rand(16, 8)})
    early = next(n for n in changed.graph if n.name == "MatMul_m")
    source = early.inputs[0]
    early.replace_input_with(0, None)
    early.replace_input_with(0, source)
    (site,) = find_sites(changed, costly=True)
    assert [r.node.name for r in site.readers] == ["MatMul_n", "MatMul_m"]
    site.scale(some_factors(16))
    onnx.checker.check_model(ir.to_proto(changed))


@pytest.mark.parametrize(("attributes", "shape"), [({"alpha": 0.5, "beta": 2.0}, (16, 8)), ({"transB": 1}, (8, 16))])
def test_what_a_gemm_computes_stays(attributes: dict[str, float], shape: tuple[int, int]) -> None:
    nodes = [node("Sigmoid", "x", "s"), node("Gemm", "s w b", "y", **attributes)]
    graph = model(nodes, ("batch", 16), {"w": rand(*shape), "b": rand(8)})
    changed = ir.serde.deserialize_model(ir.serde.serialize_model(graph))
    (site,) = find_sites(changed, costly=True)
    site.scale(some_factors(16))
    for feed in feeds(graph, 3):
        assert equivalent(graph, changed, feed) < 1e-5


def test_factors_survive_their_steps() -> None:
    factors = from_steps(np.array([-128, -48, 0, 5, 48], np.int8))
    assert factors[0] == 0.0
    assert factors[2] == 1.0
    assert (from_steps(to_steps(factors)) == factors).all()


def outlying(rows: int, channels: int, *, times: float) -> np.ndarray:
    """Rows in which channel 3 is ``times`` as large as the others, as in the hidden layer of a trained transformer."""
    found = RNG.standard_normal((rows, channels)).astype(np.float32)
    found[:, 3] *= times
    return found


def test_the_channel_that_drowns_the_others_is_found() -> None:
    weight = rand(64, 32)[None, :, None, :]
    read = Read(outlying(500, 64, times=100.0), weight, 8, 8, unseen=outlying(500, 64, times=100.0))
    factors, noise = best_without([read], method="mse")
    assert np.flatnonzero(factors == 0).tolist() == [3]
    plain = Read(outlying(500, 64, times=1.0), weight, 8, 8, unseen=outlying(500, 64, times=1.0))
    ones, before = best_without([plain], method="mse")
    assert (ones > 0).all()
    # What the large channel carries makes the signal larger; relative to that the noise is the smaller one.
    assert noise < before


def marked(count: int) -> list[dict[str, np.ndarray]]:
    """Sequences whose first row alone has a 1 in front, as a token that begins them has."""
    rows = np.random.default_rng(1).standard_normal((count, 6, 32)).astype(np.float32)
    rows[:, :, 0] = 0.0
    rows[:, 0, 0] = 1.0
    return [{"x": row[None]} for row in rows]


def massive() -> ir.Model:
    """Two layers; one channel between them is hundreds of times as large as the others, in the first row only.

    Its weights are large too: what a factor takes from the activations it would add to them.
    """
    rng = np.random.default_rng(2)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((32, 64), (64, 32)))
    first, second = first / 6, second / 8
    first[:, 5] = 0.0
    first[0, 5] = 20.0
    second[5] *= 20.0
    nodes = [node("MatMul", "x w1", "h"), node("Tanh", "h", "t"), node("Mul", "t h", "g"), node("MatMul", "g w2", "c")]
    nodes += [node("Add", "c x", "a"), node("LayerNormalization", "a one none", "y")]
    constants = {"w1": first, "w2": second, "one": np.ones(32, np.float32), "none": np.zeros(32, np.float32)}
    return model(nodes, ("batch", 6, 32), constants)


def quantized(**choices: object) -> Result:
    data = {"x": np.concatenate([f["x"] for f in marked(128)])}
    return quantize(massive(), data, config=Config(placement="all", **choices))  # type: ignore[arg-type]


def test_taken_out_where_it_is_worth_the_nodes() -> None:
    graph = massive()
    plan = make_plan(graph, Config(placement="all"), TARGET)
    found = equalized(graph, plan, marked(32), method="mse", terms=Terms(costly=True))
    assert "carries channels that integers are too coarse for" in found.added.values()
    assert "the largest stay float" in found.notes[-1]
    again = equalized_as(graph, found.steps)
    assert ir.serde.serialize_model(again) == ir.serde.serialize_model(found.model)


def test_layers_need_not_be_given_back_where_one_channel_is_too_large() -> None:
    limits = {"min_agreement": 0.0, "guard_sqnr": 33.0, "target": "x86-vnni"}
    left, result = quantized(equalize="none", **limits), quantized(**limits)
    assert any("because they cost too much accuracy" in note for note in left.report.notes)
    assert not any("because they cost too much accuracy" in note for note in result.report.notes)
    assert set(result.plan.anchors) == {"MatMul_h", "MatMul_c"}
    assert result.good
    assert result.report.sqnr_db > left.report.sqnr_db + 3.0
