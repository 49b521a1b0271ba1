"""``onnxq.evaluate``, ``onnxq.run_model`` and ``onnxq.benchmark``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import toys
from onnx.reference import ReferenceEvaluator

import onnxq
from onnxq.analysis.running import save_outputs
from onnxq.errors import ConfigError, DataError, ModelError

# Float kernels of two implementations on sums of a few hundred terms.
ROUNDING = 1e-5

# A toy is too small for integers to pay on any CPU.
INTEGERS = onnxq.Config(placement="all")


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    return onnxq.quantize(toys.classifier(), {"image": toys.images()}, config=INTEGERS).proto()


def test_a_model_equals_itself() -> None:
    model = toys.classifier()
    result = onnxq.evaluate(model, model, {"image": toys.images(8)})
    assert result.comparison.feeds == 8
    assert result.comparison.primary.agreement == 1
    assert result.comparison.primary.max_abs_error == 0
    assert [layer.node for layer in result.layers] == ["conv", "fc"]
    json.loads(result.to_json())


def test_labels_as_array_and_by_name(quantized: onnx.ModelProto) -> None:
    images = toys.images(24)
    outputs = onnxq.run_model(toys.classifier(), {"image": images})["logits"]
    assert isinstance(outputs, np.ndarray)
    truth = outputs.argmax(axis=1)
    data = {"image": images, "truth": truth}
    by_name = onnxq.evaluate(toys.classifier(), quantized, data, labels="truth", layer_samples=0)
    by_value = onnxq.evaluate(toys.classifier(), quantized, {"image": images}, labels=truth, layer_samples=0)
    assert by_name.comparison.accuracy == by_value.comparison.accuracy
    assert by_name.comparison.accuracy is not None
    assert by_name.comparison.accuracy.float_model.top1 == 1
    assert by_name.layers == ()


def test_labels_follow_the_samples_that_are_used(quantized: onnx.ModelProto) -> None:
    images = toys.images(24)
    outputs = onnxq.run_model(toys.classifier(), {"image": images})["logits"]
    assert isinstance(outputs, np.ndarray)
    data = {"image": images, "truth": outputs.argmax(axis=1)}
    options = onnxq.FeedOptions(limit=7, batch_size=2)
    result = onnxq.evaluate(toys.classifier(), quantized, data, labels="truth", feed_options=options, layer_samples=0)
    assert result.comparison.accuracy is not None
    assert result.comparison.accuracy.rows == 7
    assert result.comparison.accuracy.float_model.top1 == 1


def test_progress_is_told_per_feed(quantized: onnx.ModelProto) -> None:
    calls: list[tuple[str, int, int | None]] = []
    onnxq.evaluate(
        toys.classifier(),
        quantized,
        {"image": toys.images(4)},
        layer_samples=2,
        progress=lambda *call: calls.append(call),
    )
    assert ("compare", 4, 4) in calls
    assert ("layers", 2, 2) in calls


def test_noise_of_layers_is_not_blamed_on_a_folded_normalization() -> None:
    # The Conv's output is another tensor after BatchNormalization was folded into it, but keeps its name.
    model = toys.classifier()
    scale = np.linspace(0.2, 4, 16).astype(np.float32)
    zeros, ones = np.zeros(16, np.float32), np.ones(16, np.float32)
    for name, value in (("s", scale), ("b", zeros), ("m", zeros), ("v", ones)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.node.insert(1, onnx.helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], "bn"))
    model.graph.node[2].input[0] = "n"
    data = {"image": toys.images()}
    result = onnxq.evaluate(model, onnxq.quantize(model, data, config=INTEGERS).model, data)
    assert result.layers
    assert min(layer.local_db for layer in result.layers) > 25  # 8 bits give well above 30 dB, another tensor below 10


def test_layers_cannot_be_a_negative_number(quantized: onnx.ModelProto) -> None:
    with pytest.raises(ConfigError, match="layer_samples"):
        onnxq.evaluate(toys.classifier(), quantized, {"image": toys.images(2)}, layer_samples=-1)


def test_run_model_joins_batches() -> None:
    model, images = toys.classifier(), toys.images(7)
    (expected,) = ReferenceEvaluator(model).run(None, {"image": images})
    for size in (1, 3):
        outputs = onnxq.run_model(model, {"image": images}, feed_options=onnxq.FeedOptions(batch_size=size))
        assert outputs["logits"] == pytest.approx(expected, abs=ROUNDING)


def test_run_model_stacks_what_has_no_samples_axis_and_lists_what_is_ragged(tmp_path: Path) -> None:
    samples = [np.array([[1, -1, 2]], np.float32), np.array([[-1, -2]], np.float32), np.array([[5, 6, 7]], np.float32)]
    outputs = onnxq.run_model(toys.cutter(), [{"x": s} for s in samples])
    assert outputs["total"] == pytest.approx(np.array([2, -3, 18]))
    assert [np.asarray(v).tolist() for v in outputs["kept"]] == [[1, 2], [], [5, 6, 7]]
    save_outputs(outputs, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as saved:
        assert set(saved.files) == {"total", "kept_0", "kept_1", "kept_2"}
        assert saved["kept_2"].tolist() == [5, 6, 7]


def test_saved_names_may_be_anything(tmp_path: Path) -> None:
    one, two = np.zeros(2, np.float32), np.array(["a", "b"], object)
    save_outputs({"file": one, "a/b:0": two, "x": [one, one], "x_1": one}, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as saved:
        assert set(saved.files) == {"file", "a/b:0", "x_0", "x_1", "x_1_"}
        assert saved["a/b:0"].tolist() == ["a", "b"]


def test_benchmark_pairs_models(quantized: onnx.ModelProto) -> None:
    report = onnxq.benchmark([toys.classifier(), quantized], {"image": toys.images(2)}, seconds=0.02, threads=(1,))
    assert len(report.rows) == 2
    assert report.rows[0].ratio == 1


def test_benchmark_needs_lengths_for_symbolic_dimensions() -> None:
    with pytest.raises(DataError, match="time"):
        onnxq.benchmark([toys.cutter()], seconds=0.02)
    options = onnxq.FeedOptions(dims={"time": 5})
    assert onnxq.benchmark([toys.cutter()], seconds=0.02, feed_options=options).rows


def test_benchmark_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        onnxq.benchmark([])
    with pytest.raises(ConfigError, match="seconds"):
        onnxq.benchmark([toys.adder()], seconds=-1)
    with pytest.raises(ModelError, match="same inputs"):
        onnxq.benchmark([toys.adder(), toys.classifier()])
