"""Writing a plan into the graph; chooses nothing.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.emit.stored import WeightKey, weight_key
from onnxq.emit.writer import emit

__all__ = ["WeightKey", "emit", "weight_key"]
