"""A float model made simple: constants plain, BatchNormalization gone, names unique, opset within 13..20.

``PASSES`` is the table of contents. Results are the same as the model's within rounding, behind every single pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.copying import copy_model, only_building
from onnxq.graph.passes.einsum import spell_einsum
from onnxq.graph.passes.exporter_traces import drop_exporter_traces
from onnxq.graph.passes.fixed_shapes import fix_shapes
from onnxq.graph.passes.float32 import compute_in_float32, widen_stored
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
from onnxq.graph.passes.opset import LOWEST, NATIVE, fit_opset
from onnxq.graph.passes.order import sort_nodes
from onnxq.graph.passes.pad_channels import pad_channels
from onnxq.graph.passes.plain_spelling import spell_plainly
from onnxq.graph.passes.pointwise import move_pointwise
from onnxq.graph.passes.shapes import forget_shapes, recall_shapes
from onnxq.graph.passes.share_constants import share_constants
from onnxq.graph.passes.share_transposed import share_transposed
from onnxq.graph.passes.single_matrices import use_single_matrices
from onnxq.graph.passes.unfuse import unfuse
from onnxq.graph.runner import Need, Pass, Work, run_passes
from onnxq.kernels.targets import Target

_TIDY = (Need.PRUNED, Need.NAMES)
_KNOWN = (*_TIDY, Need.SHAPES)


def _model(change: Callable[[ir.Model], int]) -> Callable[[Work], int]:
    """``change`` of the model alone."""
    return lambda work: change(work.model)


PASSES = (
    # What files differ in.
    Pass("inline_functions", lambda work: inline_functions(work.model, work.notes)),
    Pass("remove_initializers_from_inputs", lambda work: remove_initializers_from_inputs(work.model, work.notes)),
    Pass("sort_nodes", _model(sort_nodes)),
    Pass("forget_shapes", lambda work: forget_shapes(work.model, work.claims)),
    Pass("lift_constants", _model(lift_constants), needs=[Need.NAMES]),
    Pass("remove_passthrough", _model(remove_passthrough), needs=[Need.NAMES]),
    Pass("widen_stored", _model(widen_stored), needs=_KNOWN),
    Pass("compute_in_float32", lambda w: compute_in_float32(w.model, everywhere=w.everywhere), needs=_KNOWN),
    Pass("unfuse", _model(unfuse), needs=_KNOWN),
    Pass("spell_einsum", _model(spell_einsum)),
    Pass("fit_opset", lambda work: fit_opset(work.model, work.lowest, work.notes), needs=_KNOWN),
    # What can be computed, left out or folded into a neighbour now.
    Pass("fold_constants", _model(fold_constants), needs=_KNOWN, repeat=True),
    Pass("fold_if", _model(fold_if), needs=[Need.NAMES], repeat=True),
    Pass("remove_passthrough_again", _model(remove_passthrough), needs=[Need.SHAPES], repeat=True),
    Pass("fold_pad", _model(fold_pad), needs=[Need.PRUNED], repeat=True),
    Pass("spell_hard_sigmoid", _model(spell_hard_sigmoid), needs=[Need.PRUNED], repeat=True),
    Pass("fold_affine", _model(fold_affine), needs=[Need.PRUNED], repeat=True),
    Pass("fix_shapes", _model(fix_shapes), needs=[Need.SHAPES], repeat=True),
    Pass("spell_plainly", _model(spell_plainly), needs=[Need.NAMES, Need.SHAPES], repeat=True),
    # What the kernels of the target are faster at.
    Pass("use_single_matrices", _model(use_single_matrices), needs=_KNOWN),
    Pass("tidy_movement", _model(tidy_movement), needs=_KNOWN),
    Pass("move_pointwise", _model(move_pointwise), needs=_KNOWN),
    Pass("use_global_pool", lambda w: use_global_pool(w.model) if w.target.global_pooling else 0, needs=_KNOWN),
    Pass("pad_channels", lambda work: pad_channels(work.model, work.target), needs=_KNOWN),
    Pass("deepen_masks", lambda w: deepen_masks(w.model) if w.target.slow_subnormals else 0, needs=_KNOWN),
    # What a file need not hold.
    Pass("share_constants", _model(share_constants)),
    Pass("share_transposed", _model(share_transposed), needs=[Need.NAMES]),
    Pass("drop_exporter_traces", _model(drop_exporter_traces)),
    Pass("recall_shapes", lambda work: recall_shapes(work.claims), needs=_KNOWN),
)


@dataclass(frozen=True)
class Prepared:
    """A prepared model and what a user may want to know about how it became one."""

    model: ir.Model
    notes: tuple[str, ...]


def prepare(model: ir.Model, *, target: Target, native: bool = False, skip: Collection[str] = ()) -> Prepared:
    """A copy of ``model`` that computes the same and is easier to quantize; ``model`` is not changed.

    Arguments and errors as in ``prepare_in_place``.
    """
    return prepare_in_place(copy_model(model), target=target, native=native, skip=skip)


@only_building()
def prepare_in_place(model: ir.Model, *, target: Target, native: bool = False, skip: Collection[str] = ()) -> Prepared:
    """``model``, changed so that it computes the same and is easier to quantize.

    Args:
        model: float, of any opset from 7 on.
        target: the CPU whose kernels shall run it.
        native: whether it shall be able to hold 4-bit tensors, which takes opset 21 instead of 13.
        skip: names of ``PASSES`` that are left out.

    Raises:
        ModelError: the opset cannot be raised to 13 (names the node), or the graph has a cycle.
        ValueError: ``skip`` names no pass.
    """
    work = Work(model, target, NATIVE if native else LOWEST)
    run_passes(work, PASSES, skip=skip)
    return Prepared(work.model, tuple(work.notes))


def in_float32(model: ir.Model, *, target: Target) -> ir.Model:
    """A copy of ``model`` that computes in float32 everywhere inside."""
    work = Work(copy_model(model), target, LOWEST, everywhere=True)
    last = next(index for index, one in enumerate(PASSES) if one.name == "compute_in_float32")
    run_passes(work, PASSES[: last + 1])
    return work.model
