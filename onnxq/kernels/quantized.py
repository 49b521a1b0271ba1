"""Operators of quantized models: conversions, and the integer kernels that onnxruntime's optimiser puts in."""

from __future__ import annotations

from dataclasses import replace

from onnxq.kernels.record import BOTH, MICROSOFT, Operator

OPERATORS = (
    Operator("QuantizeLinear", domains=BOTH, kind="quantize"),
    Operator("DynamicQuantizeLinear", kind="quantize"),
    Operator("DequantizeLinear", domains=BOTH, kind="dequantize"),
    *(
        Operator(name, domains=BOTH, kind="integer compute", stays_8_bit=True)
        for name in ("QLinearConv", "QLinearMatMul")
    ),
    Operator("QGemm", domains=(MICROSOFT,), kind="integer compute", stays_8_bit=True, output_zero_point=8),
    *(Operator(name, kind="integer compute") for name in ("MatMulInteger", "ConvInteger")),
    *(
        Operator(name, domains=(MICROSOFT,), kind="integer compute")
        for name in (
            "MatMulIntegerToFloat",
            "MatMulInteger16",
            "DynamicQuantizeMatMul",
            "DynamicQuantizeLSTM",
            "QAttention",
            "MatMulNBits",
            "MatMulBnb4",
            "MatMulFpQ4",
            "QMoE",
        )
    ),
    *(
        Operator(name, domains=(MICROSOFT,), kind="integer elementwise")
        for name in ("GatherBlockQuantized", "QEmbedLayerNormalization")
    ),
)

# The others of these families have no record of their own: they work on codes, number by number or row by row.
FAMILIES = {
    "QLinear": Operator("QLinear...", domains=BOTH, kind="integer elementwise", stays_8_bit=True),
    "QOrdered": Operator("QOrdered...", domains=(MICROSOFT,), kind="integer elementwise", stays_8_bit=True),
}


def of_family(name: str) -> Operator | None:
    """The record of an operator called ``name`` whose family says what it is; None for any other."""
    found = next((record for prefix, record in FAMILIES.items() if name.startswith(prefix)), None)
    return None if found is None else replace(found, name=name)
