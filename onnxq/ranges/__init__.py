"""Ranges: from a weight or an activation's histogram to quantization parameters, exactly or as the literature does."""

from onnxq.ranges.choose import activation_params, weight_params
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.method import RangeMethod
from onnxq.ranges.registry import METHODS, find_method

__all__ = ["METHODS", "Histogram", "RangeMethod", "activation_params", "find_method", "weight_params"]
