"""Regression against numpy's least squares, errors against their definition, walks against whole runs."""

from __future__ import annotations

import numpy as np
import pytest
from adapting import built, correlated, deep
from zoo import ZOO, Net, feeds, prepared

from onnxq import Config
from onnxq.adapt.closed_form import error, pairs, refitted
from onnxq.adapt.layerwise import adapt_layers, linear_layers
from onnxq.adapt.simulation import Simulation, simulated
from onnxq.adapt.walk import Walk
from onnxq.graph.io import serialize
from onnxq.numerics import sqnr_db
from onnxq.runtime.session import open_session

RNG = np.random.default_rng(5)


def rows(count: int, groups: int = 2, n: int = 6, channels: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weight = RNG.standard_normal((groups, channels, n))
    x = (RNG.standard_normal((groups, count, n)) + 0.5).astype(np.float32)
    return x, weight, np.matmul(x, weight.transpose(0, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("centred", [False, True])
def test_the_error_is_what_it_says(centred: bool) -> None:
    x, weight, t = rows(50)
    t += RNG.standard_normal(t.shape).astype(np.float32) + 2.0
    lost = t - np.matmul(x, weight.transpose(0, 2, 1))
    if centred:
        lost -= lost.mean(axis=1, keepdims=True)
    assert np.allclose(error(weight, pairs(x, t), centred=centred), np.square(lost).mean(axis=1), rtol=1e-4)


@pytest.mark.parametrize("centred", [False, True])
def test_much_data_gives_least_squares(centred: bool) -> None:
    """The noise in x biases the best weight: it is not the true one, and regression finds it."""
    x, weight, t = rows(40_000)
    noisy = (x + 0.7 * RNG.standard_normal(x.shape)).astype(np.float32)
    half = x.shape[1] // 2
    found, ridge, _ = refitted(
        weight, pairs(noisy[:, :half], t[:, :half]), pairs(noisy[:, half:], t[:, half:]), centred=centred
    )
    for g in range(2):
        a, b = noisy[g].astype(np.float64), t[g].astype(np.float64)
        if centred:
            a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        best = np.linalg.lstsq(a, b, rcond=None)[0].T
        assert np.allclose(found[g], best, atol=0.015)  # a little ridge is left in
        assert np.abs(best - weight[g]).max() > 0.1
    assert ridge <= 1e-2


def test_what_does_not_help_elsewhere_is_left_alone() -> None:
    """Targets that have nothing to do with x beyond what the weight says: fitting them is fitting noise."""
    x, weight, t = rows(8)
    y, _, _ = rows(4000)
    fit = pairs(x, t + 5.0 * RNG.standard_normal(t.shape).astype(np.float32))
    check = pairs(y, np.matmul(y, weight.transpose(0, 2, 1)).astype(np.float32))
    found, ridge, _ = refitted(weight, fit, check, centred=False)
    assert ridge == np.inf
    assert np.array_equal(found, weight)
    assert refitted(weight, fit, None, centred=False)[1] == np.inf


@pytest.mark.parametrize("name", ["residual", "attention", "if_body", "squeeze_excite", "lstm"])
def test_a_walk_gives_what_a_run_gives(name: str) -> None:
    proto = ZOO[name]()
    model, data = prepared(proto), feeds(proto, 3)
    whole = open_session(serialize(model))
    walk = Walk(model, data)
    count = len(list(model.graph))
    for stop in (*range(1, count, 2), count):
        walk.advance(stop)
    names = [o.name for o in whole.get_outputs()]
    for feed, live in zip(data, walk.live, strict=True):
        assert set(live) <= {*names, *feed}
        for expected, got in zip(whole.run(names, feed), (live[n] for n in names), strict=True):
            assert np.allclose(expected, got, rtol=1e-4, atol=1e-5)


def test_a_walk_takes_new_constants() -> None:
    n = Net()
    n.linear(n.linear("x", 4, 4, name="a", bias=False), 4, 2, name="b", bias=False, out="y")
    walk = Walk(prepared(n.model({"x": ["n", 4]}, {"y": ["n", 2]})), [{"x": np.ones((1, 4), np.float32)}])
    walk.advance(walk.place("b"))
    (before,) = (live[walk.reads("b")[0]] for live in walk.live)
    walk.give("b", 1, np.full((4, 2), 2.0, np.float32))
    walk.advance(walk.place("b") + 1)
    assert np.allclose(walk.live[0]["y"], 2.0 * before.sum(), rtol=1e-5)


CONFIGS = {
    "int8": Config(),
    "int4": Config(weights="int4", first_last="int4"),
    "w4a4": Config(weights="int4", activations="uint4"),
    "weights only": Config(weights="int4:32", activations="none", operators="standard"),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["residual", "mobilenet", "transformer_mlp", "maxpool", "concat", "hard_swish"])
def test_the_simulation_computes_what_the_emitted_model_computes(name: str, kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    proto = ZOO[name]()
    builder, made, _ = built(proto, feeds(proto, 12), tmp_path, CONFIGS[kind])
    sessions = [
        open_session(m)
        for m in (made.runtime_model, serialize(simulated(builder.prepared, made.plan, made.parameters)))
    ]
    emitted, soft = (np.concatenate([s.run(None, f)[0] for f in feeds(proto, 12)]) for s in sessions)
    # A code of the last quantizer may differ, here and there, where float sums round otherwise.
    assert sqnr_db(emitted, soft) > 45.0


def test_layers_make_up_for_the_noise_before_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    proto = deep().model({"x": ["n", 32]}, {"y": ["n", 10]})
    data = {"x": correlated(2048, 32, 1)}
    builder, made, feed = built(proto, data, tmp_path, Config(weights="int3"))
    model, config = builder.prepared, builder.config
    layers = linear_layers(model, made.plan, made.parameters, builder.statistics(made), config)
    assert [layer.name for layer in layers] == ["a", "b", "b2", "c", "c2", "d", "d2", "e"]
    assert [layer.skip is not None for layer in layers] == [False, False, True, False, True, False, True, False]
    adapted, refits = adapt_layers(Simulation(model, made.plan, made.parameters), layers, config, feed.batches(64))
    unseen = {"x": correlated(512, 32, 2)}
    whole = open_session(serialize(model)).run(None, unseen)[0]
    levels = [
        sqnr_db(whole, open_session(serialize(simulated(model, made.plan, p))).run(None, unseen)[0])
        for p in (made.parameters, adapted)
    ]
    assert levels[1] > levels[0] + 1.0
    assert len(refits) == len(layers)
    assert all(np.isfinite(r.ridge) for r in refits[1:4])  # inputs of the first layer are exact to 8 bits


def test_output_positions_belong_to_the_rows() -> None:
    from onnxq.graph.linear import geometry_of

    n = Net(3)
    n.conv("x", 6, 9, name="c", group=3, strides=[2, 1], out="y")
    proto = n.model({"x": ["n", 6, 9, 8]}, {"y": ["n", 9, 5, 8]})

    model = prepared(proto)
    node = next(iter(model.graph))
    layer = geometry_of(node)
    assert layer is not None
    x = RNG.standard_normal((3, 6, 9, 8)).astype(np.float32)
    (y,) = open_session(serialize(model)).run(None, {"x": x})
    weight, bias = (np.asarray(v.const_value.numpy()) for v in node.inputs[1:])  # type: ignore[union-attr]
    picked = layer.output_sampler(x.shape, limit=20)(y - bias[:, None, None])
    rows = layer.rows(x, limit=20)
    assert picked.shape[1] == rows.shape[1] < 3 * 5 * 8
    assert np.allclose(np.matmul(rows, layer.matrix(weight).transpose(0, 2, 1)), picked, atol=1e-4)
