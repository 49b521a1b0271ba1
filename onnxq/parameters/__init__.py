"""Scales and zero points for a plan: chosen, aligned, shared across concatenations.

Internal: what is public is what ``onnxq`` exports.
"""
