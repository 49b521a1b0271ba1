"""What the weights of recurrent layers are multiplied with."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from sums import moments_of
from zoo import Net

from onnxq.calibrate.layer_inputs import LayerInput
from onnxq.calibrate.runner import run_observers
from onnxq.graph.geometry import Recurrence
from onnxq.graph.linear import products

UNITS, INPUTS = 6, 5


def net(op: str, *, both: bool = True, states: bool = True) -> onnx.ModelProto:
    n, count, gates = Net(2), 2 if both else 1, {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    w = n.weight("w", count, gates * UNITS, INPUTS, fan=INPUTS)
    r = n.weight("r", count, gates * UNITS, UNITS, fan=UNITS)
    outputs = ["y", "last"] if states else ["", "last"]
    direction = "bidirectional" if both else "forward"
    n.nodes.append(helper.make_node(op, ["x", w, r], outputs, name="rnn", hidden_size=UNITS, direction=direction))
    shapes = {"y": ["T", count, "N", UNITS], "last": [count, "N", UNITS]}
    return n.model({"x": ["T", "N", INPUTS]}, {o: shapes[o] for o in outputs if o})


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("both", [True, False])
def test_inputs_and_states_are_what_they_are(op: str, both: bool) -> None:
    model = ir.from_proto(net(op, both=both))
    found = products(model.graph[0])
    assert {i: v.name for i, (v, _) in found.items()} == {1: "x", 2: "y"}
    x = np.random.default_rng(1).standard_normal((7, 3, INPUTS)).astype(np.float32)
    layers = {("rnn", i): LayerInput(v.name or "", layer, full=True) for i, (v, layer) in found.items()}
    seen = run_observers(model, ["x", "y"], [{"x": x}], layers=layers).moments
    rows = np.broadcast_to(x.reshape(-1, INPUTS), (2 if both else 1, 21, INPUTS))
    np.testing.assert_allclose(seen["rnn", 1].second, moments_of(rows, full=True).second, rtol=1e-5)
    assert seen["rnn", 2].count == 21
    assert seen["rnn", 2].second.shape == (2 if both else 1, UNITS, UNITS)


def test_states_of_each_direction_are_its_own() -> None:
    layer = Recurrence((2, 4 * UNITS, UNITS), states=True)
    y = np.random.default_rng(1).standard_normal((7, 2, 3, UNITS)).astype(np.float32)
    rows = layer.sampler(y.shape)(y)
    np.testing.assert_array_equal(rows, np.stack([y[:, d].reshape(-1, UNITS) for d in (0, 1)]))
    assert layer.sampler(y.shape, limit=5)(y).shape[1] <= 5
    weight = np.zeros((2, 4 * UNITS, UNITS), np.float32)
    assert layer.matrix(weight) is weight
    assert layer.tensor(weight) is weight


def test_states_that_are_not_written_are_not_known() -> None:
    node = ir.from_proto(net("LSTM", states=False)).graph[0]
    assert list(products(node)) == [1]
