"""Twice the nodes are about twice the work: calls are counted, which no busy machine changes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config, inspect, quantize
from onnxq.numerics import UINT8
from onnxq.plan import Plan, Point, SharedWith

WIDTH = 16
# Comparing every layer with every other one, in a single place, came to 2.15 here.
MOST = 2.1


def calls(work: Callable[[], object]) -> int:
    """How many functions ``work`` calls, those written in C among them."""
    count = 0

    def counted(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layers(count: int, *, skipping: bool = False) -> onnx.ModelProto:
    """Square products with weights of their own and an activation, or a sum with what came before, behind each."""
    rng, scale = np.random.default_rng(0), 0.05 if skipping else 1.0
    nodes, constants, value = [], {}, "x"
    for i in range(count):
        constants[f"w{i}"] = (scale * rng.standard_normal((WIDTH, WIDTH)) / math.sqrt(WIDTH)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"], name=f"m{i}"))
        after = "y" if i == count - 1 else f"v{i}"
        behind = ("Add", [f"m{i}", value]) if skipping else ("Tanh", [f"m{i}"])
        nodes.append(helper.make_node(*behind, [after], name=f"t{i}"))
        value = after
    return model_of(nodes, constants)


def shapes(count: int) -> onnx.ModelProto:
    """Reshape by arithmetic with the shape of what is reshaped, as exporters write it."""
    nodes, value = [], "x"
    for i in range(count):
        steps = (
            ("Shape", [value]),
            ("Gather", [f"s{i}_0", "zero"]),
            ("Unsqueeze", [f"s{i}_1", "axis"]),
            ("Concat", [f"s{i}_2", "width"]),
            ("Reshape", [value, f"s{i}_3"]),
        )
        for k, (op, inputs) in enumerate(steps):
            attributes = {"axis": 0} if op == "Concat" else {}
            nodes.append(helper.make_node(op, inputs, [f"s{i}_{k}"], name=f"s{i}_{k}", **attributes))
        value = f"s{i}_4"
    nodes.append(helper.make_node("MatMul", [value, "w"], ["y"], name="last"))
    weight = np.random.default_rng(0).standard_normal((WIDTH, 64)).astype(np.float32)
    return model_of(nodes, {"zero": np.array(0), "axis": np.array([0]), "width": np.array([WIDTH]), "w": weight})


def skipping(count: int) -> onnx.ModelProto:
    return layers(count, skipping=True)


@pytest.mark.parametrize(
    ("graph", "task"), [(layers, "quantize"), (skipping, "quantize"), (skipping, "inspect"), (shapes, "inspect")]
)
def test_twice_the_nodes_are_twice_the_work(graph: Callable[[int], onnx.ModelProto], task: str) -> None:
    data = {"x": np.random.default_rng(1).standard_normal((8, WIDTH)).astype(np.float32)}
    settings = Config(latency_seconds=0)

    def work(count: int) -> Callable[[], object]:
        model = graph(count)
        return lambda: inspect(model) if task == "inspect" else quantize(model, data, config=settings)

    calls(work(4))  # modules are loaded, tables read
    once, twice = calls(work(100)), calls(work(200))
    assert once < twice < MOST * once


def test_a_long_chain_of_sharing_is_followed_once() -> None:
    # From the last to the first, where each step is new, and where another's steps are known.
    links = [Point(f"t{i}", UINT8, SharedWith(f"t{i - 1}")) for i in range(1, 4000)]
    for points in (links, links[::-1]):
        assert set(Plan(points=tuple(points)).roots.values()) == {"t0"}
    many = Plan(points=tuple(links))
    assert calls(lambda: many.roots) < 20 * len(links)
