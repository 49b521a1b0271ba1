"""The float graph: loading, saving, reading, editing, and the passes that make it ready.

Internal: what is public is what ``onnxq`` exports.
"""
