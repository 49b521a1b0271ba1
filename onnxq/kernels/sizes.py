"""The sizes of tensors, which runs of a model have shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxq.kernels.costs import Shapes

if TYPE_CHECKING:
    import onnx_ir as ir


def elements(value: ir.Value, shapes: Shapes) -> int | None:
    """How many elements ``value`` has; None where that is unknown."""
    shape = shapes.get(value.name or "")
    return None if shape is None else math.prod(shape)


def in_layout(value: ir.Value, shapes: Shapes) -> bool:
    """Whether ``value`` is a map, which integer and float convolutions keep in layouts of their own."""
    shape = shapes.get(value.name or "")
    return shape is not None and len(shape) >= 4
