"""Operators that put numbers elsewhere and change none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxq.kernels.costs import Shapes, Work
from onnxq.kernels.record import Arrangement, Gradient, Layout, Operator, Role, always
from onnxq.kernels.sizes import elements, in_layout
from onnxq.kernels.targets import Target
from onnxq.query import array, attribute, constant

if TYPE_CHECKING:
    import onnx_ir as ir

# The domain of onnxruntime's float kernels with channels in blocks.
_BLOCKED = "com.microsoft.nchwc"


def _no_work(_: ir.Node, __: Shapes, ___: Target) -> Work:
    """Only a view: no kernel touches an element."""
    return Work("", ())


def _copy_work(node: ir.Node, shapes: Shapes, _: Target) -> Work:
    """Taken from Transpose, by elements of what it reads."""
    x = node.inputs[0]
    given = shapes.get((x.name if x is not None else "") or "", shapes[node.outputs[0].name or ""])
    return Work("Transpose", (math.prod(given),))


def _concat_work(node: ir.Node, shapes: Shapes, _: Target) -> Work | None:
    """It was measured with two operands; its size is that of one."""
    count = elements(node.outputs[0], shapes)
    return None if count is None else Work("Concat", (count / 2,))


def _resize_work(node: ir.Node, shapes: Shapes, _: Target) -> Work | None:
    count, x = elements(node.outputs[0], shapes), node.inputs[0]
    if count is None:
        return None
    if x is None or not in_layout(x, shapes):
        return Work("Resize", (count,))
    # Two Concats, of columns and of rows: half as many elements and all. See ``emit.enlarged``.
    return Work("Resize", (count,), integer=(("Concat", (0.75 * count,)),))


def _repeats(node: ir.Node) -> bool:
    """Whether a Resize copies numbers: what it interpolates has no exact integer kernel."""
    crops = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    return bool(attribute(node, "mode", "nearest") == "nearest" and not crops and not _bound_to_axes(node))


def _bound_to_axes(node: ir.Node) -> bool:
    """Whether a Resize computes otherwise with channels last: by ``axes``, with a common factor, cubic and smaller."""
    shares = attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
    if attribute(node, "mode", "nearest") == "cubic" and not _enlarges(node):
        return True
    return shares or attribute(node, "axes", None) is not None


def _enlarges(node: ir.Node) -> bool:
    scales = array(node.inputs[2]) if len(node.inputs) > 2 else None
    return scales is not None and bool((scales >= 1).all()) and not attribute(node, "antialias", 0)


def _pads_some_axes(node: ir.Node) -> bool:
    return len(node.inputs) > 3 and node.inputs[3] is not None


def _breaks_channels(node: ir.Node, shapes: Shapes, target: Target) -> bool:
    """A Concat of channels keeps blocks if every operand fills its own."""
    channels = [shapes[v.name or ""][1] for v in node.inputs if v is not None and (v.name or "") in shapes]
    return attribute(node, "axis", 1) != 1 or any(count % target.float_block for count in channels)


def _breaks_blocks(_: ir.Node, __: Shapes, ___: Target) -> bool:
    return True


def _fills(node: ir.Node) -> bool:
    return bool(attribute(node, "mode", "constant") == "constant")


def _embedding(node: ir.Node) -> Mapping[int, tuple[int, ...]]:
    """The table of a Gather whose rows computed indices pick."""
    table = constant(node.inputs[0])
    is_embedding = table is not None and len(table.shape) == 2 and constant(node.inputs[1]) is None
    return {0: (0,)} if is_embedding and attribute(node, "axis", 0) == 0 else {}


def _view(name: str, *, propagates: bool = True) -> Operator:
    return Operator(
        name,
        role=Role.MOVES,
        kind="integer movement",
        kernels=(name,),
        propagates=propagates,
        work=_no_work,
        arrangement=Arrangement.VIEW,
        gradient=Gradient.SMOOTH,
    )


def _copy(name: str, **own: object) -> Operator:
    return Operator(
        name,
        role=Role.MOVES,
        kind="integer movement",
        kernels=(name,),
        breaks_blocks=_breaks_blocks,
        work=_copy_work,
        **own,  # type: ignore[arg-type]
    )


OPERATORS = (
    _view("Reshape"),
    _view("Squeeze"),
    _view("Unsqueeze"),
    _view("Flatten", propagates=False),
    _copy(
        "Transpose",
        propagates=True,
        changes_layout=True,
        arrangement=Arrangement.TURNED,
        gradient=Gradient.SMOOTH,
    ),
    _copy("Slice", propagates=True, gradient=Gradient.SMOOTH),
    _copy("Split", all_outputs=True, gradient=Gradient.SMOOTH),
    _copy("DepthToSpace"),
    Operator(
        "Resize",
        role=Role.MOVES,
        kind="integer movement",
        kernels=("Resize", "Concat"),
        fits=_repeats,
        breaks_between_integers=_bound_to_axes,
        work=_resize_work,
    ),
    Operator(
        "Concat",
        role=Role.FOLLOWER,
        kind="integer movement",
        kernels=("QLinearConcat",),
        data=None,
        constants=True,
        joins=True,
        layout=Layout.KEEPS,
        breaks_blocks=_breaks_channels,
        work=_concat_work,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "Gather",
        role=Role.STORED,
        kind="integer movement",
        stored=_embedding,
        gathered=True,
        gradient=Gradient.SMOOTH,
    ),
    Operator(
        "Pad",
        kind="integer movement",
        gradient=Gradient.SMOOTH,
        gradient_if=_fills,
        breaks_between_integers=_pads_some_axes,
    ),
    Operator("CenterCropPad", breaks_between_integers=always),  # onnxruntime makes a Pad with axes of it
    *(Operator(name, kind="integer movement", gradient=Gradient.SMOOTH) for name in ("Expand", "Tile", "Identity")),
    *(Operator(name, kind="integer movement") for name in ("GatherElements", "SpaceToDepth")),
    *(Operator(name, domains=(_BLOCKED,), changes_layout=True) for name in ("ReorderInput", "ReorderOutput")),
)
