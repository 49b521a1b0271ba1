"""From which sizes on a node gets an integer kernel, at both sides of each limit."""

from __future__ import annotations

import onnx
import pytest
from zoo import Net, prepared

from onnxq.config import Config
from onnxq.kernels.ops import padded_input_channels
from onnxq.kernels.targets import TARGETS
from onnxq.kernels.work import work_of
from onnxq.plan import Storage, make_plan
from onnxq.query import nodes

VNNI = TARGETS["x86-vnni"]


def recurrent(units: int, inputs: int) -> onnx.ModelProto:
    n = Net(1)
    w, r = n.weight("w", 1, 4 * units, inputs), n.weight("r", 1, 4 * units, units)
    n("LSTM", "x", w, r, name="rnn", out="y", hidden_size=units)
    return n.model({"x": [3, 1, inputs]}, {"y": [3, 1, 1, units]})


@pytest.mark.parametrize(
    ("inputs", "computes"),
    [(20, True), (19, False)],  # 400 rows of 100 + 20 weights are 48,000: as few as were measured to be faster
)
def test_an_lstm_computes_with_integers_from_48_thousand_weights_on(inputs: int, computes: bool) -> None:
    plan = make_plan(prepared(recurrent(100, inputs)), Config(), VNNI)
    assert len(plan.weights) == 2
    assert ({w.storage for w in plan.weights} == {Storage.PACKED}) == (not computes)


@pytest.mark.parametrize(
    ("outputs", "padded"),
    [
        (8, 0),  # fewer than the direct kernel takes
        (16, 1),
        (20, 0),  # with AVX2 it takes them by eights
        (24, 1),
        (28, 0),
    ],
)
def test_few_inputs_are_widened_for_outputs_by_eights(outputs: int, padded: int) -> None:
    n = Net(2)
    n.conv("x", 3, outputs, name="conv", out="y")
    (conv,) = nodes(prepared(n.model({"x": [1, 3, 8, 8]}, {"y": [1, outputs, 8, 8]})))
    assert padded_input_channels(conv, VNNI) == padded
    work = work_of(conv, {"y": (1, outputs, 8, 8)}, VNNI)
    assert work is not None
    assert work.kernel == ("conv.widened" if padded else "conv.few")


@pytest.mark.parametrize(
    ("inputs", "outputs", "direct"),
    [
        (4, 16, True),
        (4, 12, False),  # fewer than the direct kernel takes
        (4, 18, False),
        (4, 20, True),
        (6, 16, False),
        (8, 16, True),
    ],
)
def test_the_direct_kernel_takes_channels_by_fours(inputs: int, outputs: int, direct: bool) -> None:
    n = Net(2)
    n.conv("x", inputs, outputs, name="conv", out="y")
    (conv,) = nodes(prepared(n.model({"x": [1, inputs, 8, 8]}, {"y": [1, outputs, 8, 8]})))
    work = work_of(conv, {"y": (1, outputs, 8, 8)}, VNNI)
    assert work is not None
    assert (work.kernel, work.direct) == ("conv.spatial", direct)
