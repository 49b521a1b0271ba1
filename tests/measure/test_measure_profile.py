"""Profiles: every kernel has its time and shapes, and the time of every kernel belongs somewhere."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import Net, feeds, if_body, mobilenet, residual

from onnxq.errors import DataError
from onnxq.measure.attribution import attribute
from onnxq.measure.profile import KernelTime, kernel_times, observed_shapes, profile
from onnxq.pipeline import quantize


def test_every_node_has_a_time_and_the_shapes_it_saw() -> None:
    proto = residual()
    times = kernel_times(proto.SerializeToString(), feeds(proto, 2), runs=3, optimize="none")
    assert [t.name for t in times] == [n.name for n in proto.graph.node]
    by_name = {t.name: t for t in times}
    assert by_name["stem"].op == "Conv"
    assert by_name["stem"].inputs == ((2, 3, 8, 8), (8, 3, 3, 3), (8,))
    assert by_name["fc"].outputs == ((2, 10),)
    assert all(t.microseconds >= 0 for t in times)


def test_shapes_are_those_of_the_run() -> None:
    proto = residual()
    seen = observed_shapes(proto.SerializeToString(), {"x": np.zeros((7, 3, 8, 8), np.float32)})
    assert seen["conv2"] == ((7, 8, 8, 8),)


def test_a_node_in_a_branch_that_did_not_run_has_no_time() -> None:
    proto = if_body()
    names = {t.name for t in kernel_times(proto.SerializeToString(), feeds(proto, 1), runs=2, optimize="none")}
    assert len({"inner_then", "inner_else"} & names) == 1


def test_without_inputs_there_is_nothing_to_run() -> None:
    with pytest.raises(DataError, match="give at least one sample"):
        kernel_times(residual().SerializeToString(), [])


@pytest.mark.no_costs
@pytest.mark.parametrize("make", [residual, mobilenet])
def test_the_time_of_every_kernel_is_attributed_once(make) -> None:
    proto = make()
    result = quantize(proto, feeds(proto, 8))
    for model in (proto, result.proto()):
        content = model.SerializeToString()
        found = profile(content, feeds(proto, 1), runs=4)
        told = attribute(content, found)
        assert told.total == pytest.approx(found.total)
        assert set(told.nodes) <= {n.name for n in model.graph.node}
        assert set(told.others) <= {"QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput"}


@pytest.mark.no_costs
def test_kernels_belong_to_the_node_that_computes() -> None:
    proto = residual()
    content = proto.SerializeToString()
    nodes = attribute(content, profile(content, feeds(proto, 1), runs=4)).nodes
    # Relu and the sum run within the convolutions before them.
    assert {"stem", "conv1", "conv2", "fc"} <= set(nodes)
    assert not {"stem_relu", "relu1", "relu2", "add"} & set(nodes)
    integer = quantize(proto, feeds(proto, 8)).proto().SerializeToString()
    kernels = {n: t.kernel for n, t in attribute(integer, profile(integer, feeds(proto, 1), runs=4)).nodes.items()}
    assert {n: kernels[n] for n in ("stem", "conv1", "conv2", "fc", "add")} == {
        "stem": "QLinearConv",
        "conv1": "QLinearConv",
        "conv2": "QLinearConv",
        "fc": "QGemm",
        "add": "QLinearAdd",
    }


def test_unnamed_kernels_are_told_apart_by_order() -> None:
    n = Net()
    x = n("Softplus", "x", name="")
    n("Softplus", x, name="", out="y")
    proto = n.model({"x": [1, 200000]}, {"y": [1, 200000]})
    content = proto.SerializeToString()
    found = profile(content, feeds(proto, 1), runs=4)
    assert len(found.microseconds) == len(found.kernels.nodes) == 2
    assert all(t > 0 for t in found.microseconds)
    assert isinstance(kernel_times(content, feeds(proto, 1))[0], KernelTime)
