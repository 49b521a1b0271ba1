"""The command line: arguments in, a call of the Python API, a table out.

Nothing heavy is imported before a command runs: ``onnxq --help`` needs neither numpy nor onnx nor onnxruntime.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.cli.app import app, main

__all__ = ["app", "main"]
