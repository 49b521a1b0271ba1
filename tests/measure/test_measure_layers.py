"""Noise by layer: accumulated and local, against direct runs of the same arithmetic in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from measure_models import Graph, conv_net, feeds, if_net, linear_net

from onnxq.errors import DataError, ModelError
from onnxq.measure import common_tensors, layer_noise
from onnxq.numerics import INT8, UINT8, PerAxis, params, sqnr_db
from onnxq.runtime.session import open_session, run

F64 = npt.NDArray[np.float64]


def chain(*, quantized: bool) -> bytes:
    """Three MatMuls in a row, the second coarse (input scale 0.5), each with its own input QDQ."""
    g = Graph(7)
    tensor = "x"
    for i, scale in enumerate((0.03, 0.5, 0.03)):
        w = g.random(6, 6)
        if quantized:
            inputs = [g.qdq(tensor, scale=scale), g.weight(f"w{i}", w, axis=1)[0]]
        else:
            inputs = [tensor, g.const(f"w{i}", w)]
        tensor = g.node("MatMul", inputs, f"m{i}", name=f"matmul{i}")
    return g.model({"x": [4, 6]}, {"m2": [4, 6]})


def by_hand(data: list[dict[str, npt.NDArray[np.float32]]]) -> tuple[dict[str, float], dict[str, float]]:
    """(accumulated, local) SQNR in dB of ``chain``."""
    g = Graph(7)
    weights = [g.random(6, 6) for _ in range(3)]
    activations = [params(UINT8, s, 128) for s in (0.03, 0.5, 0.03)]
    stacks: dict[str, list[tuple[F64, F64, F64]]] = {}
    for feed in data:
        float_x = quantized_x = feed["x"]
        for i, (w, p) in enumerate(zip(weights, activations, strict=True)):
            wq = params(INT8, np.abs(w).max(axis=0) / 127, granularity=PerAxis(1)).fake_quantize(w)
            alone, quantized_x = p.fake_quantize(float_x) @ wq, p.fake_quantize(quantized_x) @ wq
            float_x = float_x @ w
            stacks.setdefault(f"m{i}", []).append((float_x, quantized_x, alone))
    every = {name: [np.concatenate(part) for part in zip(*rows, strict=True)] for name, rows in stacks.items()}
    return (
        {name: sqnr_db(a, b) for name, (a, b, _) in every.items()},
        {name: sqnr_db(a, c) for name, (a, _, c) in every.items()},
    )


def test_accumulated_and_local_noise_are_those_of_numpy() -> None:
    data = feeds(6, 4, 6)
    accumulated, local = by_hand(data)
    result = layer_noise(chain(quantized=False), chain(quantized=True), ["m0", "m1", "m2"], iter(data))
    assert [r.tensor for r in result] == ["m0", "m1", "m2"]
    for r in result:
        assert r.accumulated_db == pytest.approx(accumulated[r.tensor], abs=0.01)
        assert r.local_db == pytest.approx(local[r.tensor], abs=0.01)
    assert [r.inputs for r in result] == [("x",), ("m0",), ("m1",)]
    assert [r.op for r in result] == ["MatMul"] * 3
    # The coarse layer is found by the local figure; the one after it only inherits.
    assert min(result, key=lambda r: r.local_db).tensor == "m1"
    assert result[2].local_db > result[2].accumulated_db + 5


def test_observed_adds_the_rounding_of_the_output_itself() -> None:
    data = feeds(4, 4, 6)
    models = chain(quantized=False), chain(quantized=True)
    plain = layer_noise(*models, ["m0"], data)[0]
    requantized = layer_noise(*models, ["m0"], data, observed={"m0": "m0_dq"})[0]
    assert requantized.inputs == ("x",)
    assert requantized.local_db < plain.local_db - 5
    assert requantized.local_db == requantized.accumulated_db


def test_onnxruntime_does_not_quantize_more_than_the_file_says() -> None:
    """It would turn this float weight into int8 while loading (its WeightBiasQuantization), were it not told not to."""
    g, f = Graph(8), Graph(8)
    w = g.random(4, 4, 1, 1)
    w[0, 0, 0, 0] = 30  # per tensor, int8 would leave nothing of the others
    g.node("Conv", [g.qdq("x"), g.const("w", w)], "c")
    g.qdq("c", scale=0.5, out="y")
    f.node("Conv", ["x", f.const("w", w)], "c")
    f.node("Identity", ["c"], "y")
    shape = [1, 4, 3, 3]
    models = f.model({"x": shape}, {"y": shape}), g.model({"x": shape}, {"y": shape})
    data = feeds(3, *shape)
    row = layer_noise(*models, ["c"], data, observed={"c": "y"})[0]
    reference = np.concatenate([run(open_session(models[0], optimize="none"), x)[0] for x in data])
    as_written = np.concatenate([run(open_session(models[1], optimize="none"), x)[0] for x in data])
    assert row.local_db == pytest.approx(sqnr_db(reference, as_written), abs=0.01)


def test_common_tensors_are_the_compute_outputs_of_both() -> None:
    assert common_tensors(conv_net(quantized=False), conv_net()) == ("c1", "y")
    assert common_tensors(linear_net(quantized=False), linear_net(quantized=True), ops=["Relu"]) == ("h",)


def test_conv_and_relu_and_biases() -> None:
    models = linear_net(quantized=False, dynamic=True), linear_net(quantized=True, dynamic=True)
    data = [*feeds(2, 3, 16), *feeds(2, 5, 16, seed=3)]
    rows = {r.tensor: r for r in layer_noise(*models, ["m", "h", "y"], data)}
    assert rows["h"].inputs == ("a",)
    assert rows["h"].local_db == 200  # Relu of the float value: nothing is rounded between
    assert rows["y"].inputs == ("h",)
    assert 15 < rows["y"].accumulated_db < rows["y"].local_db


def test_external_weights_are_found(tmp_path: Path) -> None:
    paths = []
    for name, model in (("f", chain(quantized=False)), ("q", chain(quantized=True))):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "m.onnx")
        proto = onnx.load_from_string(model)
        onnx.save(proto, paths[-1], save_as_external_data=True, location="m.data", size_threshold=16)
    data = feeds(2, 4, 6)
    inline = layer_noise(chain(quantized=False), chain(quantized=True), ["m1"], data)
    assert layer_noise(*paths, ["m1"], data) == inline


def test_captured_values_of_bodies_are_inputs_of_the_cut() -> None:
    result = layer_noise(if_net(), if_net(), ["y"], feeds(2, 3, 16))
    assert result[0].inputs == ("condition", "x")
    assert result[0].local_db == 200


def test_mistakes_are_named() -> None:
    models = chain(quantized=False), chain(quantized=True)
    with pytest.raises(ModelError, match="nowhere"):
        layer_noise(*models, ["nowhere"], feeds(1, 4, 6))
    with pytest.raises(ModelError, match="gone"):
        layer_noise(*models, ["m0"], feeds(1, 4, 6), observed={"m0": "gone"})
    with pytest.raises(DataError, match="no data"):
        layer_noise(*models, ["m0"], [])
