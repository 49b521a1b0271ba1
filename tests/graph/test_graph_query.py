"""Questions about graphs, what a model takes and gives, interior tensors as outputs, and handing a model over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from zoo import Net, feeds, gemm, if_body, loop_body, lstm, prepared, residual

from onnxq.files.scratch import discard
from onnxq.graph import runtime_model
from onnxq.graph.instrument import expose, owners, repeated
from onnxq.graph.io import serialize
from onnxq.graph.runtime_model import to_runtime, weight_bytes
from onnxq.graph.signature import TensorSpec, signature
from onnxq.query import array, attribute, constant, escapes, is_float, nodes, trailing_ones, values_by_name
from onnxq.runtime.session import open_session, run


def test_constants_are_initializers_only() -> None:
    values = values_by_name(ir.from_proto(gemm()))
    found = array(values["b1"])
    assert found is not None
    assert found.shape == (32,)
    assert constant(values["x"]) is constant(values["relu_out"]) is constant(None) is None


def test_is_float_gives_unknown_types_the_benefit_of_the_doubt() -> None:
    values = values_by_name(ir.from_proto(lstm()))
    assert is_float(values["w"])
    assert is_float(values["h_all"])  # no type in the file
    assert not is_float(values["axis"])
    assert not is_float(None)


def test_attributes_have_defaults() -> None:
    node = next(nodes(ir.from_proto(gemm())))
    assert attribute(node, "transB", 0) == 1
    assert attribute(node, "alpha", 1.0) == 1.0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [([2, 8, 1, 1], True), ([2, 8, 1, 3], False), (["n", "c", 1, 1], True), ([1, 1], False), (None, False)],
)
def test_trailing_ones(shape: list[int | str] | None, expected: bool) -> None:
    value = ir.Value(name="v", shape=None if shape is None else ir.Shape(shape))
    assert trailing_ones(value, 2) == expected


def test_nodes_and_values_reach_into_bodies() -> None:
    model = prepared(if_body())
    assert {"inner_then", "inner_else", "branch", "last"} <= {n.name for n in nodes(model)}
    assert {"then_y", "inner_else_w", "shared", "x", "flag"} <= set(values_by_name(model))


def test_what_escapes_its_graph() -> None:
    values = values_by_name(prepared(if_body()))
    assert escapes(values["relu_out"])  # read in the branches
    assert escapes(values["y"])
    assert not escapes(values["chosen"])


def test_a_signature_leaves_out_initializers_listed_as_inputs() -> None:
    proto = gemm()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("b1", TensorProto.FLOAT, [32]))
    found = signature(ir.from_proto(proto))
    assert found.inputs == (TensorSpec("x", np.dtype(np.float32), ("n", 16)),)
    assert found.outputs == (TensorSpec("y", np.dtype(np.float32), ("n", 10)),)
    assert str(found.inputs[0]) == "x: float32[n, 16]"


def test_unknown_dimensions_and_types() -> None:
    value = onnx.helper.make_tensor_value_info
    n = Net()
    n("Identity", "s", name="i", out="t")
    graph = n.model({"s": (TensorProto.STRING, [2])}, {"t": (TensorProto.STRING, [2])}).graph
    del graph.input[:], graph.output[:]
    graph.input.extend([value("s", TensorProto.STRING, ["?", -1, "n", 3]), value("u", TensorProto.INT64, None)])
    graph.output.append(onnx.ValueInfoProto(name="t"))
    found = signature(ir.from_proto(onnx.helper.make_model(graph)))
    assert found.inputs[0] == TensorSpec("s", np.dtype(object), (None, None, "n", 3))
    assert str(found.inputs[1]) == "u: int64[?]"
    assert str(found.outputs[0]) == "t: unknown[?]"


# -- interior tensors as outputs --------------------------------------------------------------------------------------


def test_only_what_was_asked_for_is_an_output() -> None:
    model = prepared(gemm())
    shown, names = expose(model, ["relu_out", "x", "nowhere"])
    assert names == {"x": "x", "relu_out": "relu_out"}
    assert [o.name for o in shown.graph.outputs] == ["x", "relu_out"]
    assert [o.name for o in model.graph.outputs] == ["y"]


def test_a_tensor_of_a_branch_is_empty_where_the_branch_did_not_run() -> None:
    proto = if_body()
    shown, names = expose(prepared(proto), ["inner_else_out", "else_y", "then_y"])
    session = open_session(serialize(shown))
    (feed,) = feeds(proto, 1)
    order = ["inner_else_out", "else_y", "then_y"]
    for flag, expected in ((True, [(0,), (0,), (2, 8)]), (False, [(2, 8), (2, 8), (0,)])):
        found = run(session, {**feed, "flag": np.array(flag)}, outputs=[names[n] for n in order])
        assert [v.shape for v in found] == expected


def test_values_shown_are_those_of_the_model() -> None:
    proto = residual()
    model = prepared(proto)
    names = [o.name or "" for n in model.graph for o in n.outputs]
    shown, output_of = expose(model, names)
    (feed,) = feeds(proto, 1)
    found = dict(
        zip(names, run(open_session(serialize(shown)), feed, outputs=[output_of[n] for n in names]), strict=True)
    )
    (y,) = run(open_session(proto.SerializeToString()), feed)
    np.testing.assert_allclose(found["y"], y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["relu1_out"], np.maximum(found["conv1_out"], 0))


def test_bodies_and_their_owners() -> None:
    model = prepared(if_body())
    assert {n.name for n in owners(model).values()} == {"branch"}
    assert len(owners(model)) == 2
    assert owners(prepared(gemm())) == {}


def test_nodes_of_loops_are_repeated_and_those_of_branches_are_not() -> None:
    assert repeated(prepared(if_body())) == set()
    assert {"step", "step_relu"} <= repeated(prepared(loop_body()))


def test_nodes_of_an_if_inside_a_loop_are_repeated() -> None:
    n, step, then, other = Net(), Net(), Net(), Net()
    then("Mul", "h_in", then.const("two", 2.0), name="double", out="t_y")
    other("Neg", "h_in", name="neg", out="o_y")
    branches = {"then_branch": then.body("t", [], {"t_y": [3]}), "else_branch": other.body("o", [], {"o_y": [3]})}
    step("If", "c", name="inner", out="h_out", **branches)
    step("Identity", "c", name="keep", out="c_out")
    info = onnx.helper.make_tensor_value_info
    flag = TensorProto.BOOL
    inputs = [info("i", TensorProto.INT64, []), info("c", flag, []), info("h_in", TensorProto.FLOAT, [3])]
    body = step.body("b", inputs, {"c_out": (flag, []), "h_out": [3]})
    n("Loop", n.const("trips", 3, np.int64), "go", "x", name="loop", out="y", body=body)
    hidden = repeated(prepared(n.model({"x": [3], "go": (flag, [])}, {"y": [3]})))
    assert {"double", "neg", "inner"} <= hidden


# -- handing over -----------------------------------------------------------------------------------------------------


def test_small_models_are_handed_over_as_bytes(tmp_path: Path) -> None:
    content = to_runtime(ir.from_proto(gemm()), tmp_path)
    assert isinstance(content, bytes)
    assert onnx.load_model_from_string(content).graph.node[0].name == "fc1"
    assert list(tmp_path.iterdir()) == []


def test_large_models_are_handed_over_as_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(gemm())
    monkeypatch.setattr(runtime_model, "IN_MEMORY_BYTES", weight_bytes(model) - 1)
    paths = [to_runtime(model, tmp_path) for _ in range(2)]
    assert all(isinstance(p, Path) and p.parent.parent == tmp_path for p in paths)
    assert paths[0] != paths[1]
    open_session(paths[1])
    assert paths[1].with_name(f"{paths[1].name}.data").stat().st_size > weight_bytes(model) / 2  # mapped, not copied
    for path in paths:
        discard(path)
    discard(b"held in memory")
    assert list(tmp_path.iterdir()) == []


def test_weight_bytes_counts_bodies() -> None:
    assert weight_bytes(ir.from_proto(gemm())) == 4 * (32 * 16 + 32 + 320 + 10)
    assert weight_bytes(prepared(if_body())) == 4 * (16 * 8 + 16 * 8 + 8 + 32)
