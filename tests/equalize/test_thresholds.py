"""When factors are worth it, and where they may not go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.config import Config
from onnxq.equalize import Terms, apply, equalized
from onnxq.equalize.reads import Read
from onnxq.equalize.sites import find_sites
from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import TARGETS, USUAL
from onnxq.plan import make_plan


def network(channels: int = 8, *, gate: bool = False, size: float = 1.0) -> ir.Model:
    """Conv, Relu or HardSwish, depthwise Conv or none, Conv, the last with weights of ``size``."""
    rng = np.random.default_rng(3)
    arrays = {
        "w1": rng.standard_normal((channels, 3, 3, 3)),
        "b1": rng.standard_normal(channels),
        "w2": np.sign(rng.standard_normal((4, channels, 1, 1))) * size,
    }
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["c"], "one")]
    if gate:
        nodes.append(helper.make_node("HardSigmoid", ["c"], ["g"], "gate", alpha=1 / 6, beta=0.5))
        nodes.append(helper.make_node("Mul", ["c", "g"], ["h"], "product"))
    else:
        nodes.append(helper.make_node("Relu", ["c"], ["h"], "relu"))
    nodes.append(helper.make_node("Conv", ["h", "w2"], ["y"], "two"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ("batch", 3, 8, 8))],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return prepare(ir.from_proto(proto), target=USUAL).model


def changed(graph: ir.Model, relative: float, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether ``graph`` is changed where the best factors leave ``relative`` of the noise."""

    def best(reads: list[Read], channels: int, *, method: str) -> tuple[np.ndarray, float]:
        return np.linspace(1.0, 2.0, reads[0].rows.shape[1]), relative

    monkeypatch.setattr(apply, "best_factors", best)
    feeds = [{"x": np.random.default_rng(i).standard_normal((2, 3, 8, 8)).astype(np.float32)} for i in range(2)]
    plan = make_plan(graph, Config(placement="all"), TARGETS["x86-vnni"])
    return bool(equalized(graph, plan, feeds, method="minmax", terms=Terms(costly=True)).steps)


@pytest.mark.parametrize(("relative", "worth"), [(0.9, True), (0.99, False), (1.2, False)])
def test_factors_that_gain_by_chance_are_left(relative: float, worth: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed(network(), relative, monkeypatch) == worth


@pytest.mark.parametrize(
    ("channels", "relative", "worth"), [(16, 0.05, True), (16, 0.3, False), (64, 0.3, True), (64, 0.6, False)]
)
def test_a_slow_pass_must_gain_more(
    channels: int, relative: float, worth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changed(network(channels, gate=True), relative, monkeypatch) == worth


def test_weights_near_the_largest_number_stay() -> None:
    assert [site.tensor for site in find_sites(network(size=1e30))] != []
    assert find_sites(network(size=1e37)) == []  # 64 times that is infinite


def test_rows_that_carry_little_count_as_a_hundredth_of_the_median() -> None:
    rng = np.random.default_rng(1)
    rows, weight = rng.standard_normal((101, 8)).astype(np.float32), rng.standard_normal((1, 8, 1, 5))
    rows[:10] *= 1e-4
    read = Read(rows, weight.astype(np.float32), 8, 8)
    energy = ((rows.astype(np.float64) @ weight[0, :, 0]) ** 2).sum(axis=1)
    carried = read.carried(rows)
    ratio = carried / np.maximum(energy, 0.01 * np.median(energy))
    np.testing.assert_allclose(ratio, ratio[-1], rtol=1e-3)
