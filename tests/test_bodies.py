"""Layers in the bodies of Loop and Scan, from the tensors that are seen of them to the quantized model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from zoo import Net, prepared

from onnxq import Config, quantize
from onnxq.calibrate.runner import run_observers, values_of
from onnxq.config.presets import preset
from onnxq.plan import Storage
from onnxq.plan.stored import stored_formats

FLAG, COUNT = (TensorProto.BOOL, []), (TensorProto.INT64, [])
WIDTH = 64
STEPS = 4


def value(name: str, of: Any) -> onnx.ValueInfoProto:
    kind, dims = of if isinstance(of, tuple) else (TensorProto.FLOAT, of)
    return helper.make_tensor_value_info(name, kind, dims)


def loop(n: Net, body: Net, start: str, name: str, *, dims: Any = ("n", WIDTH), scans: int = 0) -> list[str]:
    """A Loop of ``STEPS`` from ``start``: its body reads ``NAME_h`` and makes ``NAME_next``, and ``NAME_seen``."""
    body("Identity", f"{name}_go", name=f"{name}_keep", out=f"{name}_still")
    given = {f"{name}_i": COUNT, f"{name}_go": FLAG, f"{name}_h": list(dims)}
    made = {f"{name}_still": FLAG, f"{name}_next": list(dims)} | ({f"{name}_seen": list(dims)} if scans else {})
    graph = body.body(name, [value(k, of) for k, of in given.items()], made)
    trips, go = n.const(f"{name}_trips", STEPS, np.int64), n.const(f"{name}_start", True, bool)
    if not scans:
        return [n("Loop", trips, go, start, name=name, body=graph)]
    return n.many("Loop", trips, go, start, name=name, count=2, body=graph)


def head(n: Net, y: str, inputs: Any = None) -> onnx.ModelProto:
    n.linear(n("Relu", n.linear(y, WIDTH, 96, name="wide"), name="wide_relu"), 96, 8, name="last", out="y")
    return n.model(inputs or {"x": ["n", WIDTH]}, {"y": ["n", 8]})


def state_times_outer_weight() -> onnx.ModelProto:
    n, body = Net(1), Net(2)
    n.weight("w", WIDTH, WIDTH, fan=2 * WIDTH)
    body("Tanh", body("MatMul", "loop_h", "w", name="step"), name="tanh", out="loop_next")
    return head(n, loop(n, body, "x", "loop")[0])


def state_in_gemm_of_the_body() -> onnx.ModelProto:
    n, body = Net(1), Net(2)
    step = body("Gemm", "loop_h", body.weight("w", WIDTH, WIDTH), body.vector("b", WIDTH), name="step", transB=1)
    body("Tanh", step, name="tanh", out="loop_next")
    return head(n, loop(n, body, "x", "loop")[0])


def stacked_outputs() -> onnx.ModelProto:
    n, body = Net(1), Net(2)
    body("Tanh", body.linear("loop_h", WIDTH, WIDTH, name="step"), name="tanh", out="loop_next")
    body("Identity", "loop_h", name="shown", out="loop_seen")
    return head(n, n("ReduceMean", loop(n, body, "x", "loop", scans=1)[1], name="mean", axes=[0], keepdims=0))


def outer_value() -> onnx.ModelProto:
    n, body = Net(1), Net(2)
    seen = n("Relu", "x", name="outer")
    step = body("MatMul", seen, body.weight("w", WIDTH, WIDTH, fan=2 * WIDTH), name="step")
    body("Tanh", body("Add", step, "loop_h", name="add"), name="tanh", out="loop_next")
    return head(n, loop(n, body, "x", "loop")[0])


def loop_in_loop() -> onnx.ModelProto:
    n, body, inner = Net(1), Net(2), Net(3)
    step = inner("MatMul", "inner_h", inner.weight("w", WIDTH, WIDTH, fan=3 * WIDTH), name="step")
    inner("Tanh", step, name="tanh", out="inner_next")
    (y,) = loop(body, inner, "loop_h", "inner")
    body("Relu", body("MatMul", y, body.weight("w2", WIDTH, WIDTH), name="outer_step"), name="relu", out="loop_next")
    return head(n, loop(n, body, "x", "loop")[0])


def if_in_loop() -> onnx.ModelProto:
    """The branch changes from step to step."""
    n, body, then, other = Net(1), Net(2), Net(3), Net(4)
    n.weight("w", WIDTH, WIDTH, fan=2 * WIDTH)
    n.weight("w2", WIDTH, WIDTH, fan=2 * WIDTH)
    then("Tanh", then("MatMul", "loop_h", "w", name="step"), name="tanh", out="then_y")
    other("Tanh", other("MatMul", "x", "w2", name="outer_step"), name="tanh2", out="else_y")
    early = body("Less", "loop_i", body.const("two", 2, np.int64), name="early")
    branches = {
        "then_branch": then.body("t", [], {"then_y": ["n", WIDTH]}),
        "else_branch": other.body("e", [], {"else_y": ["n", WIDTH]}),
    }
    body("If", early, name="choice", out="loop_next", **branches)
    return head(n, loop(n, body, "x", "loop")[0])


def growing_state() -> onnx.ModelProto:
    """Every step appends a row: no two values of the state have one shape."""
    n, body = Net(1), Net(2)
    step = body("Tanh", body.linear("loop_h", WIDTH, WIDTH, name="step"), name="tanh")
    body("Concat", "loop_h", step, name="longer", out="loop_next", axis=1)
    start = n("Unsqueeze", "x", n.const("one", [1], np.int64), name="rows")
    (y,) = loop(n, body, start, "loop", dims=("n", "t", WIDTH))
    return head(n, n("ReduceMean", y, name="mean", axes=[1], keepdims=0))


def scan(**attributes: Any) -> onnx.ModelProto:
    """A recurrent network over ``x: [n, 6, WIDTH]``, its scan input and scan output read and written along axis 1."""
    n, body = Net(1), Net(2)
    body("MatMul", "h", body.weight("wh", WIDTH, WIDTH, fan=2 * WIDTH), name="step")
    body("MatMul", "xt", body.weight("wx", WIDTH, WIDTH, fan=2 * WIDTH), name="enter")
    body("Tanh", body("Add", "step_out", "enter_out", name="add"), name="tanh", out="h_next")
    body("Relu", "h_next", name="shown", out="seen")
    rows = ["n", WIDTH]
    graph = body.body("b", [value("h", rows), value("xt", rows)], {"h_next": rows, "seen": rows})
    axes = {"scan_input_axes": [1], "scan_output_axes": [1], "scan_output_directions": [1]} | attributes
    start = n("ReduceMean", "x", name="start", axes=[1], keepdims=0)
    seen = n.many("Scan", start, "x", name="scan", count=2, body=graph, num_scan_inputs=1, **axes)[1]
    return head(n, n("ReduceMean", seen, name="mean", axes=[1], keepdims=0), {"x": ["n", 6, WIDTH]})


BODIES: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        state_times_outer_weight,
        state_in_gemm_of_the_body,
        stacked_outputs,
        outer_value,
        loop_in_loop,
        if_in_loop,
        growing_state,
        scan,
    )
}
CONFIGS = {
    "int8": (Config(), 30.0),
    "everywhere": (Config(placement="all", equalize="all"), 30.0),
    "adapted": (Config(placement="all", adapt="fast"), 30.0),
    "w4": (preset("w4"), 10.0),
}


def data(proto: onnx.ModelProto, count: int = 48) -> dict[str, np.ndarray]:
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    return {"x": np.random.default_rng(5).standard_normal((count, *shape)).astype(np.float32)}


@pytest.mark.parametrize("how", CONFIGS)
@pytest.mark.parametrize("name", BODIES)
def test_bodies_compute_on_integers_and_agree_with_float(name: str, how: str) -> None:
    proto, (config, least) = BODIES[name](), CONFIGS[how]
    result = quantize(proto, data(proto), config=config)
    storage = {w.node: w.storage for w in result.plan.weights}
    four_bits = how == "w4" and name != "outer_value"  # that reads the input, as first layers do
    assert storage["step"] is (Storage.BLOCKS if four_bits else Storage.DYNAMIC)
    kernels = {k.op for k in result.report.kernels.integer_compute if k.scope}
    assert ("MatMulNBits" if four_bits else "DynamicQuantizeMatMul") in kernels
    assert result.comparison is not None
    assert result.comparison.problems == ()
    assert result.comparison.sqnr_db is not None
    assert result.comparison.sqnr_db > least


@pytest.mark.parametrize("weights_only", [False, True])
def test_without_data_too(weights_only: bool) -> None:
    result = quantize(loop_in_loop(), config=preset("w4") if weights_only else Config())
    assert {"step", "outer_step"} <= {w.node for w in result.plan.weights}


def test_what_a_layer_reads_in_every_step_is_seen() -> None:
    """The state is what the body is given; by the book it is computed here once more."""
    proto = state_times_outer_weight()
    model, x = prepared(proto), data(proto, 2)["x"]
    weight = next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "w")
    expected = [x]
    for _ in range(STEPS - 1):
        expected.append(np.tanh(expected[-1] @ weight))
    (seen,) = values_of(model, ["loop_h", "tanh_out"], [{"x": x}])
    np.testing.assert_allclose(seen["loop_h"], np.concatenate(expected), rtol=1e-4, atol=1e-5)
    assert seen["loop_h"].shape == (STEPS * 2, WIDTH)


def test_of_loops_in_loops_all_steps_are_one_value() -> None:
    proto = loop_in_loop()
    (seen,) = values_of(prepared(proto), ["inner_h", "loop_h"], [data(proto, 3)])
    assert seen["inner_h"].shape == (STEPS * STEPS * 3, WIDTH)
    assert seen["loop_h"].shape == (STEPS * 3, WIDTH)


@pytest.mark.parametrize("directions", [{}, {"scan_output_directions": [0]}])
def test_values_of_a_scan_are_stacked_whatever_its_axes(directions: Any) -> None:
    proto = scan(**directions)
    x = data(proto, 3)["x"]
    (seen,) = values_of(prepared(proto), ["xt"], [{"x": x}])
    np.testing.assert_array_equal(seen["xt"], np.concatenate(list(x.transpose(1, 0, 2))))


def test_steps_that_differ_in_shape_are_not_seen_and_the_rest_is() -> None:
    proto = growing_state()
    found = run_observers(prepared(proto), ["loop_h", "wide_relu_out"], [data(proto, 3)] * 2)
    assert set(found.histograms) == {"wide_relu_out"}
    assert found.histograms["wide_relu_out"].total == 2 * 3 * 96


def test_a_state_is_neither_the_first_nor_the_last_tensor_of_a_model() -> None:
    def formats(proto: onnx.ModelProto) -> dict[str, str]:
        return {k: str(v) for k, v in stored_formats(prepared(proto), Config(weights="int4")).items()}

    assert formats(state_times_outer_weight()) == {"step": "int4", "wide": "int4", "last": "int8"}
    assert formats(outer_value()) == {"step": "int8", "wide": "int4", "last": "int8"}
    assert formats(scan()) == {"step": "int4", "enter": "int8", "wide": "int4", "last": "int8"}
    expected = {"step": "int4", "outer_step": "int8", "wide": "int4", "last": "int8"}
    assert formats(if_in_loop()) == expected
