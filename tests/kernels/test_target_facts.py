"""Facts of kernels belong to the target: who asks with another one gets another answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from zoo import Net, prepared

from onnxq.graph.passes.pad_channels import pad_channels
from onnxq.kernels import ops
from onnxq.kernels.targets import TARGETS, Target
from onnxq.kernels.work import breaks_blocks, work_of
from onnxq.query import nodes

VNNI = TARGETS["x86-vnni"]


def conv_of(cin: int, cout: int, **how: Any) -> ir.Node:
    n = Net()
    n.conv("x", cin, cout, name="conv", out="y", **how)
    (node,) = nodes(prepared(n.model({"x": [1, cin, 8, 8]}, {"y": [1, cout, 8, 8]})))
    return node


def lstm(units: int) -> ir.Node:
    rng = np.random.default_rng(0)
    given = [
        ir.Value(name=n, const_value=ir.Tensor(rng.random((1, 4 * units, units)).astype(np.float32), name=n))
        for n in ("w", "r")
    ]
    graph = ir.Graph([], [], nodes=[], initializers=given, opset_imports={"": 17})
    node = ir.node("LSTM", [ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT)), *given], num_outputs=1)
    graph.append(node)
    return node


@pytest.mark.parametrize(
    ("field", "value", "asks"),
    [
        ("depthwise_multiple", 8, lambda t: work_of(conv_of(24, 24, group=24), {"y": (1, 24, 8, 8)}, t).direct),
        ("direct_outputs", 8, lambda t: work_of(conv_of(16, 8), {"y": (1, 8, 8, 8)}, t).direct),
        ("direct_output_multiple", 2, lambda t: work_of(conv_of(16, 18), {"y": (1, 18, 8, 8)}, t).direct),
        ("direct_inputs", 8, lambda t: ops.padded_input_channels(conv_of(3, 16), t)),
        ("padded_kernel", 2, lambda t: ops.padded_input_channels(conv_of(3, 16), t)),
        ("padded_output_multiple", 32, lambda t: ops.padded_input_channels(conv_of(3, 16), t)),
        ("recurrent_weights", 100, lambda t: ops.can_be_dynamic(lstm(16), t)),
    ],
)
def test_facts_of_kernels_are_those_of_the_target(field: str, value: int, asks: Any) -> None:
    other: Target = dataclasses.replace(VNNI, **{field: value})  # type: ignore[arg-type]
    assert asks(other) != asks(VNNI)


def test_every_target_has_the_facts_that_were_measured_on_x86() -> None:
    facts = {f.name for f in dataclasses.fields(Target)} - {"name", "activations", "weights", "why"}
    measured = {
        "direct_inputs": 4,
        "direct_outputs": 16,
        "direct_output_multiple": 4,
        "padded_output_multiple": 8,
        "padded_kernel": 7,
        "depthwise_multiple": 16,
        "depthwise_growth": 1.25,
        "depthwise_exchange": 11.0,
        "float_block": 16,
        "recurrent_weights": 48_000,
        "global_pooling": True,
        "slow_subnormals": True,
    }
    assert facts == {"direct_convolution", *measured}
    for target in TARGETS.values():
        assert {name: getattr(target, name) for name in measured} == measured


def depthwise_of(channels: int) -> ir.Model:
    n = Net()
    a = n.conv("x", 4, channels, k=1, name="a")
    n.conv(n.conv(a, channels, channels, name="b", group=channels), channels, 4, k=1, name="c", out="y")
    model = n.model({"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]})
    return ir.from_proto(model)


@pytest.mark.parametrize(
    ("changes", "grown"),
    [
        ({}, 1),
        ({"depthwise_multiple": 8}, 0),  # 56 is one already
        ({"depthwise_growth": 1.1}, 0),
        ({"depthwise_exchange": 1e-6}, 0),
    ],
)
def test_channels_grow_as_the_target_wants(changes: dict[str, Any], grown: int) -> None:
    assert pad_channels(depthwise_of(56), dataclasses.replace(VNNI, **changes)) == grown


def test_blocks_of_float_convolutions_are_those_of_the_target() -> None:
    n = Net()
    n("Concat", "a", "b", name="join", axis=1, out="y")
    sizes = {"a": (1, 24, 8, 8), "b": (1, 8, 8, 8)}
    model = prepared(n.model({k: list(v) for k, v in sizes.items()}, {"y": [1, 32, 8, 8]}))
    (join,) = nodes(model)
    assert breaks_blocks(join, sizes, VNNI)
    assert not breaks_blocks(join, sizes, dataclasses.replace(VNNI, float_block=8))
