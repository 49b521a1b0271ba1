"""The parts of `backend_tests.py`: the models of onnx's backend tests, the forms they are tried in, and the verdict."""
