"""Where QuantizeLinear and DequantizeLinear go, decided from the graph alone.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.plan.planner import make_plan
from onnxq.plan.reasons import ReasonCode
from onnxq.plan.types import Bias, Constant, KeptFloat, Own, Plan, Point, SharedWith, Skipped, Storage, Weight
from onnxq.plan.units import absorbed, fused_output

__all__ = [
    "Bias",
    "Constant",
    "KeptFloat",
    "Own",
    "Plan",
    "Point",
    "ReasonCode",
    "SharedWith",
    "Skipped",
    "Storage",
    "Weight",
    "absorbed",
    "fused_output",
    "make_plan",
]
