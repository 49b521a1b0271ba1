"""What a run found, as a frozen value, and its prints.

Internal: what is public is what ``onnxq`` exports.
"""
