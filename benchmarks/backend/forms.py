"""The forms that a model of the backend tests is tried in.

| form    | what becomes of the model                                                                       |
|---------|--------------------------------------------------------------------------------------------------|
| as it is | nothing                                                                                         |
| folded  | all inputs but the first of float32 are constants, as weights are                                |
| mm      | folded, and what it computes stands between two matrix products                                  |
| cv      | the same between two convolutions of 1 x 1                                                       |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from backend.models import Source, Value, is_float

FORMS = ("as it is", "folded", "mm", "cv")
SAMPLES = 12
SEED = 7
_PREFIX = "t_"
_ELEMENTS = 2048  # of a weight: smaller ones are not worth 4 bits
_WIDEST = 2048
_OLDEST = 9  # of products and convolutions as they are written here


@dataclass(frozen=True)
class Case:
    """A model and feeds for it, the first of them the test's own."""

    model: onnx.ModelProto
    feeds: list[dict[str, Value]]


def form(source: Source, kind: str) -> Case | None:
    """``source`` in one of ``FORMS``; None where it has no such form, or one that is no other than another's."""
    if kind == "as it is":
        return Case(source.model, _feeds(source.feed))
    folded = _folded(source)
    if kind == "folded":
        return folded
    if source.name.startswith("real/"):  # whole networks
        return None
    base = folded or Case(source.model, _feeds(source.feed))
    return _between(base, kind)


def _folded(source: Source) -> Case | None:
    kept = next((name for name, value in source.feed.items() if is_float(value)), None)
    rest = {name: value for name, value in source.feed.items() if name != kept}
    if kept is None or not rest or not all(isinstance(value, np.ndarray) for value in rest.values()):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    inputs = [v for v in model.graph.input if v.name not in rest]
    try:
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in rest.items())
    except (TypeError, ValueError):  # element types that numpy has not
        return None
    model.ir_version = max(model.ir_version, 4)  # before, every initializer was an input
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return Case(model, _feeds({kept: source.feed[kept]}))


def _feeds(feed: Mapping[str, Value]) -> list[dict[str, Value]]:
    """``feed``, and others: its first floats nearer to 0 by up to a tenth, so that what they mean stays defined."""
    rng = np.random.default_rng(SEED)
    first = next((name for name, value in feed.items() if is_float(value)), None)
    if first is None:
        return [dict(feed)]
    shape = feed[first].shape
    near = [(feed[first] * rng.uniform(0.9, 1.0, shape)).astype(np.float32) for _ in range(SAMPLES - 1)]
    return [dict(feed), *({**feed, first: value} for value in near)]


def _between(base: Case, kind: str) -> Case | None:
    """``base`` between two layers; None where it does not go there: they need float32 maps or rows."""
    inner = base.model
    opset = {o.domain: o.version for o in inner.opset_import}.get("", 0)
    (x, value), dims = next(iter(base.feeds[0].items()), ("", None)), 4 if kind == "cv" else 2
    if opset < _OLDEST or not is_float(value) or not (value.ndim == dims or (kind == "mm" and value.ndim > dims)):
        return None
    channels = 1 if kind == "cv" else -1
    if value.shape[channels] > _WIDEST:
        return None
    model = compose.add_prefix(inner, _PREFIX, rename_functions=False)
    model.ir_version = max(model.ir_version, 4)
    rng = np.random.default_rng(SEED)
    graph = model.graph
    nodes, weights = _layers(kind, "before", "x", _PREFIX + x, value.shape[channels], rng)
    for node in reversed(nodes):
        graph.node.insert(0, node)
    graph.initializer.extend(weights)
    names = [v.name for v in graph.input]
    graph.input[names.index(_PREFIX + x)].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, value.shape))
    out = graph.output[0]
    tensor = out.type.tensor_type
    shape = [d.dim_value for d in tensor.shape.dim]
    fits = len(shape) == dims or (kind == "mm" and len(shape) > dims)
    if tensor.elem_type == TensorProto.FLOAT and fits and 0 < shape[channels] <= _WIDEST:
        nodes, weights = _layers(kind, "after", out.name, "y", shape[channels], rng)
        graph.node.extend(nodes)
        graph.initializer.extend(weights)
        graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    feeds = [{"x": feed[x], **{_PREFIX + k: v for k, v in feed.items() if k != x}} for feed in base.feeds]
    return Case(model, feeds)


def _layers(
    kind: str, name: str, x: str, y: str, size: int, rng: np.random.Generator
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Two layers, to more channels and back: the numbers behind them are those in front, but for what rounding does."""
    wide = min(_WIDEST, max(size, -(-_ELEMENTS // size)))
    there = np.linalg.qr(rng.standard_normal((wide, size)))[0].T.astype(np.float32)  # [size, wide], orthogonal rows
    weights = [there, np.ascontiguousarray(there.T)]
    if kind == "cv":
        weights = [np.ascontiguousarray(weight.T)[:, :, None, None] for weight in weights]
    tensors = [numpy_helper.from_array(w, f"{name}_weight_{i}") for i, w in enumerate(weights)]
    op, between = "Conv" if kind == "cv" else "MatMul", f"{name}_wide"
    nodes = [
        helper.make_node(op, [x, tensors[0].name], [between], name=f"{name}_0"),
        helper.make_node(op, [between, tensors[1].name], [y], name=f"{name}_1"),
    ]
    return nodes, tensors
