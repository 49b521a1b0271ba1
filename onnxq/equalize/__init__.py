"""Channels of a tensor made alike before it is quantized, which changes nothing that the float model computes.

One scale serves all channels of an activation, so that a channel ten times as large as the others leaves them a tenth
of the codes. Where what writes a tensor can multiply its channels by any ``s > 0``, and all that reads it can divide by
them (``sites``), the best ``s`` is found (``factors``) and folded into weights (``apply``). It is the cross-layer
equalisation of Nagel et al. (Data-Free Quantization, ICCV 2019, section 4.1), the smoothing of Xiao et al.
(SmoothQuant, ICML 2023, section 4) and, with activations left alone, the scaling of Lin et al. (AWQ, MLSys 2024,
section 3.2); those are rules or grids for what is here a convex minimum of the noise of both sides. Where what writes
cannot multiply, a node between the two can, at a price.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.equalize.apply import Equalized, Terms, equalized, equalized_as

__all__ = ["Equalized", "Terms", "equalized", "equalized_as"]
