"""A convolution of few input channels gets four: channels that hold zero, read by weights of zero. Nothing changes.

onnxruntime's direct int8 convolution on x86 takes input channels by fours; with the three of a picture, or the one of a
spectrogram, it copies patches and multiplies matrices, at half the speed (3 to 32 channels, 3 x 3, 224 x 224: 450 us;
from 4: 220 and 16 for the padding; AVX-512 VNNI, one thread). Codes are padded before they are laid out channels last:
there a row of bytes is copied at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.emit.pieces import Pieces, graph_of
from onnxq.graph.nodes import Before, Place
from onnxq.numerics import QuantParams


def widened(codes: npt.NDArray[np.integer], padded: int) -> npt.NDArray[np.integer]:
    """The weight ``codes`` [C_out, C_in, ...], whose zero point is 0, with ``padded`` input channels of zeros more."""
    return np.pad(codes, [(0, 0), (0, padded)] + [(0, 0)] * (codes.ndim - 2)) if padded else codes


def pad_weight(pieces: Pieces, codes: ir.Value, padded: int, name: str, *, place: Place) -> ir.Value:
    """The same of ``codes`` that only the runtime knows, int8: it folds the Pad when it loads the model."""
    return _padded(pieces, codes, padded, np.zeros((), np.int8), name, place)


def pad_input(pieces: Pieces, name: str, padded: int, params: QuantParams) -> None:
    """Gives the convolution ``name`` of maps ``padded`` channels of zeros more to read; its input has ``params``.

    Raises ``ModelError`` where the input is not dequantized.
    """
    node = pieces.nodes[name]
    dequantizer, codes = pieces.dequantized(node)
    wide = _padded(pieces, codes, padded, np.asarray(params.zero_point), name, Before(node))
    node.replace_input_with(0, pieces.dequantize(wide, params, f"{name}_input", place=Before(node)))
    pieces.drop_idle(dequantizer)


def _padded(
    pieces: Pieces, codes: ir.Value, padded: int, zero: npt.NDArray[np.integer], name: str, place: Place
) -> ir.Value:
    """``codes`` [N, C, H, W] with ``padded_input_channels`` channels of ``zero`` behind the others."""
    graph = graph_of(place.node)
    ends = pieces.initializer(graph, f"{name}_spare_channels", np.array([0, 0, 0, 0, 0, padded, 0, 0]))
    filling = pieces.initializer(graph, f"{name}_padded_input_channels", zero)
    return pieces.node("Pad", [codes, ends, filling], f"{name}_widened", place=place)
