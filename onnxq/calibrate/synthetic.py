"""Activation ranges without data: what BatchNormalization remembers of the data it was trained on.

A BatchNormalization's parameters say what its output looked like in training: in channel ``c`` its mean was ``beta[c]``
and its deviation ``|gamma[c]|``. So random inputs are run through a copy of the network in which every output of a
normalised layer is brought back to just those moments, layer after layer: the tensors between such layers (after
activations, additions, poolings) then have nearly the statistics of real data, whatever the random inputs were. The
same moments steer the synthesised inputs of data-free quantization in the literature (Cai et al., ZeroQ, CVPR 2020,
section 3.1; Nagel et al., Data-Free Quantization, ICCV 2019, section 4.2); imposing them needs no gradient.

Only tensors all of whose paths from the inputs cross such a layer are trusted. Of the rest nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.feeds import Feed, FeedOptions, open_feed
from onnxq.errors import ConfigError, OnnxqError
from onnxq.graph.copying import copy_model
from onnxq.graph.edit import supersede
from onnxq.graph.nodes import After, NodeBuilder
from onnxq.graph.passes.fold_affine import MOMENTS
from onnxq.graph.signature import TensorSpec
from onnxq.query import constant
from onnxq.runtime.session import open_session, run

# Images at a time: the moments of a layer with few pixels need several samples.
BATCH = 8
SAMPLES = 64

# Sizes tried for dimensions that the model leaves open; the first that the model runs with is taken.
_OPEN_SIZES = (224, 64, 128, 32, 16, 8, 1)


def impose_moments(model: ir.Model) -> tuple[ir.Model, frozenset[str]]:
    """A copy of the prepared ``model`` with known moments imposed, and the names of the tensors that can be trusted.

    The standardised tensor has the name of the original one. Only the main graph is looked at.
    """
    copy = copy_model(model)
    matched: set[str] = set()
    for node in list(copy.graph):
        for value in node.outputs:
            moments = value.meta.get(MOMENTS)
            if moments is not None and value.name:
                mean, deviation = moments
                matched.add(value.name)  # its name now: standardising gives it to another value
                _standardise(copy, value, np.asarray(mean), np.asarray(deviation))
    return copy, frozenset(_downstream(copy.graph, matched)) if matched else frozenset()


def _downstream(graph: ir.Graph, matched: set[str]) -> set[str]:
    trusted = set(matched)
    for node in graph:
        computed = [v for v in node.inputs if v is not None and constant(v) is None]
        if computed and all(v.name in trusted for v in computed):
            trusted.update(o.name for o in node.outputs if o.name)
    return trusted


def _standardise(
    model: ir.Model, value: ir.Value, mean: npt.NDArray[np.floating], deviation: npt.NDArray[np.floating]
) -> None:
    """Puts ``(x - mean(x)) / std(x) * deviation + mean`` behind ``value: [N, C, ...]``, channel by channel."""
    producer, name = value.producer(), value.name or ""
    assert producer is not None
    rank = len(value.shape) if value.shape is not None else 4
    axes = [a for a in range(rank) if a != 1]
    column = [1, -1, *[1] * (rank - 2)]
    build = NodeBuilder(After(producer))
    others = [use.node for use in value.uses()]

    def const(suffix: str, data: npt.ArrayLike) -> ir.Value:
        return build.constant(data, f"{name}_{suffix}")

    def op(op_type: str, inputs: Sequence[ir.Value], suffix: str, **attributes: Any) -> ir.Value:
        return build(op_type, inputs, name=f"{name}_{suffix}_node", output=f"{name}_{suffix}", **attributes)

    def average(x: ir.Value, suffix: str) -> ir.Value:
        axes_are_input = (model.opset_imports.get("", 13) or 13) >= 18
        if axes_are_input:
            return op("ReduceMean", [x, const(f"{suffix}_axes", np.array(axes, np.int64))], suffix, keepdims=1)
        return op("ReduceMean", [x], suffix, keepdims=1, axes=axes)

    centred = op("Sub", [value, average(value, "seen_mean")], "centred")
    variance = average(op("Mul", [centred, centred], "squared"), "seen_variance")
    root = op("Sqrt", [op("Add", [variance, const("epsilon", np.float32(1e-12))], "guarded")], "seen_deviation")
    scaled = op("Mul", [op("Div", [centred, root], "standard"), const("sd", _column(deviation, column))], "scaled")
    result = op("Add", [scaled, const("mean", _column(mean, column))], "imposed")
    result.shape, result.type = value.shape, value.type
    supersede(value, result, but=[use.node for use in value.uses() if use.node not in others])
    value.name = f"{name}_before"


def _column(data: npt.NDArray[np.floating], shape: list[int]) -> npt.NDArray[np.float32]:
    return data.astype(np.float32).reshape(shape)


def random_feed(inputs: Sequence[TensorSpec], options: FeedOptions | None = None) -> tuple[Feed, ...]:
    """Random feeds of ``BATCH`` samples for a model with ``inputs``, one candidate for each size of open dimensions.

    Empty where no random data can be made (an input of strings, or of unknown rank).
    """
    options = options or FeedOptions()
    open_dims = {
        dim if isinstance(dim, str) else f"{spec.name}.{axis}"
        for spec in inputs
        for axis, dim in enumerate(spec.shape or ())
        if not isinstance(dim, int)
    }
    candidates: list[Feed] = []
    for size in _OPEN_SIZES if open_dims - set(options.dims) else (1,):
        # The batch axis must not be pinned: which axis that is, the feed knows better.
        for left_open in (_first_dims(inputs), set[str]()):
            dims = {**dict.fromkeys(open_dims - left_open, size), **options.dims}
            try:
                chosen = FeedOptions(batch_size=BATCH, limit=SAMPLES, seed=options.seed, dims=dims)
                candidates.append(open_feed("random", inputs, options=chosen))
                break
            except ConfigError:
                raise
            except OnnxqError:
                continue
    return tuple(candidates)


def _first_dims(inputs: Sequence[TensorSpec]) -> set[str]:
    first = set[str]()
    for spec in inputs:
        if spec.shape and not isinstance(spec.shape[0], int):
            first.add(spec.shape[0] if isinstance(spec.shape[0], str) else f"{spec.name}.0")
    return first


def runnable_feed(model: bytes | Path, inputs: Sequence[TensorSpec], options: FeedOptions | None) -> Feed | None:
    """Random inputs of the first sizes that ``model`` runs with; None where there are none."""
    for feed in random_feed(inputs, options):
        try:
            run(open_session(model), next(iter(feed)))
        except OnnxqError:
            continue
        return feed
    return None
