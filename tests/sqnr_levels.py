"""What networks of the tests reach at their outputs when they are quantized, by network and what was asked of it.

A test asks for ``least(...)``: what was measured less 1 dB. Another CPU of a kind or number of threads moves a figure
by a few hundredths; whoever makes one better writes the better one down here.
"""

from __future__ import annotations

from onnxq.kernels.targets import resolve_target
from onnxq.numerics import INT7_NARROW

# dB where weights have 8 bits (x86-vnni, x86-amx, arm64), and where they have 7 (x86-avx2).
_SQNR_DB = {
    "batchnorm_cnn, held out": (50.9, 47.3),
    "batchnorm_cnn, other samples": (42.3, 42.7),
    "batchnorm_cnn, no data": (49.0, 45.9),
    "gemm, minmax": (38.1, 34.1),
    "gemm, percentile": (38.1, 34.1),
    "gemm, entropy": (43.1, 39.3),
    "transformer, ranges at run time, x 0.1": (39.5, 35.3),
    "transformer, ranges at run time, x 10": (56.5, 52.3),
    "transformer_mlp": (40.2, 38.8),
    "silu": (36.6, 34.5),
    "big_gemm, stored": (48.6, 41.6),
    "large_and_small, stored": (42.5, 36.7),
    "deep, w4a8": (22.1, 22.1),
    "deep, w4": (23.9, 23.8),
    "deep, w4a4": (15.2, 15.0),
    "deep, w6a6": (24.7, 24.7),
}


def least(case: str) -> float:
    """The least SQNR in dB that ``case`` may come to on this CPU."""
    return _SQNR_DB[case][resolve_target("auto").weights == INT7_NARROW] - 1.0
