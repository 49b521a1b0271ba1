"""Layers adapted one after the other: what they are told to make up for, and the errors that are reported of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from adapting import built, correlated
from bench import Bench
from zoo import Net, prepared

from onnxq import Config
from onnxq.adapt.layerwise import Layer, adapt_layers, linear_layers
from onnxq.adapt.simulation import Simulation, simulated
from onnxq.adapt.walk import Walk
from onnxq.build.candidate import Built
from onnxq.calibrate.feeds import Feed
from onnxq.graph.io import serialize
from onnxq.parameters.choose import Parameters
from onnxq.runtime.session import open_session, run

F32 = npt.NDArray[np.float32]
COUNT = 1024


def skipped() -> onnx.ModelProto:
    """A layer whose output is added to a branch that 2 bits have spoilt by then."""
    n = Net(6)
    x = n("Relu", n.linear("x", 32, 48, name="a"), name="ra")
    y = n("Relu", n.linear(x, 48, 64, name="b"), name="rb")
    n.linear(n("Add", x, n.linear(y, 64, 48, name="c"), name="sum"), 48, 10, name="d", out="y")
    return n.model({"x": ["n", 32]}, {"y": ["n", 10]})


def start(folder: Path, weights: str) -> tuple[Bench, Built, Feed, list[Layer]]:
    config = Config(weights=weights, first_last=weights, placement="all", equalize="none")
    builder, made, feed = built(skipped(), {"x": correlated(COUNT, 32, 1)}, folder, config)
    layers = linear_layers(builder.prepared, made.plan, made.parameters, builder.statistics(made), builder.config)
    return builder, made, feed, layers


def tensors(model: Any, node: str, x: F32) -> tuple[F32, F32]:
    """What ``node`` reads first and second in ``model``, constants as None; node by node, so that nothing is fused."""
    walk = Walk(model, [{"x": x}])
    for stop in range(1, walk.place(node) + 1):
        walk.advance(stop)
    first, second = (walk.live[0].get(name) for name in walk.reads(node)[:2])
    return first, second  # type: ignore[return-value]


def noise(builder: Bench, made: Built, parameters: Parameters, x: F32) -> float:
    """The energy of the error of the sum, less its mean."""
    lost = np.zeros(())
    for sign, model in ((1, builder.prepared), (-1, simulated(builder.prepared, made.plan, parameters))):
        first, second = tensors(model, "sum", x)
        lost = lost + sign * (first.astype(np.float64) + second)
    return float(lost.var(axis=0).sum())


def test_a_layer_makes_up_for_what_the_branch_lacks(tmp_path: Path) -> None:
    """The sum is nearer to the float model's than where the layer is adapted as if its output went nowhere else."""
    builder, made, feed, layers = start(tmp_path, "int3")
    assert {layer.name: layer.skip is not None for layer in layers} == {"a": False, "b": False, "c": True, "d": False}
    unseen = correlated(512, 32, 2)
    found = {}
    for kind in ("told", "not told"):
        told = [layer if kind == "told" else replace(layer, skip=None) for layer in layers]
        adapted, _ = adapt_layers(
            Simulation(builder.prepared, made.plan, made.parameters), told, builder.config, feed.batches(COUNT)
        )
        found[kind] = noise(builder, made, adapted, unseen)
    assert found["told"] < 0.95 * found["not told"]


@pytest.mark.parametrize("weights", ["int4", "int3"])
def test_the_errors_that_are_reported_are_those_of_the_outputs(weights: str, tmp_path: Path) -> None:
    """By the tensors of both networks: the target is what the float layer gives and what the branch lacks."""
    builder, made, _, layers = start(tmp_path, weights)
    x = correlated(96, 32, 3)
    start_from = Simulation(builder.prepared, made.plan, made.parameters)
    adapted, refits = adapt_layers(start_from, layers, builder.config, [{"x": x}])
    quantized = simulated(builder.prepared, made.plan, adapted)
    for layer, refit in zip(layers, refits, strict=True):
        assert layer.centred
        source, weight = tensors(builder.prepared, layer.name, x)[0], np.asarray(layer.job.data, np.float64)
        rough = tensors(quantized, layer.name, x)[0].astype(np.float64)
        target = source.astype(np.float64) @ weight
        if layer.skip is not None:
            target += tensors(builder.prepared, "sum", x)[0].astype(np.float64) - tensors(quantized, "sum", x)[0]
        energy = target.var(axis=0).sum()
        rounded = adapted.weights[layer.job.key].dequantize().astype(np.float64)
        before, after = ((rough @ w - target).var(axis=0).sum() / energy for w in (weight, rounded))
        assert refit.node == layer.name
        assert refit.before == pytest.approx(before, rel=2e-3, abs=1e-6)
        assert refit.after == pytest.approx(after, rel=2e-3, abs=1e-6)
        assert refit.after > 1e-4


@pytest.mark.parametrize("activations", ["uint8", "uint4"])
def test_a_simulation_run_whole_computes_what_its_nodes_do_one_by_one(activations: str, tmp_path: Path) -> None:
    """onnxruntime makes a Gemm of a product and its bias, and would round its float weight to int8 as a whole."""
    config = Config(
        weights="int4",
        activations=activations,
        first_last="int4",
        placement="all",
        equalize="none",
        operators="standard",
    )
    builder, made, _ = built(skipped(), {"x": correlated(COUNT, 32, 1)}, tmp_path, config)
    model = serialize(simulated(builder.prepared, made.plan, made.parameters))
    feed = {"x": correlated(144, 32, 5)}
    (whole,), (apart,) = (run(open_session(model, optimize=level), feed) for level in ("all", "none"))
    np.testing.assert_allclose(whole, apart, rtol=1e-5, atol=1e-5 * float(np.abs(apart).max()))


def test_a_walk_holds_no_constant_that_it_is_past() -> None:
    model = prepared(skipped())
    walk = Walk(model, [{"x": correlated(4, 32, 1)}])
    nodes = [node.name or "" for node in model.graph]
    held = [len(walk._constants)]
    for stop in range(1, len(nodes) + 1):
        walk.advance(stop)
        held.append(len(walk._constants))
    assert held[0] == len(model.graph.initializers)
    assert held == sorted(held, reverse=True)
    assert held[-1] == 0
