"""Ranges from BatchNormalization alone: the moments are imposed, and only what follows from them is trusted."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from zoo import Net, batchnorm_cnn, feeds, prepared, residual, trained

from onnxq.calibrate.feeds import FeedOptions
from onnxq.calibrate.made_up import BATCH, SAMPLES, random_feeds
from onnxq.calibrate.synthetic import impose_moments
from onnxq.graph.instrument import expose
from onnxq.graph.io import serialize
from onnxq.graph.passes.fold_affine import MOMENTS
from onnxq.graph.signature import TensorSpec, signature
from onnxq.runtime.session import open_session, run


def values_of(model: ir.Model, names: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    shown, output_of = expose(model, names)
    found = run(open_session(serialize(shown)), feed, outputs=[output_of[n] for n in names])
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("opset", [13, 17, 18, 20])  # from 18 on the axes of ReduceMean are an input
def test_the_imposed_moments_are_really_there(opset: int) -> None:
    proto = batchnorm_cnn(opset)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    model = prepared(proto)
    watched, _ = impose_moments(model)
    normalised = [v.name or "" for n in model.graph for v in n.outputs if MOMENTS in v.meta]
    assert len(normalised) == 3
    feed = {"x": (np.random.default_rng(0).uniform(3, 900, (8, 3, 12, 12))).astype(np.float32)}  # nothing like training
    for i, value in enumerate(values_of(watched, normalised, feed).values()):
        np.testing.assert_allclose(value.mean(axis=(0, 2, 3)), stored[f"bn{i}_b"], atol=2e-4)
        np.testing.assert_allclose(value.std(axis=(0, 2, 3)), np.abs(stored[f"bn{i}_s"]), rtol=1e-3)


def test_a_scale_folded_after_normalisation_moves_the_moments() -> None:
    n = Net()
    y = n.conv("x", 3, 4, name="conv", bias=False)
    parts = [
        n.const(k, v) for k, v in (("g", [1.0, 2, -3, 4]), ("b", [0.0, 1, 2, 3]), ("m", [0.0] * 4), ("v", [1.0] * 4))
    ]
    y = n("BatchNormalization", y, *parts, name="bn")
    y = n("Mul", y, n.const("two", np.full((1, 4, 1, 1), -2.0)), name="mul")
    n("Add", y, n.const("one", np.full((1, 4, 1, 1), 1.0)), name="add", out="y")
    model = prepared(n.model({"x": [2, 3, 6, 6]}, {"y": [2, 4, 6, 6]}))
    moments = [v.meta[MOMENTS] for node in model.graph for v in node.outputs if MOMENTS in v.meta]
    assert len(moments) == 1
    np.testing.assert_allclose(moments[0][0], [1, -1, -3, -5], atol=1e-6)
    np.testing.assert_allclose(moments[0][1], [2, 4, 6, 8], rtol=1e-6)


def test_trusted_is_what_follows_from_normalised_layers_only() -> None:
    model = prepared(batchnorm_cnn())
    _, trusted = impose_moments(model)
    computed = {o.name for n in model.graph for o in n.outputs}
    assert computed <= trusted
    assert not {"x", "conv0_out_before"} & trusted


def test_a_path_around_the_normalised_layer_is_not_trusted() -> None:
    n = Net()
    y = n.conv("x", 4, 4, name="conv", bias=False)
    parts = [n.const(k, v) for k, v in (("g", [1.0] * 4), ("b", [0.0] * 4), ("m", [0.0] * 4), ("v", [1.0] * 4))]
    y = n("Relu", n("BatchNormalization", y, *parts, name="bn"), name="relu")
    y = n("Add", y, n("Tanh", "x", name="tanh"), name="add")
    n.conv(y, 4, 4, name="last", out="y")
    model = prepared(n.model({"x": [2, 4, 6, 6]}, {"y": [2, 4, 6, 6]}))
    _, trusted = impose_moments(model)
    assert "relu_out" in trusted
    assert not {"x", "tanh_out", "add_out", "y"} & trusted


def test_without_batch_normalisation_nothing_is_trusted_or_changed() -> None:
    model = prepared(residual())
    watched, trusted = impose_moments(model)
    assert trusted == frozenset()
    assert [n.op_type for n in watched.graph] == [n.op_type for n in model.graph]


def test_imposing_changes_a_copy() -> None:
    model = prepared(batchnorm_cnn())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    impose_moments(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_random_feeds_fit_the_model_and_repeat() -> None:
    proto = batchnorm_cnn()
    (feed, *_) = random_feeds(signature(ir.from_proto(proto)).inputs)
    shapes = {f["x"].shape for f in feed}
    assert shapes == {(BATCH, 3, 12, 12)}
    assert sum(len(f["x"]) for f in feed) == SAMPLES
    again = next(random_feeds(signature(ir.from_proto(proto)).inputs))
    np.testing.assert_array_equal(next(iter(feed))["x"], next(iter(again))["x"])


def test_open_dimensions_are_tried_in_several_sizes() -> None:
    spec = TensorSpec("x", np.dtype(np.float32), ("n", 3, "h", "w"))
    sizes = [next(iter(f))["x"].shape[2:] for f in random_feeds([spec])]
    assert sizes[:2] == [(224, 224), (64, 64)]
    given = random_feeds([spec], FeedOptions(dims={"h": 10, "w": 12}))
    assert {next(iter(f))["x"].shape[2:] for f in given} == {(10, 12)}


def test_inputs_that_cannot_be_made_up_give_no_feed() -> None:
    assert list(random_feeds([TensorSpec("text", np.dtype(object), ("n",))])) == []
    assert list(random_feeds([TensorSpec("x", np.dtype(np.float32), None)])) == []


def test_synthetic_ranges_resemble_real_ones() -> None:
    """Moments that the network really had on its data: ranges seen without data come close to those seen with it."""
    from onnxq.calibrate.runner import run_observers

    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((16, 3, 12, 12)).astype(np.float32)} for _ in range(4)]
    proto = trained(batchnorm_cnn(), data)
    model = prepared(proto)
    watched, _ = impose_moments(model)
    names = ["relu0_out", "relu1_out", "relu2_out"]
    real = run_observers(model, names, data).histograms
    random = run_observers(watched, names, feeds(proto, 16, seed=3, scale=50.0)).histograms
    for name in names:
        assert random[name].high == pytest.approx(real[name].high, rel=0.5), name
