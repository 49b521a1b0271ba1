"""Ranges: from a weight or an activation's histogram to quantization parameters, exactly or as the literature does.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.ranges.choose import activation_params, weight_params
from onnxq.ranges.fit import Fit, fitted
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.layer import layer_steps, mean_shift
from onnxq.ranges.method import RangeMethod
from onnxq.ranges.moments import Moments
from onnxq.ranges.nonuniform import optimal_codebook, optimal_companding, optimal_grid_codebook
from onnxq.ranges.registry import METHODS, find_method

__all__ = [
    "METHODS",
    "Fit",
    "Histogram",
    "Moments",
    "RangeMethod",
    "activation_params",
    "find_method",
    "fitted",
    "layer_steps",
    "mean_shift",
    "optimal_codebook",
    "optimal_companding",
    "optimal_grid_codebook",
    "weight_params",
]
