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
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.copying import copy_model
from onnxq.graph.edit import supersede
from onnxq.graph.nodes import After, NodeBuilder
from onnxq.graph.passes.fold_affine import MOMENTS
from onnxq.query import constant


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
