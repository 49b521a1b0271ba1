"""Where QuantizeLinear and DequantizeLinear go, decided from the graph alone."""

from onnxq.plan.planner import absorbed, make_plan, settled_output
from onnxq.plan.types import Bias, Constant, KeptFloat, Own, Plan, Point, SharedWith, Skipped, Storage, Weight

__all__ = [
    "Bias",
    "Constant",
    "KeptFloat",
    "Own",
    "Plan",
    "Point",
    "SharedWith",
    "Skipped",
    "Storage",
    "Weight",
    "absorbed",
    "make_plan",
    "settled_output",
]
