"""How far two models are apart on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.errors import RuntimeFailure, one_line
from onnxq.graph.io import serialize


def equivalent(a: ir.Model, b: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> float:
    """The largest deviation of any output of ``b`` from that of ``a``, relative to the largest value of that output.

    0.0: equal bit for bit (NaN equal to NaN). inf: outputs differ in number, shape, type, or in a value that is not
    finite or not a number.

    Raises:
        RuntimeFailure: onnxruntime refuses one of the models or the feeds.
    """
    left, right = run(a, feeds), run(b, feeds)
    if list(left) != list(right):
        return float("inf")
    return max((_deviation(left[name], right[name]) for name in left), default=0.0)


def run(model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The outputs of ``model`` by name, from onnxruntime without graph optimizations. Raises RuntimeFailure."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:  # onnxruntime has many exception classes and no common base
        raise RuntimeFailure(f"onnxruntime cannot run the model: {one_line(error)}") from error


def _deviation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else float("inf")
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(a[finite]).max())
    difference = float(np.abs(a[finite].astype(np.float64) - b[finite]).max())
    return difference if scale == 0 else difference / scale
