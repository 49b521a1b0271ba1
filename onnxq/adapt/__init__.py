"""Adapting weights to the noise of quantization: closed forms, and training against the float model's outputs.

Internal: what is public is what ``onnxq`` exports.
"""
