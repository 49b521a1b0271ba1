"""What operators are and what onnxruntime's CPU kernels do with them; decides nothing about a model.

Internal: what is public is what ``onnxq`` exports.
"""
