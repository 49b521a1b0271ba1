"""Before a model is run for the first time in this process."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxq.calibrate.casting import Array
from onnxq.graph.runtime_model import weight_bytes
from onnxq.graph.sizes import check_sizes
from onnxq.runtime.proto import Model
from onnxq.runtime.trial import require_run

# What is taken of a model for whatever sizes it computes: so much, so many times its weights and inputs, and what is
# known of it a few times over. A model that needs more says so by the shapes of its tensors.
_MEMORY_BYTES = 256 << 20
_TIMES, _COPIES = 64, 2


def before_first_run(model: ir.Model, runnable: Model, feed: Mapping[str, Array]) -> None:
    """Nothing where running ``runnable``, whose graph is ``model``, on ``feed`` neither fills the memory nor hangs.

    What cannot be told from the graph is tried in a child process. Raises ``ModelError`` and ``RuntimeFailure``.
    """
    unknown = check_sizes(model, {name: array.shape for name, array in feed.items()})
    if unknown:
        require_run(runnable, feed, memory=memory_for(model, feed) + _COPIES * unknown.known)


def memory_for(model: ir.Model, feed: Mapping[str, Array]) -> int:
    """Bytes that a process may take which runs ``model`` on ``feed``, and what of it has no known size."""
    return _MEMORY_BYTES + _TIMES * (weight_bytes(model) + sum(array.nbytes for array in feed.values()))
