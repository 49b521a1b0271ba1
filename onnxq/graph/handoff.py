"""Handing a model to the runtime: as bytes, or as a file where it is too large for one protobuf message."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from onnxq.graph.io import save, serialize

# A protobuf message may not pass 2 GiB; what lies well below stays in memory.
IN_MEMORY_BYTES = 1_500_000_000


def hand_off(model: ir.Model, folder: Path) -> bytes | Path:
    """``model`` as the runtime can load it: bytes, or the path of a file with external data in ``folder``."""
    if weight_bytes(model) <= IN_MEMORY_BYTES:
        return serialize(model)
    path = folder / f"model_{len(list(folder.glob('model_*.onnx')))}.onnx"
    save(model, path)
    return path


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
