"""A node that computes nothing, in front of float nodes between integer ones that onnxruntime would break.

An ``Einsum`` of one tensor copies it, and onnxruntime leaves it where it is. Between a DequantizeLinear and a node it
keeps the three with the quantizer behind from becoming one integer kernel, and it ends the way of the transpositions
that integer convolutions need: they are moved on through Resize and Pad, whose sizes and pads are permuted as if there
were one for each axis. (A Sum of one tensor lets those through, a Reshape to the same shape is removed.) Which nodes
need one is in ``onnxq.kernels``.
"""

from __future__ import annotations

from onnxq.emit.pieces import Pieces
from onnxq.graph.nodes import Before
from onnxq.kernels.operators import operator
from onnxq.query import nodes

_COPY = "...->..."


def fence(pieces: Pieces) -> None:
    """Puts such a node in front of all that need one."""
    for node in tuple(nodes(pieces.model)):
        source = node.inputs[0] if node.inputs else None
        if source is not None and source.producer() is not None and operator(node).breaks_between_integers(node):
            name = f"{node.name}_fenced"
            node.replace_input_with(0, pieces.node("Einsum", [source], name, place=Before(node), equation=_COPY))
