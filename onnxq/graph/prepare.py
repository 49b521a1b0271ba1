"""A float model made simple: constants plain, BatchNormalization gone, names unique, opset within 13..20."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.copying import copy_model
from onnxq.graph.passes.einsum import spell_einsum
from onnxq.graph.passes.exporter_traces import drop_exporter_traces
from onnxq.graph.passes.fixed_shapes import fix_shapes
from onnxq.graph.passes.fold_affine import fold_affine
from onnxq.graph.passes.fold_constants import fold_constants
from onnxq.graph.passes.fold_if import fold_if
from onnxq.graph.passes.fold_pad import fold_pad
from onnxq.graph.passes.functions import inline_functions
from onnxq.graph.passes.global_pool import use_global_pool
from onnxq.graph.passes.hard_sigmoid import spell_hard_sigmoid
from onnxq.graph.passes.identity import remove_passthrough
from onnxq.graph.passes.inputs import remove_initializers_from_inputs
from onnxq.graph.passes.lift_constants import lift_constants
from onnxq.graph.passes.masks import deepen_masks
from onnxq.graph.passes.movement import tidy_movement
from onnxq.graph.passes.naming import unique_names
from onnxq.graph.passes.opset import LOWEST, NATIVE, fit_opset
from onnxq.graph.passes.order import sort_nodes
from onnxq.graph.passes.pad_channels import pad_channels
from onnxq.graph.passes.pointwise import move_pointwise
from onnxq.graph.passes.shapes import forget_shapes, infer_shapes, recall_shapes
from onnxq.graph.passes.share_constants import share_constants
from onnxq.graph.passes.unfuse import unfuse
from onnxq.graph.passes.unused import remove_unused

_ROUNDS = 16


@dataclass(frozen=True)
class Prepared:
    """A prepared model and what a user may want to know about how it became one."""

    model: ir.Model
    notes: tuple[str, ...]


def prepare(model: ir.Model, *, native: bool = False) -> Prepared:
    """A copy of ``model`` that computes the same and is easier to quantize; ``model`` is not changed.

    ``native``: whether the copy shall be able to hold 4-bit tensors, which takes opset 21 instead of 13.

    Raises:
        ModelError: the opset cannot be raised to 13 (names the node), or the graph has a cycle.
    """
    work = copy_model(model)
    notes: list[str] = []
    notes += inline_functions(work)
    removed = remove_initializers_from_inputs(work)
    if removed:
        notes.append(f"{len(removed)} initializers listed as inputs are constants now ({_some(removed)})")
    sort_nodes(work)
    unique_names(work)
    claims = forget_shapes(work)
    lift_constants(work)
    remove_passthrough(work)
    infer_shapes(work)
    if unfuse(work) + spell_einsum(work):
        infer_shapes(work)
    notes += fit_opset(work, NATIVE if native else LOWEST)
    unique_names(work)
    for turn in range(_ROUNDS):  # each pass may give the others more to do; this many rounds serve every model seen
        if turn:
            infer_shapes(work)
        changes = fold_constants(work) + fold_if(work)
        changes += remove_passthrough(work)
        remove_unused(work)
        changes += fold_pad(work) + spell_hard_sigmoid(work) + fold_affine(work) + fix_shapes(work)
        remove_unused(work)
        unique_names(work)
        if not changes:
            break
    infer_shapes(work)
    for rewrite in (tidy_movement, move_pointwise, use_global_pool, pad_channels, deepen_masks):
        if rewrite(work):
            remove_unused(work)
            unique_names(work)
            infer_shapes(work)
    share_constants(work)
    drop_exporter_traces(work)
    remove_unused(work)
    infer_shapes(work)
    recall_shapes(claims)
    return Prepared(work, tuple(notes))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
