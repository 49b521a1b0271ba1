"""Numbers: integer types, granularity, quantization parameters, noise. numpy only; knows nothing of ONNX.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.numerics.codebook import Codebook, Companding, GridCodebook
from onnxq.numerics.granularity import Granularity, PerAxis, PerBlock, PerTensor
from onnxq.numerics.noise import MAX_SQNR_DB, Noise, agreement, centred, noise, sqnr_db, sqnr_db_of
from onnxq.numerics.params import (
    SMALLEST_SCALE,
    Quantized,
    QuantParams,
    bias_params,
    from_range,
    params,
    round_half_even,
)
from onnxq.numerics.qtype import INT4, INT7_NARROW, INT8, INT8_NARROW, INT32, UINT4, UINT8, QType
from onnxq.numerics.sampling import spread_step
from onnxq.numerics.share import Share, Strata, rounded_down
from onnxq.numerics.shifting import moved, scaled, whole_steps

__all__ = [
    "INT4",
    "INT7_NARROW",
    "INT8",
    "INT8_NARROW",
    "INT32",
    "MAX_SQNR_DB",
    "SMALLEST_SCALE",
    "UINT4",
    "UINT8",
    "Codebook",
    "Companding",
    "Granularity",
    "GridCodebook",
    "Noise",
    "PerAxis",
    "PerBlock",
    "PerTensor",
    "QType",
    "QuantParams",
    "Quantized",
    "Share",
    "Strata",
    "agreement",
    "bias_params",
    "centred",
    "from_range",
    "moved",
    "noise",
    "params",
    "round_half_even",
    "rounded_down",
    "scaled",
    "spread_step",
    "sqnr_db",
    "sqnr_db_of",
    "whole_steps",
]
