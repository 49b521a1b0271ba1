"""Writing a plan into the graph; chooses nothing."""

from onnxq.emit.writer import WeightKey, emit, weight_key

__all__ = ["WeightKey", "emit", "weight_key"]
