"""What operators are and what onnxruntime's CPU kernels do with them; decides nothing about a model."""
