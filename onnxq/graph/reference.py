"""What a model is compared with: itself, or its float32 form where the runtime has no kernels for its own type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxq.errors import RuntimeFailure
from onnxq.graph.io import save
from onnxq.graph.kinds import other_floats
from onnxq.graph.prepare import in_float32
from onnxq.kernels.targets import USUAL
from onnxq.runtime.session import open_to_look


@dataclass(frozen=True)
class Reference:
    """What is run in the place of a model: ``model``, as ``runnable``; ``note``: why that is not the model itself."""

    model: ir.Model
    runnable: bytes | Path
    note: str | None = None


def reference(model: ir.Model, given: bytes | Path, folder: Path) -> Reference:
    """The ``Reference`` of ``model``, which the runtime loads as ``given``; a float32 form is written to ``folder``.

    onnxruntime on the CPU convolves neither double nor bfloat16: there even one block of these cannot stay. A model
    that it refuses in float32 too is its own reference.
    """
    kinds = sorted(kind.name.lower() for kind in other_floats(model))
    if not kinds or _loads(given):
        return Reference(model, given)
    stem = given.stem if isinstance(given, Path) else "model"
    path, single = folder / f"{stem}_in_float32.onnx", in_float32(model, target=USUAL)
    save(single, path, durable=False)
    if not _loads(path):
        return Reference(model, given)
    note = f"onnxruntime has no kernels to run this model in {' and '.join(kinds)}: its float32 form is run instead"
    return Reference(single, path, note)


def _loads(model: bytes | Path) -> bool:
    try:
        open_to_look(model, optimize="none")
    except RuntimeFailure:
        return False
    return True
