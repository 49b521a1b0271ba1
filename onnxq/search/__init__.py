"""From one candidate to the next better one, and when to accept it.

Internal: what is public is what ``onnxq`` exports.
"""
