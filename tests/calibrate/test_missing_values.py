"""NaN in the data: a missing value where the float model's outputs are finite, an error with its sample elsewhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.errors import DataError


def network(*, imputed: bool) -> onnx.ModelProto:
    """X [N, 6] -> (missing values become 0.5) -> three layers -> p [N, 3]."""
    rng = np.random.default_rng(0)
    sizes = (6, 128, 128, 3)
    weights = {f"w{i}": rng.standard_normal(s) * np.sqrt(2 / s[0]) for i, s in enumerate(itertools.pairwise(sizes))}
    nodes = [helper.make_node("Identity", ["X"], ["h0"], "start")]
    if imputed:
        nodes = [
            helper.make_node("IsNaN", ["X"], ["missing"], "is_nan"),
            helper.make_node("Where", ["missing", "filler", "X"], ["h0"], "impute"),
        ]
    for i in range(3):
        last = i == 2
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"w{i}"], ["p" if last else f"m{i}"], f"fc{i}"))
        nodes += [] if last else [helper.make_node("Relu", [f"m{i}"], [f"h{i + 1}"], f"relu{i}")]
    constants = {"filler": np.array(0.5), **weights}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data(share: float) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((64, 6)).astype(np.float32)
    x[np.random.default_rng(2).random(x.shape) < share] = np.nan
    return x


CONFIG = onnxq.Config(latency_seconds=0.0, placement="all")


def test_missing_values_that_the_model_fills_in_are_data() -> None:
    result = onnxq.quantize(network(imputed=True), {"X": data(0.2)}, config=CONFIG)
    assert result.good
    assert len(result.plan.layers) == 3
    assert result.comparison is not None
    assert result.comparison.problems == ()
    assert result.comparison.sqnr_db is not None
    assert result.comparison.sqnr_db > 25


@pytest.mark.parametrize("sample", range(0, 64, 9))
def test_a_missing_value_that_reaches_an_output_is_named_with_its_sample(tmp_path: Path, sample: int) -> None:
    """Whether it is a calibration sample or one that is held out."""
    x = data(0.0)
    x[sample, 4] = np.nan
    np.savez(tmp_path / "calib.npz", X=x)
    with pytest.raises(DataError) as caught:
        onnxq.quantize(network(imputed=False), str(tmp_path / "calib.npz"), config=CONFIG)
    place = f"sample {sample} of calib.npz, which holds NaN in the input 'X'"
    assert caught.value.what == f"output 'p' of the float model is NaN for {place}"
    assert caught.value.hint == "remove or repair that sample"
