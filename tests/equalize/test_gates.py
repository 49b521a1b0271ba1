"""Channels scaled through HardSwish and SiLU: exactly, on integers, and what it is worth."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from equalizing import RNG, TARGET, feeds, model, node, rand, reseed, spread
from equivalence import equivalent

from onnxq import Config, Result, quantize
from onnxq.equalize import Terms, equalized, equalized_as
from onnxq.equalize.sites import find_sites
from onnxq.graph.edit import is_op
from onnxq.measure.kernels import kernel_map
from onnxq.plan import make_plan

CHANNELS = 16
HARD = {"alpha": 1 / 6, "beta": 0.5}


def gated(
    kind: str = "HardSwish", behind: str = "", *, channels: int = CHANNELS, outputs: tuple[str, ...] = ()
) -> ir.Model:
    """Conv, HardSwish or SiLU, what ``behind`` says ("shift", "shifts", "excite"), depthwise Conv, Conv."""
    size = spread(channels, 2.0)[:, None, None, None]
    constants = {"w1": rand(channels, 3, 3, 3) * size, "b1": rand(channels), "w2": rand(channels, 1, 3, 3)}
    constants |= {"w3": rand(4, channels, 1, 1) / size[:, 0, 0, 0][None, :, None, None], "b3": rand(4)}
    function = node("HardSigmoid", "c1", "g", **HARD) if kind == "HardSwish" else node("Sigmoid", "c1", "g")
    nodes = [node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]), function, node("Mul", "c1 g", "h")]
    last = "h"
    if behind.startswith("shift"):
        constants["s"] = rand(1) if behind == "shift" else rand(channels, 1, 1)
        nodes.append(node("Add", "h s", "a"))
        last = "a"
    elif behind == "excite":
        constants |= {"e1": rand(4, channels, 1, 1), "e2": rand(channels, 4, 1, 1)}
        nodes += [node("GlobalAveragePool", "h", "p"), node("Conv", "p e1", "e"), node("Relu", "e", "r")]
        nodes += [node("Conv", "r e2", "f"), node("HardSigmoid", "f", "k"), node("Mul", "k h", "a")]
        last = "a"
    nodes += [node("Conv", f"{last} w2", "c2", group=channels, pads=[1, 1, 1, 1]), node("Conv", "c2 w3 b3", "y")]
    return model(nodes, ("batch", 3, 8, 8), constants, ("y", *outputs))


def sites_of(graph: ir.Model) -> dict[str, list[str]]:
    return {s.tensor: [r.tensor for r in s.readers] for s in find_sites(graph, costly=True) if s.gate is not None}


@pytest.mark.parametrize("kind", ["HardSwish", "SiLU"])
@pytest.mark.parametrize("behind", ["", "shift", "shifts", "excite"])
def test_any_factors_leave_what_is_computed(kind: str, behind: str) -> None:
    graph = gated(kind, behind)
    readers = {"": ["h"], "shift": ["a"], "shifts": ["a"], "excite": ["p", "a"]}[behind]
    assert {tensor: sorted(found) for tensor, found in sites_of(graph).items()} == {"c1": sorted(readers)}
    assert all(s.gate is None for s in find_sites(graph))  # it costs time
    scaled = ir.serde.deserialize_model(ir.serde.serialize_model(graph))
    before = {n.name for n in scaled.graph}
    (site,) = (s for s in find_sites(scaled, costly=True) if s.gate is not None)
    site.scale(np.exp(RNG.standard_normal(site.channels)))
    for feed in feeds(graph, 3):
        assert equivalent(graph, scaled, feed) < 1e-5
    assert {n.name for n in scaled.graph} - before == {site.gate.scaled}  # type: ignore[union-attr]
    (convolution,) = (n for n in scaled.graph if n.name == site.gate.scaled)  # type: ignore[union-attr]
    assert (convolution.attributes["group"].as_int(), convolution.inputs[0].name) == (CHANNELS, "c1")


def test_not_through_what_others_read_too() -> None:
    assert sites_of(gated(outputs=("c1",))) == {}
    assert sites_of(gated(outputs=("h",))) == {}
    assert sites_of(gated(outputs=("g",))) == {}


def test_squeeze_and_excite_lets_factors_through_at_no_cost() -> None:
    constants = {"w1": rand(8, 3, 1, 1), "e1": rand(4, 8, 1, 1), "e2": rand(8, 4, 1, 1), "w2": rand(5, 8, 1, 1)}
    nodes = [node("Conv", "x w1", "c"), node("Relu", "c", "h"), node("GlobalAveragePool", "h", "p")]
    nodes += [node("Conv", "p e1", "e"), node("Relu", "e", "r"), node("Conv", "r e2", "f"), node("Sigmoid", "f", "k")]
    nodes += [node("Mul", "h k", "m"), node("Conv", "m w2", "y")]
    graph = model(nodes, ("batch", 3, 6, 6), constants)
    sites = {site.tensor: sorted(r.tensor for r in site.readers) for site in find_sites(graph)}
    assert sites == {"c": ["m", "p"], "e": ["r"]}
    scaled = ir.serde.deserialize_model(ir.serde.serialize_model(graph))
    for site in find_sites(scaled):
        site.scale(np.exp(RNG.standard_normal(site.channels)))
    assert equivalent(graph, scaled, feeds(graph, 1)[0]) < 1e-5


def test_a_map_that_multiplies_another_map_is_no_gate_of_channels() -> None:
    constants = {"w1": rand(8, 3, 1, 1), "w2": rand(5, 8, 1, 1), "w0": rand(8, 3, 1, 1)}
    nodes = [node("Conv", "x w1", "c"), node("Conv", "x w0", "o"), node("Mul", "c o", "m"), node("Conv", "m w2", "y")]
    assert find_sites(model(nodes, ("batch", 3, 6, 6), constants)) == []


def made(**choices: object) -> Result:
    graph = gated(channels=64)
    data = {"x": np.concatenate([f["x"] for f in feeds(graph, 64)])}
    return quantize(graph, data, config=Config(placement="all", min_agreement=0.0, guard_sqnr=-200.0, **choices))  # type: ignore[arg-type]


def test_gates_run_on_integers_and_halve_the_noise() -> None:
    plain = made(equalize="none")
    reseed()  # the same network and data
    equal = made(equalize="all")
    assert equal.report.sqnr_db > plain.report.sqnr_db + 6.0
    assert any("through their activation function" in note for note in equal.report.notes)
    ran = [k.op for k in kernel_map(equal.proto().SerializeToString()).nodes]
    assert ran.count("QLinearConv") == 4
    assert not {"Clip", "Conv", "HardSigmoid", "Mul"} & set(ran)


def test_gates_that_compute_in_float_stay_as_they_are() -> None:
    graph = gated(channels=64)
    given = feeds(graph, 32)
    plan = make_plan(graph, Config(placement="all"), TARGET)
    found = equalized(graph, plan, given, method="mse", terms=Terms(costly=True))
    assert dict(found.gates) == {"HardSigmoid_g_scaled": "Conv_c1"}
    assert found.costs
    assert found.added == {}
    again = equalized_as(graph, found.steps)
    assert ir.serde.serialize_model(again) == ir.serde.serialize_model(found.model)
    assert not any(is_op(n, "HardSigmoid") for n in again.graph)
    floats = make_plan(graph, Config(placement="all").with_excluded(("Conv_c1",)), TARGET)
    assert "HardSigmoid_g" not in floats.integer
    assert not equalized(graph, floats, given, method="mse", terms=Terms(costly=True)).gates
