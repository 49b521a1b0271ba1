"""Inputs made up where there is no data: those that decide how a model computes neither kill nor hang, nor refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from zoo import Net, embedding

from onnxq import Config, quantize
from onnxq.calibrate import made_up as made_up_module
from onnxq.calibrate.feeds import open_feed
from onnxq.calibrate.made_up import NOT_RUN, made_up, random_feeds
from onnxq.errors import RuntimeFailure
from onnxq.graph.deciding import deciding_inputs
from onnxq.graph.io import load, serialize
from onnxq.graph.signature import signature
from onnxq.runtime.trial import Died, require_run, tried

INT, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
MEMORY = 1 << 28


class Ints(Net):
    """x -> MatMul -> ``first``; what a case adds reads inputs of integers."""

    def __init__(self, *dims: int | str) -> None:
        super().__init__()
        self.dims = dims
        self.first = self("MatMul", "x", self.weight("w", 64, 64, fan=64), name="first")

    def done(self, output: str, **inputs: Any) -> onnx.ModelProto:
        self.nodes[-1].output[0] = output
        typed = {name: (kind if isinstance(kind, tuple) else (INT, kind)) for name, kind in inputs.items()}
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(n, t, d) for n, (t, d) in {"x": (FLOAT, self.dims), **typed}.items()],
            [helper.make_tensor_value_info(output, FLOAT, None)],
            self.body("none", [], {}).initializer,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def frames() -> onnx.ModelProto:
    """A frame of no samples divides by zero in onnxruntime's kernel, and so ends the process."""
    n = Ints(1, 1, 64)
    n("STFT", n("Transpose", n.first, name="turn", perm=[0, 2, 1]), "step", "", "length", name="frames")
    return n.done("y", step=[], length=[])


def steps() -> onnx.ModelProto:
    """A Loop that counts to ten in steps that are given; of 0 there is no end."""
    n, b = Ints("N", 64), Net()
    b("Less", b("Add", "i", "step", name="add", out="next"), "ten", name="less", out="more")
    b("Identity", "state", name="same", out="kept")
    types = {"turn": (INT, []), "again": (BOOL, []), "i": (INT, []), "state": (FLOAT, ["N", 64])}
    inputs = [helper.make_tensor_value_info(name, *spec) for name, spec in types.items()]
    body = b.body("body", inputs, {"more": (BOOL, []), "next": (INT, []), "kept": ["N", 64]})
    n.const("ten", 10, np.int64)
    start = n.const("start", 0, np.int64)
    _, last = n.many("Loop", "", n.const("true", True, np.bool_), start, n.first, name="loop", count=2, body=body)
    n("Relu", last, name="end")
    return n.done("y", step=[])


def node(op: str, dims: tuple[int | str, ...], shape: list[int | str], *between: str) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        n = Ints(*dims)
        n(op, n.first, *between, "k", name="last")
        return n.done("y", k=shape)

    return make


def divided() -> onnx.ModelProto:
    n = Ints("N", 64)
    n("Add", n.first, n("Cast", n("Div", "a", "b", name="div"), name="cast", to=FLOAT), name="last")
    return n.done("y", a=["N", 64], b=["N", 64])


def threshold() -> onnx.ModelProto:
    """What is no number from 0 to 1 is refused by the kernel."""
    n = Ints(1, 10, 64)
    boxes = n(
        "Slice",
        n.first,
        n.const("s", [0], np.int64),
        n.const("e", [4], np.int64),
        n.const("a", [2], np.int64),
        name="cut",
    )
    chosen = n("NonMaxSuppression", boxes, "scores", "most", "overlap", name="chosen")
    n("Cast", chosen, name="last", to=FLOAT)
    return n.done("y", scores=(FLOAT, [1, 1, 10]), most=[1], overlap=(FLOAT, [1]))


def scalar_beside_a_fixed_batch() -> onnx.ModelProto:
    n = Ints(3, 64)
    n("Add", n.first, n("Cast", "k", name="cast", to=FLOAT), name="last")
    return n.done("y", k=[])


def two_axes() -> onnx.ModelProto:
    n = Ints(4, 64)
    n("Unsqueeze", n.first, "axes", name="last")
    return n.done("y", axes=[2])


def ends() -> onnx.ModelProto:
    n = Ints("N", 64)
    total = n(
        "ReduceSum", n("Cast", n("Range", "start", "limit", "delta", name="range"), name="cast", to=FLOAT), name="sum"
    )
    n("Add", n.first, total, name="last")
    return n.done("y", start=[], limit=[], delta=[])


def resized() -> onnx.ModelProto:
    n = Net()
    n("Resize", n.conv("x", 8, 8, name="conv"), "", "", "sizes", name="last", out="y")
    return n.model({"x": [1, 8, 6, 6], "sizes": (INT, [4])}, {"y": [1, 8, "h", "w"]}, opset=18)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "frames": frames,
    "steps": steps,
    "pads": node("Pad", (4, 64), [4]),
    "axes": node("ReduceSum", (4, 8, 64), [1]),
    "axis 1 or 2": two_axes,
    "tile": node("Tile", ("N", 64), [2]),
    "reshape": node("Reshape", (6, 64), [2]),
    "expand": node("Expand", ("N", 64), [2]),
    "top k": node("TopK", ("N", 64), [1]),
    "division": divided,
    "threshold": threshold,
    "scalar": scalar_beside_a_fixed_batch,
    "range": ends,
    "sizes": resized,
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_with_such_inputs_is_quantized_and_run(case: str, tmp_path: Path) -> None:
    if case == "top k":
        proto = MODELS[case]()
        proto.graph.node[-1].output.append("where")
    else:
        proto = MODELS[case]()
    result = quantize(proto, config=Config(latency_seconds=0))
    (run,) = (note for note in result.report.notes if "loaded and run on random inputs" in note)
    assert "x [" in run
    if case != "scalar":
        assert any("inputs that decide how the model computes were made up: " in note for note in result.report.notes)


def test_what_runs_on_nothing_is_quantized_and_the_report_says_so() -> None:
    n = Ints(4, 64)
    n("Reshape", n.first, "shape", name="last")
    proto = n.done("y", shape=[0])  # of no dimensions: 256 numbers never fit
    result = quantize(proto, config=Config(latency_seconds=0))
    (note,) = (note for note in result.report.notes if note.startswith(NOT_RUN))
    assert "onnxruntime failed" in note


@pytest.mark.parametrize("make", [frames, steps])
def test_a_process_that_dies_or_does_not_end_is_only_a_child(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    feed = {"x": np.ones((1, 1, 64), np.float32), "step": np.array(1), "length": np.array(0)}
    if make is steps:
        feed = {"x": np.ones((1, 64), np.float32), "step": np.array(0)}
    content = serialize(load(model))
    found = tried(content, [feed], memory=MEMORY, seconds=1)
    assert found.ran is None
    assert found.died
    assert found.reasons[0] in (
        "an operator divides by zero, which ends the process",
        "it did not end within 1 s of processor time",
    )
    if make is frames:
        with pytest.raises(Died, match="does not run on the first inputs: an operator divides by zero"):
            require_run(content, feed, memory=MEMORY)


def test_feeds_are_tried_in_order_and_behind_one_that_kills() -> None:
    content = serialize(load(frames()))
    feeds = [
        {"x": np.ones((1, 1, 64), np.float32), "step": np.array(step), "length": np.array(length)}
        for step, length in ((0, 1), (1, 0), (1, 1), (1, 2))
    ]
    found = tried(content, feeds, memory=MEMORY)
    assert found.ran == 2
    assert "frame_step must be greater than zero" in found.reasons[0]
    assert "divides by zero" in found.reasons[1]
    assert len(found.reasons) == 2
    assert tried(content, feeds[:2], memory=MEMORY).ran is None
    with pytest.raises(RuntimeFailure, match="frame_step must be greater"):
        require_run(content, feeds[0], memory=MEMORY)


def test_too_much_memory_is_said() -> None:
    n = Net()
    n("ConstantOfShape", "shape", name="big", out="y")
    proto = n.model({"shape": (INT, [1])}, {"y": ["n"]})
    found = tried(proto.SerializeToString(), [{"shape": np.array([1 << 32])}], memory=MEMORY)
    assert found.reasons == ("it needs more than 268 MB of memory",)
    assert found.died


def test_inputs_that_only_pick_rows_or_mask_do_not_decide() -> None:
    assert deciding_inputs(load(embedding())) == frozenset()
    n = Net()
    mask = n("Cast", n("Unsqueeze", "mask", n.const("a", [1], np.int64), name="deep"), name="cast", to=FLOAT)
    rows = n("Gather", n.weight("table", 8, 4), "ids", name="rows")
    n("Where", n("Equal", "mask", n.const("zero", 0, np.int64), name="none"), mask, mask, name="where")
    n("Add", rows, "where_out", name="last", out="y")
    proto = n.model({"ids": (INT, ["N", "T"]), "mask": (INT, ["N", "T"])}, {"y": ["N", "S", "T", 4]})
    assert deciding_inputs(load(proto)) == frozenset()


@pytest.mark.parametrize(
    ("case", "names"), [("frames", "step length"), ("steps", "step"), ("division", "a b"), ("pads", "k")]
)
def test_inputs_that_decide(case: str, names: str) -> None:
    assert deciding_inputs(load(MODELS[case]())) == frozenset(names.split())


def test_no_process_is_started_where_no_input_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(made_up_module, "tried", started)
    model = load(embedding())
    feed = made_up(model, serialize(model), signature(model).inputs, None).feed
    assert feed is not None


def test_what_decides_is_the_same_in_all_samples() -> None:
    inputs = signature(load(scalar_beside_a_fixed_batch())).inputs
    feed = open_feed("random", inputs)  # asked for by its name
    values = {int(one["k"]) for one in feed}
    assert len(values) == 1
    model = load(divided())
    (first, *_) = random_feeds(signature(model).inputs, None, {"b"}, made_up_module.SETTINGS[0])
    assert all((one["b"] == 1).all() for one in first)
    assert {float(v) for one in first for v in np.unique(one["a"])} == {0.0, 1.0}
