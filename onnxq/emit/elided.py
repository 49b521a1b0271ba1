"""Sums and products with one number are other parameters for the same codes.

``x + c`` with ``x = s (q - z)`` is ``s (q - (z - c / s))``: where the step divides the constant, the sum has the codes
of ``x``, nothing is computed and nothing rounded. Padding of a convolution behind it is right as well, for onnxruntime
pads with the zero point that it reads. ``x c`` is ``c s (q - z)``. (``onnxq.parameters.align`` chooses such
parameters.)
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.emit.pieces import Pieces, graph_of
from onnxq.errors import ModelError
from onnxq.graph.edit import redirect
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Arithmetic
from onnxq.numerics import QuantParams, moved, scaled
from onnxq.query import array


def keeps_codes(node: ir.Node, index: int, before: QuantParams, after: QuantParams) -> bool:
    """Whether ``node`` adds or multiplies one number, its input ``index``, and its codes stay what they are.

    ``before`` and ``after``: the parameters of its other input and of its output.
    """
    number = array(node.inputs[index])
    if number is None or number.size != 1:
        return False
    by = float(number.reshape(-1)[0])
    arithmetic = operator(node).arithmetic
    follows = {Arithmetic.SUM: moved, Arithmetic.PRODUCT: scaled}
    return arithmetic is not None and after == follows[arithmetic](before, by)


def pass_codes(pieces: Pieces, name: str) -> None:
    """Removes the node called ``name``, between quantizers: what reads it gets the codes of its input.

    Raises ``ModelError`` where it is not between these.
    """
    node = pieces.nodes[name]
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or operator(readers[0]).kind != "quantize":
        raise ModelError(f"'{name}' is not between quantizers; the plan does not belong to this model")
    dequantizers = [d for v in node.inputs if v is not None and (d := v.producer()) is not None]
    (codes,) = [c for d in dequantizers if (c := d.inputs[0]) is not None and not c.is_initializer()]
    redirect(readers[0].outputs[0], codes)
    graph_of(node).remove([readers[0], node], safe=True)
    for dequantizer in dequantizers:
        pieces.drop_idle(dequantizer)
