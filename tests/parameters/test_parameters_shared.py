"""A weight that several nodes read is fitted to all of them, and what is made of it at load to what the file holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sharing import autoencoder, language_model
from zoo import Net, prepared

from onnxq.build.statistics import fitted_layers, wanted_tensors
from onnxq.calibrate.runner import run_observers
from onnxq.config import Config, Rule
from onnxq.emit import weight_key
from onnxq.kernels.targets import USUAL
from onnxq.parameters.choose import Parameters, choose
from onnxq.plan import Plan, make_plan

BLOCKS = Config(weights="int4:32", first_last="int4:32", activations="none", restore="none", equalize="none")


def chosen(proto: object, feeds: list[dict[str, np.ndarray]], config: Config) -> tuple[Plan, Parameters]:
    model = prepared(proto)
    plan = make_plan(model, config, USUAL)
    layers = fitted_layers(model, plan, config)
    seen = run_observers(model, wanted_tensors(model, plan), feeds, layers=layers)
    return plan, choose(model, plan, seen, config)


@pytest.mark.parametrize("first", ["a", "b"])
def test_blocks_are_fitted_to_all_of_their_readers(first: str) -> None:
    """Two readers, whose inputs have their energy in other halves: both lose little, whichever comes first."""
    n = Net(1)
    weight = n.weight("w", 64, 64, fan=64)
    for name in (first, {"a": "b", "b": "a"}[first]):
        n("MatMul", name, weight, name=f"product_{name}", out=f"y_{name}")
    proto = n.model({"a": ["n", 64], "b": ["n", 64]}, {"y_a": ["n", 64], "y_b": ["n", 64]})
    rng, size = np.random.default_rng(2), {"a": np.ones(64), "b": np.ones(64)}
    size["a"][::2], size["b"][1::2] = 0.01, 0.01
    x = {name: (rng.standard_normal((256, 64)) * size[name]).astype(np.float32) for name in ("a", "b")}
    plan, parameters = chosen(proto, [x], BLOCKS)
    data = n.constants["w"]
    found = parameters.weights[weight_key(plan.weights[0])].dequantize()
    lost = {name: float(np.square(x[name] @ (data - found)).sum() / np.square(x[name] @ data).sum()) for name in x}
    assert max(lost.values()) < 1.5 * min(lost.values())


def test_what_is_made_at_load_rounds_what_the_file_holds() -> None:
    config = Config(weights="int4", first_last="int4", restore="none", equalize="none")
    proto, data = autoencoder()
    plan, parameters = chosen(proto, [{"x": data["x"]}], config)
    stored, made = (parameters.weights[weight_key(w)] for w in sorted(plan.weights, key=lambda w: w.at_load))
    np.testing.assert_array_equal(made.codes, made.params.quantize(stored.dequantize()))
    assert not np.array_equal(made.codes, made.params.quantize(np.asarray(stored.dequantize()) * 1.01))


def test_what_is_made_of_floats_rounds_the_floats_and_ends_nowhere() -> None:
    proto, data = language_model()
    config = replace(Config(), rules=(Rule("embed", "float"),))
    plan, parameters = chosen(proto, [{"ids": data["ids"]}], config)
    (weight,) = [w for w in plan.weights if w.at_load]
    found = parameters.weights[weight_key(weight)]
    table = next(
        np.frombuffer(t.raw_data, np.float32).reshape(t.dims) for t in proto.graph.initializer if t.name == "table"
    )
    np.testing.assert_array_equal(found.codes, np.rint(table / found.params.scale[:, None]))
    assert np.abs(found.codes).max() <= found.params.qtype.qmax
