"""Channels that integers are too coarse for, multiplied in float beside a layer that multiplies the others.

Trained transformers have a channel or two that are tens to hundreds of times as large as all others, the same in every
sample, often for a few tokens only. One scale for all channels then leaves the others few codes, and a factor that
makes the large one small makes its weights large instead. Dettmers et al., LLM.int8() (NeurIPS 2022, section 3.2)
multiply such channels in 16 bits, found anew in every input; here calibration knows them, and the graph says it:

    x -+-> Mul by factors, 0 for those -> MatMul (integers) -> bias -+-> Add
       +-> Gather of those -> MatMul with their rows of the weight --+
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.edit import owner, supersede
from onnxq.graph.linear import Linear, linear_of
from onnxq.graph.nodes import After, NodeBuilder, behind

_WHY = "carries channels that integers are too coarse for"


def take_out(readers: Sequence[Linear], channels: npt.NDArray[np.intp]) -> dict[str, str]:
    """Adds what ``channels`` of their common input give to the results of the linear ``readers``, along the last axis.

    What the readers themselves do with those channels stays as it is: the caller makes it nothing. Returns the names of
    the nodes that were added, and what they are there for.
    """
    value = readers[0].x
    assert value is not None
    build = NodeBuilder(behind(value, owner(readers[0].node)))
    index = build.constant(channels.astype(np.int64), f"{value.name}_outlying")
    picked = build.node("Gather", [value, index], name=f"{value.name}_picked", axis=-1)
    shape = None if value.shape is None else [*value.shape[:-1], channels.size]
    picked.outputs[0].type, picked.outputs[0].shape = value.type, None if shape is None else ir.Shape(shape)
    added = [picked]
    for reader in readers:
        added += _beside(reader, picked.outputs[0], channels)
    return {node.name or "": _WHY for node in added}


def _beside(reader: Linear, picked: ir.Value, channels: npt.NDArray[np.intp]) -> list[ir.Node]:
    """The nodes that add what the ``picked`` channels give to what ``reader`` and its bias do."""
    rows = (reader.weight.T if reader.outputs_first else reader.weight)[channels] * np.float32(reader.alpha)
    whole = linear_of(reader.node) or reader
    result, name = whole.result, reader.node.name
    build, ending = NodeBuilder(After(whole.node if whole.add is None else whole.add)), result.name
    weight = build.constant(rows, f"{name}_outlying_weight")
    product = build.node("MatMul", [picked, weight], name=f"{name}_outlying", like=result)
    terms = [result, product.outputs[0]]
    total = build.node("Add", terms, name=f"{name}_with_outlying", like=result)
    supersede(result, total.outputs[0], but=[total])
    result.name = f"{ending}_without_outlying"
    return [product, total]
