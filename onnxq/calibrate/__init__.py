"""Calibration data: feeds from arrays, images, text and functions, and what is seen of tensors as they run.

Internal: what is public is what ``onnxq`` exports.
"""
