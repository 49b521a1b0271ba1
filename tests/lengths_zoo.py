"""Networks whose outputs are as long as values say, with data for them: predicted durations, boxes, picked places."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto
from zoo import Net

Array = np.ndarray
BOXES = 64  # places of `detector`: 8 by 8


def speech(*, with_durations: bool = True) -> onnx.ModelProto:
    """ids [N, T] -> two Conv -> durations [T] -> each step as often as it lasts -> two Conv -> mel [N, 24, F]."""
    n = Net(1)
    y = n("Transpose", n("Gather", n.weight("table", 40, 48, fan=4), "ids", name="embed"), name="turn", perm=[0, 2, 1])
    for i in range(2):
        y = n("Relu", _conv1(n, y, 48, f"encode{i}"), name=f"encode{i}_relu")
    y = n("Transpose", y, name="back", perm=[0, 2, 1])
    n.const("low", 0.0), n.const("high", 9.0)
    n.const("flat", [-1], np.int64), n.const("zero", 0, np.int64), n.const("one", 1, np.int64)
    n.const("first", [0], np.int64), n.const("second", [1], np.int64)
    d = n("Exp", n.linear(y, 48, 1, name="duration"), name="exp")
    d = n("Cast", n("Ceil", n("Clip", d, "low", "high", name="clip"), name="ceil"), name="whole", to=TensorProto.INT64)
    d = n("Reshape", d, "flat", name="durations_flat", out="durations" if with_durations else None)
    ends = n("CumSum", d, "zero", name="ends")
    frames = n("Range", "zero", n("ReduceMax", ends, name="last", keepdims=0), "one", name="frames")
    behind = n("Unsqueeze", frames, "second", name="column")
    late = n("GreaterOrEqual", behind, n("Unsqueeze", ends, "first", name="row"), name="late")
    step = n("ReduceSum", n("Cast", late, name="late_number", to=TensorProto.INT64), "second", name="step", keepdims=0)
    y = n("Gather", n("Squeeze", y, "first", name="one_sample"), step, name="stretch")
    y = n("Unsqueeze", n("Transpose", y, name="channels", perm=[1, 0]), "first", name="sample")
    y = n("LeakyRelu", _conv1(n, y, 48, "decode0"), name="decode0_leaky", alpha=0.1)
    _conv1(n, y, 24, "decode1", out="mel")
    outputs: dict[str, object] = {"mel": ["N", 24, "F"]}
    if with_durations:
        outputs["durations"] = (TensorProto.INT64, ["T"])
    return n.model({"ids": (TensorProto.INT64, ["N", "T"])}, outputs)


def _conv1(n: Net, x: str, channels: int, name: str, out: str | None = None) -> str:
    weight, bias = n.weight(f"{name}_w", channels, 48, 3), n.vector(f"{name}_b", channels)
    return n("Conv", x, weight, bias, name=name, out=out, kernel_shape=[3], pads=[1, 1])


def sentences(count: int = 40) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{"ids": rng.integers(0, 40, (1, 10 + 3 * (i % 5)))} for i in range(count)]


def _features(n: Net) -> str:
    y = "image"
    for i, (cin, cout) in enumerate(((3, 24), (24, 48), (48, 48))):
        y = n("Relu", n.conv(y, cin, cout, name=f"conv{i}", strides=[2 if i < 2 else 1] * 2), name=f"relu{i}")
    return y


def detector(*, table: bool = False) -> onnx.ModelProto:
    """image [1, 3, 32, 32] -> boxes [D, 4], scores [D], labels [D] (or one table [D, 6]) that NMS left of 64 places."""
    n = Net(2)
    y = _features(n)
    centres = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(1, BOXES, 2) * 4.0 + 2.0
    n.const("box_shape", [1, 4, BOXES], np.int64), n.const("score_shape", [1, 3, BOXES], np.int64)
    n.const("centres", centres), n.const("limit", 0.55), n.const("shared", 0.45), n.const("most", [50], np.int64)
    n.const("two", [2, 2], np.int64), n.const("bias", 2.0), n.const("shift", 0.7)
    d = n("Reshape", n.conv(y, 48, 4, k=1, name="box"), "box_shape", name="box_rows")
    d = n("Transpose", d, name="box_columns", perm=[0, 2, 1])
    offset, size = n.many("Split", d, "two", name="halves", count=2, axis=2)
    middle = n("Add", offset, "centres", name="middle")
    half = n("Add", n("Abs", size, name="positive"), "bias", name="half")
    low, high = n("Sub", middle, half, name="low_corner"), n("Add", middle, half, name="high_corner")
    boxes = n("Concat", low, high, name="boxes_all", axis=2)
    s = n("Reshape", n.conv(y, 48, 3, k=1, name="score"), "score_shape", name="score_rows")
    s = n("Sigmoid", n("Sub", s, "shift", name="seldom"), name="scores_all")
    picked = n("NonMaxSuppression", boxes, s, "most", "limit", "shared", name="nms")
    n.const("class_at", 1, np.int64), n.const("place_at", 2, np.int64), n.const("first", [0], np.int64)
    n.const("second", [1], np.int64)
    label = n("Gather", picked, "class_at", name="label", axis=1, out=None if table else "labels")
    place = n("Gather", picked, "place_at", name="place", axis=1)
    found = n("Squeeze", boxes, "first", name="boxes_one")
    box = n("Gather", found, place, name="box_found", out=None if table else "boxes")
    score = n("GatherND", s, picked, name="score_found", out=None if table else "scores")
    if table:
        column = n("Unsqueeze", score, "second", name="score_column")
        number = n("Unsqueeze", n("Cast", label, name="label_float", to=1), "second", name="label_column")
        n("Concat", box, column, number, name="table", axis=1, out="table")
        return n.model({"image": [1, 3, 32, 32]}, {"table": ["D", 6]})
    return n.model(
        {"image": [1, 3, 32, 32]}, {"boxes": ["D", 4], "scores": ["D"], "labels": (TensorProto.INT64, ["D"])}
    )


def picker() -> onnx.ModelProto:
    """image [1, 3, 32, 32] -> features at the places that score above a limit -> two layers -> found [K, 16]."""
    n = Net(3)
    y = _features(n)
    n.const("limit", 0.0), n.const("rows", [-1, 48], np.int64), n.const("flat", [-1], np.int64)
    score = n("Reshape", n.conv(y, 48, 1, k=1, name="score"), "flat", name="score_rows")
    place = n("NonZero", n("Greater", score, "limit", name="above"), name="places")
    rows = n("Reshape", n("Transpose", y, name="last", perm=[0, 2, 3, 1]), "rows", name="feature_rows")
    rows = n("Gather", rows, n("Reshape", place, "flat", name="index"), name="pick")
    rows = n("Relu", n.linear(rows, 48, 64, name="fc0"), name="fc0_relu")
    n.linear(rows, 64, 16, name="fc1", out="found")
    return n.model({"image": [1, 3, 32, 32]}, {"found": ["K", 16]})


def pictures(count: int = 48) -> dict[str, Array]:
    """Smooth pictures ``image [count, 3, 32, 32]`` of unit variance."""
    x = np.cumsum(np.cumsum(np.random.default_rng(1).standard_normal((count, 3, 32, 32)), 2), 3)
    x -= x.mean(axis=(2, 3), keepdims=True)
    return {"image": (x / x.std(axis=(2, 3), keepdims=True)).astype(np.float32)}
