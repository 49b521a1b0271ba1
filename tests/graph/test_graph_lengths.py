"""Which outputs are as long as values say, how, and which nodes decide that."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from lengths_zoo import detector, picker, speech
from onnx import TensorProto
from zoo import ZOO, Net

from onnxq.graph.lengths import ValueLengths, value_lengths
from onnxq.kernels.lengths import Length

I64 = TensorProto.INT64


def found(proto: onnx.ModelProto) -> ValueLengths:
    return value_lengths(ir.from_proto(proto))


def test_predicted_durations_stretch_what_they_repeat() -> None:
    lengths = found(speech(with_durations=False))
    assert lengths.outputs == {"mel": Length.STRETCHED}
    layers = [n for n in lengths.deciding if n.startswith(("encode", "decode", "duration"))]
    assert [n for n in layers if n in ("encode0", "encode1", "duration", "decode0", "decode1")] == [
        "duration",
        "encode1",
        "encode0",
    ]
    # What is repeated depends on the durations too, but the encoder's output is repeated: it does more than decide.
    assert "last" in lengths.only
    assert "encode1" not in lengths.only


def test_an_output_of_the_number_of_steps_is_no_shorter_for_that() -> None:
    assert found(speech()).outputs == {"mel": Length.STRETCHED}


def test_detections_are_known_in_every_form() -> None:
    assert found(detector()).outputs == dict.fromkeys(("boxes", "scores", "labels"), Length.DETECTED)
    assert found(detector(table=True)).outputs == {"table": Length.DETECTED}
    assert {"box", "score", "conv0"} <= set(found(detector()).deciding)


def test_what_a_condition_picks() -> None:
    lengths = found(picker())
    assert lengths.outputs == {"found": Length.PICKED}
    assert "score" in lengths.only
    assert not {"fc0", "fc1"} & set(lengths.deciding)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_shapes_decide_all_lengths_of_ordinary_networks(name: str) -> None:
    assert found(ZOO[name]()) == ValueLengths()


def scored(n: Net) -> str:
    """A number for each of 8 rows, from a layer."""
    return n("Reshape", n.linear("x", 4, 1, name="fc"), n.const("flat", [-1], I64_TYPE), name="score")


I64_TYPE = "int64"


def test_the_callers_own_numbers_decide_nothing() -> None:
    """Lengths that are inputs are the same for both models; so is what is picked of an input."""
    n = Net()
    n.const("zero", 0, I64_TYPE), n.const("one", 1, I64_TYPE)
    steps = n("Range", "zero", "count", "one", name="steps")
    n("Gather", n.linear("x", 4, 4, name="fc"), steps, name="take", out="y")
    n("Gather", "x", n("NonZero", "mask", name="nonzero"), name="masked", out="z")
    proto = n.model(
        {"x": [8, 4], "count": (I64, []), "mask": (TensorProto.BOOL, [8])}, {"y": ["F", 4], "z": [1, "K", 4]}
    )
    assert found(proto) == ValueLengths()


@pytest.mark.parametrize("op", ["Compress", "Unique", "TopK", "Slice", "Expand", "Tile", "ConstantOfShape", "OneHot"])
def test_each_operator_that_takes_its_length_from_values(op: str) -> None:
    n = Net()
    score = scored(n)
    n.const("limit", 0.0), n.const("zero", [0], I64_TYPE), n.const("values", [0.0, 1.0])
    above = n("Greater", score, "limit", name="above")
    count = n("ReduceSum", n("Cast", above, name="number", to=I64), name="count", keepdims=1)
    count = n("Reshape", count, "flat", name="count_flat")
    kind, dtype = Length.STRETCHED, TensorProto.FLOAT
    if op == "Compress":
        n(op, "x", above, name="op", out="y", axis=0)
        kind = Length.PICKED
    elif op == "Unique":
        n(op, n("Cast", above, name="again", to=I64), name="op", out="y")
        kind, dtype = Length.PICKED, I64
    elif op == "TopK":
        n.nodes.append(onnx.helper.make_node(op, [score, count], ["y", "unused"], name="op", axis=0))
        kind = Length.PICKED
    elif op == "Slice":
        n(op, "x", "zero", count, "zero", name="op", out="y")
    elif op in ("Expand", "Tile"):
        n(op, n("Reshape", "values", "flat", name="v"), count, name="op", out="y")
    elif op == "ConstantOfShape":
        n(op, count, name="op", out="y")
    else:
        depth = n("Squeeze", count, "zero", name="depth")
        n(op, n("Cast", above, name="again", to=I64), depth, "values", name="op", out="y")
    proto = n.model({"x": [8, 4]}, {"y": (dtype, ["K"] if op not in ("Compress", "Slice", "OneHot") else ["K", "J"])})
    lengths = found(proto)
    assert lengths.outputs == {"y": kind}
    assert "fc" in lengths.deciding


def test_a_length_that_is_declared_is_believed() -> None:
    n = Net()
    score = scored(n)
    n.const("limit", 0.0)
    picked = n("Compress", "x", n("Greater", score, "limit", name="above"), name="op", axis=0)
    n("ReduceMax", picked, name="most", axes=[0], keepdims=0, out="y")
    assert found(n.model({"x": [8, 4]}, {"y": [4]})) == ValueLengths()


def test_the_number_of_rounds_of_a_loop_decides() -> None:
    outer, body = Net(), Net()
    body("Identity", "go", name="on", out="go_out")
    body("Identity", "i", name="say", out="said")
    info = onnx.helper.make_tensor_value_info
    graph = body.body(
        "body",
        [info("i", I64, []), info("go", TensorProto.BOOL, [])],
        {"go_out": (TensorProto.BOOL, []), "said": (I64, [])},
    )
    rounds = outer("Cast", outer("ReduceSum", scored(outer), name="sum", keepdims=0), name="rounds", to=I64)
    outer.const("always", True, bool)
    outer("Loop", rounds, "always", name="loop", out="y", body=graph)
    lengths = found(outer.model({"x": [8, 4]}, {"y": (I64, ["K"])}))
    assert lengths.outputs == {"y": Length.STRETCHED}
    assert "fc" in lengths.deciding


def test_a_condition_that_a_body_computes_decides() -> None:
    """A body multiplies its state, and says from that whether to go on."""
    outer, body = Net(), Net()
    body.const("limit", 0.5)
    state = body("MatMul", "h", body.weight("wh", 4, 4), name="state", out="h_out")
    said = body("ReduceMax", state, name="most", keepdims=0)
    body("Less", said, "limit", name="on", out="go_out")
    body("Identity", "h_out", name="say", out="said")
    info = onnx.helper.make_tensor_value_info
    graph = body.body(
        "body",
        [info("i", I64, []), info("go", TensorProto.BOOL, []), info("h", 1, [1, 4])],
        {"go_out": (TensorProto.BOOL, []), "h_out": [1, 4], "said": [1, 4]},
    )
    outer.const("most_rounds", 9, np.int64), outer.const("always", True, bool)
    outer.nodes.append(
        onnx.helper.make_node("Loop", ["most_rounds", "always", "x"], ["last", "y"], name="loop", body=graph)
    )
    lengths = found(outer.model({"x": [1, 4]}, {"y": ["K", 1, 4]}))
    assert lengths.outputs == {"y": Length.STRETCHED}
    assert "state" in lengths.deciding
