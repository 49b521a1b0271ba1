"""Measuring models: latency, agreement, noise by layer, the kernels that really run, and size.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.measure.assignment import KernelAssignment, assignments
from onnxq.measure.compare import Comparison, OutputComparison, compare
from onnxq.measure.footprint import Footprint, footprint
from onnxq.measure.kernels import Kernel, KernelMap, kernel_map
from onnxq.measure.latency import Latency, LatencyReport, benchmark
from onnxq.measure.layers import LayerNoise, common_tensors, layer_noise
from onnxq.measure.size import ModelSize, model_size

__all__ = [
    "Comparison",
    "Footprint",
    "Kernel",
    "KernelAssignment",
    "KernelMap",
    "Latency",
    "LatencyReport",
    "LayerNoise",
    "ModelSize",
    "OutputComparison",
    "assignments",
    "benchmark",
    "common_tensors",
    "compare",
    "footprint",
    "kernel_map",
    "layer_noise",
    "model_size",
]
