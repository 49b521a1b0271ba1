"""Before a model is run for the first time in this process."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxq.calibrate.casting import Array
from onnxq.graph.sizes import check_sizes
from onnxq.runtime.proto import Model
from onnxq.runtime.trial import require_run


def before_first_run(model: ir.Model, runnable: Model, feed: Mapping[str, Array]) -> None:
    """Nothing where running ``runnable``, whose graph is ``model``, on ``feed`` neither fills the memory nor hangs.

    What cannot be told from the graph is tried in a child process. Raises ``ModelError`` and ``RuntimeFailure``.
    """
    if check_sizes(model, {name: array.shape for name, array in feed.items()}):
        require_run(runnable, feed)
