"""Looking at models: what is in them, where their time goes, how two of them compare.

Internal: what is public is what ``onnxq`` exports.
"""
