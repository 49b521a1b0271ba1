"""Files that are written whole or not at all, and folders for what is kept or thrown away.

Internal: what is public is what ``onnxq`` exports.
"""
