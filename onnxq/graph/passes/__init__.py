"""Passes over an ``onnx_ir.Model``, in place, one a file; each returns how many changes it made, or notes.

Every pass keeps what the model computes, up to the rounding of float32, goes into If/Loop/Scan bodies, and never
changes a tensor that another node reads.
"""
