"""onnxruntime, as the rest of onnxq sees it: sessions, files as protobuf messages, and results as plain JSON types.

Internal: what is public is what ``onnxq`` exports.
"""
