"""Which values hold codes behind a kernel, whose time a kernel's is, and how often a node in a loop counts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from measure_models import Graph, value
from onnx import TensorProto, helper, numpy_helper

from onnxq.measure import profile as profiling
from onnxq.measure.attribution import attribute
from onnxq.measure.kernels import Kernel, KernelMap, classify, kernels_of
from onnxq.measure.profile import Profile, kernel_times


def behind_qgemm(*more: str) -> onnx.GraphProto:
    """As onnxruntime saves it: a QGemm, with ``more`` inputs than it must have, and a Reshape behind it."""
    inputs = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "", *more]
    nodes = [
        helper.make_node("QGemm", inputs, ["g"], "gemm", domain="com.microsoft"),
        helper.make_node("Reshape", ["g", "shape"], ["y"], "view"),
    ]
    constants = [
        numpy_helper.from_array(np.zeros((4, 4), np.uint8), "w"),
        numpy_helper.from_array(np.array([16]), "shape"),
        *(numpy_helper.from_array(np.array(0, np.uint8), name) for name in ("x_zero", "w_zero", "y_zero")),
        *(numpy_helper.from_array(np.array(1, np.float32), name) for name in ("x_scale", "w_scale", "y_scale")),
    ]
    given = [value("x", [4, 4], TensorProto.UINT8)]
    return helper.make_graph(nodes, "g", given, [value("y", [16])], constants)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        (("y_scale", "y_zero"), "integer movement"),
        ((), "other"),
        (("", ""), "other"),
        (("y_scale",), "other"),
    ],
)
def test_a_gemm_writes_codes_only_if_it_has_an_output_zero_point(more: tuple[str, ...], kind: str) -> None:
    gemm, view = kernels_of(behind_qgemm(*more))
    assert (gemm.kind, view.kind) == ("integer compute", kind)


def test_a_product_of_integers_to_float_writes_no_codes() -> None:
    assert classify("Reshape", on_codes=False) == "other"
    nodes = [
        helper.make_node("MatMulIntegerToFloat", ["x", "w"], ["m"], "mm", domain="com.microsoft"),
        helper.make_node("Reshape", ["m", "shape"], ["y"], "view"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", [4, 4], TensorProto.UINT8)], [value("y", [16])], [])
    assert [k.kind for k in kernels_of(graph)] == ["integer compute", "other"]


def told(model: bytes, *kernels: tuple[str, str, tuple[str, ...], float]) -> Any:
    """The attribution of a profile in which these kernels, (operator, name, outputs, microseconds), ran."""
    nodes = tuple(Kernel(op, "", name, "", outputs, classify(op)) for op, name, outputs, _ in kernels)
    return attribute(model, Profile(KernelMap("m", "all", "0", nodes), tuple(k[-1] for k in kernels)))


def sums() -> bytes:
    """x + x, quantized before and behind, and then as a pool."""
    g = Graph()
    x = g.qdq("x")
    g.node("Add", [x, x], "s", name="sum")
    g.node("Sigmoid", [g.qdq("s")], "p", name="squashed")
    g.qdq("p", out="y")
    return g.model({"x": [1, 4]}, {"y": [1, 4]})


def test_a_kernel_that_ends_in_a_quantizer_belongs_to_what_is_before_it() -> None:
    """The fused kernel of a sum is known only by what the QuantizeLinear behind it wrote."""
    found = told(sums(), ("QLinearAdd", "made up", ("s_q",), 5.0), ("QLinearSigmoid", "too", ("p_q",), 3.0))
    assert {name: (t.kernel, t.microseconds) for name, t in found.nodes.items()} == {
        "sum": ("QLinearAdd", 5.0),
        "squashed": ("QLinearSigmoid", 3.0),
    }
    assert found.others == {}


def test_a_quantizer_itself_belongs_to_no_node() -> None:
    found = told(sums(), ("QuantizeLinear", "s_q_node", ("s_q",), 2.0), ("Add", "sum", ("s",), 5.0))
    assert dict(found.others) == {"QuantizeLinear": 2.0}
    assert set(found.nodes) == {"sum"}
    assert found.total == 7.0


def event(name: str, start: int, duration: int) -> dict[str, Any]:
    shapes = {"input_type_shape": [{"float": [1, 4]}], "output_type_shape": [{"float": [1, 4]}]}
    arguments = {"node_index": name, "op_name": name.title(), **shapes}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": arguments}


def test_a_node_in_a_loop_takes_the_time_of_all_its_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two slow runs to warm up and two that count: three rounds of the body a run, a branch in every second one."""
    events: list[dict[str, Any]] = []
    for number in range(4):
        start, slow = 100 * number, 50 if number < 2 else 1
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": 90})
        events.append(event("before", start + 1, 7 * slow))
        events += [event("body", start + 10 + i, 4 * slow) for i in range(3)]
        events += [event("branch", start + 20, 6 * slow)] if number % 2 else []
    file = tmp_path / "events.json"
    file.write_text(json.dumps(events), encoding="utf-8")
    ran: list[object] = []
    session = SimpleNamespace(end_profiling=lambda: str(file))
    monkeypatch.setattr(profiling, "open_session", lambda *_, **__: session)
    monkeypatch.setattr(profiling, "run", lambda *given: ran.append(given))
    times = kernel_times(b"", [{"x": np.zeros(4, np.float32)}], runs=2)
    assert len(ran) == 4
    assert {t.name: t.microseconds for t in times} == {"before": 7.0, "body": 12.0, "branch": 3.0}
