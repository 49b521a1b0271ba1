"""Operators that move numbers about, in numpy: what constant folding meets most, without a runtime session for each.

Only operators whose numpy form is exact; everything else is left to onnxruntime. Written for opset 13 and newer, and
returning None for whatever is unusual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.edit import Array, integer, integers

Inputs = Sequence[Array | None]
Operator = Callable[[ir.Node, Inputs], Array | None]


def compute(node: ir.Node, inputs: Inputs) -> Array | None:
    """The only output of ``node`` for these ``inputs``; None when it is not among the operators known here."""
    operator = _OPERATORS.get(node.op_type)
    if operator is None or len(node.outputs) != 1 or inputs[0] is None:
        return None
    try:
        return operator(node, inputs)
    except (ValueError, IndexError, TypeError):  # does not fit: onnxruntime will say so, or not
        return None


def _axes(inputs: Inputs, index: int) -> tuple[int, ...] | None:
    array = inputs[index] if len(inputs) > index else None
    return None if array is None else tuple(int(i) for i in array.reshape(-1))


def _cast(node: ir.Node, inputs: Inputs) -> Array | None:
    target = np.dtype(ir.DataType(integer(node, "to", 0)).numpy())
    source = inputs[0]
    # From float to integer, and between widths of integers, overflow is the runtime's own affair.
    if source is None or target.kind not in "fib" or (source.dtype.kind, target.kind) == ("f", "i"):
        return None
    if target not in (np.float32, np.float64, np.int64, np.bool_) or source.dtype.kind not in "fib":
        return None
    return None if source.dtype == np.float64 and target == np.float32 else source.astype(target)


def _concat(node: ir.Node, inputs: Inputs) -> Array | None:
    present = [array for array in inputs if array is not None]
    return np.concatenate(present, axis=integer(node, "axis", 0)) if len(present) == len(inputs) else None


def _constant_of_shape(node: ir.Node, inputs: Inputs) -> Array | None:
    attribute, shape = node.attributes.get("value"), _axes(inputs, 0)
    value = np.zeros(1, np.float32) if attribute is None else attribute.value.numpy()
    return None if shape is None else np.full(shape, value.reshape(-1)[0], dtype=value.dtype)


def _gather(node: ir.Node, inputs: Inputs) -> Array | None:
    data, index = inputs
    return None if data is None or index is None else np.asarray(np.take(data, index, axis=integer(node, "axis", 0)))


def _reshape(node: ir.Node, inputs: Inputs) -> Array | None:
    data, target = inputs[0], _axes(inputs, 1)
    if data is None or target is None or integer(node, "allowzero", 0) or data.size == 0:
        return None
    return data.reshape([data.shape[i] if dim == 0 else dim for i, dim in enumerate(target)])


def _slice(node: ir.Node, inputs: Inputs) -> Array | None:
    data, starts, ends, axes, steps = inputs[0], *(_axes(inputs, i) for i in range(1, 5))
    if data is None or starts is None or ends is None:
        return None
    index = [slice(None)] * data.ndim
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = 1 if steps is None else steps[i]
        if step < 1:  # negative steps count their ends differently
            return None
        index[axis] = slice(starts[i], ends[i], step)
    return data[tuple(index)]


def _squeeze(node: ir.Node, inputs: Inputs) -> Array | None:
    return None if inputs[0] is None else np.squeeze(inputs[0], axis=_axes(inputs, 1))


def _transpose(node: ir.Node, inputs: Inputs) -> Array | None:
    return None if inputs[0] is None else np.transpose(inputs[0], integers(node, "perm"))


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Array | None:
    axes = _axes(inputs, 1)
    return None if inputs[0] is None or axes is None else np.expand_dims(inputs[0], axes)


def _binary(function: Callable[[Array, Array], Array]) -> Operator:
    """Integers of 64 bits and comparisons; floats are the runtime's, which may round otherwise in rare cases."""

    def operator(node: ir.Node, inputs: Inputs) -> Array | None:
        a, b = inputs
        return None if a is None or b is None or a.dtype != np.int64 or b.dtype != np.int64 else function(a, b)

    return operator


def _where(node: ir.Node, inputs: Inputs) -> Array | None:
    condition, a, b = inputs
    return None if condition is None or a is None or b is None else np.where(condition, a, b)


_OPERATORS: dict[str, Operator] = {
    "Add": _binary(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Equal": _binary(np.equal),
    "Gather": _gather,
    "Identity": lambda node, inputs: inputs[0],
    "Mul": _binary(np.multiply),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
