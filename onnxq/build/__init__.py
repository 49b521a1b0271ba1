"""From a plan to a model: observe, choose, emit, and ask the runtime which kernels it took.

Internal: what is public is what ``onnxq`` exports.
"""
