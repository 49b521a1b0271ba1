"""Measuring models: latency, agreement, noise by layer, the kernels that really run, size, and the report of it all."""

from onnxq.measure.compare import Comparison, OutputComparison, compare
from onnxq.measure.footprint import Footprint, footprint
from onnxq.measure.kernels import Kernel, KernelMap, kernel_map
from onnxq.measure.latency import Latency, LatencyReport, benchmark
from onnxq.measure.layers import LayerNoise, common_tensors, layer_noise
from onnxq.measure.report import LeftFloat, Report
from onnxq.measure.size import ModelSize, model_size
from onnxq.measure.tables import show
from onnxq.measure.trace import Fate, fates

__all__ = [
    "Comparison",
    "Fate",
    "Footprint",
    "Kernel",
    "KernelMap",
    "Latency",
    "LatencyReport",
    "LayerNoise",
    "LeftFloat",
    "ModelSize",
    "OutputComparison",
    "Report",
    "benchmark",
    "common_tensors",
    "compare",
    "fates",
    "footprint",
    "kernel_map",
    "layer_noise",
    "model_size",
    "show",
]
