"""Adding a constant to codes by reading them with another zero point.

``x + c`` with ``x = s (q - z)`` is ``s (q - (z - c / s))``: where the step divides the constant, the sum has the codes
of ``x``, nothing is computed and nothing rounded. Padding of a convolution behind it is right as well, for onnxruntime
pads with the zero point that it reads. (``onnxq.aligning`` makes steps divide.)
"""

from __future__ import annotations

from onnxq.emit.pieces import Pieces, graph_of
from onnxq.errors import ModelError
from onnxq.graph.edit import is_op, replace_value


def constant_operand(pieces: Pieces, name: str, index: int) -> float | None:
    """The number that the Add called ``name`` adds, its input ``index``; None where it is no Add or not one number."""
    node = pieces.nodes[name]
    value = node.inputs[index]
    data = None if value is None or value.const_value is None else value.const_value.numpy()
    return float(data.reshape(-1)[0]) if is_op(node, "Add") and data is not None and data.size == 1 else None


def pass_codes(pieces: Pieces, name: str) -> None:
    """Removes the Add called ``name``, between DequantizeLinear and QuantizeLinear: its readers read its input's codes.

    Raises ``ModelError`` where it is not between these.
    """
    node = pieces.nodes[name]
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or not is_op(readers[0], "QuantizeLinear"):
        raise ModelError(f"'{name}' is not between quantizers; the plan does not belong to this model")
    dequantizers = [d for v in node.inputs if v is not None and (d := v.producer()) is not None]
    (codes,) = [c for d in dequantizers if (c := d.inputs[0]) is not None and not c.is_initializer()]
    replace_value(readers[0].outputs[0], codes)
    graph_of(node).remove([readers[0], node], safe=True)
    for dequantizer in dequantizers:
        pieces.drop_idle(dequantizer)
