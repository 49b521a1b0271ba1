"""Handing a model to the runtime: as bytes, or as a file with its weights beside it where it is large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.errors import OnnxqError
from onnxq.files.scratch import SMALL_BYTES, Scratch
from onnxq.files.temporary import temporary_folder
from onnxq.graph.copying import all_graphs, called
from onnxq.graph.external import let_go_of
from onnxq.graph.io import save, serialize
from onnxq.runtime.proto import NamedBytes
from onnxq.runtime.session import open_session

# Weights in a protobuf message are held three times while a session is made of it; those in a file are mapped.
IN_MEMORY_BYTES = 8_000_000

_numbers = count()


def to_runtime(model: ir.Model, folder: Path) -> bytes | Path:
    """``model`` as the runtime can load it: bytes, or the path of a file with external data in ``folder``.

    Both are called as ``model`` is (``copying.called``).
    """
    if weight_bytes(model) <= IN_MEMORY_BYTES:
        return NamedBytes(serialize(model), called(model))
    place = folder / f"model_{next(_numbers)}"
    place.mkdir()
    path = place / f"{called(model).removesuffix('.onnx')}.onnx"
    save(model, path, external_above=IN_MEMORY_BYTES, durable=False)
    let_go_of(model)
    return path


@contextmanager
def or_refused(model: ir.Model | bytes | Path) -> Iterator[None]:
    """What fails inside by no intention is onnxruntime's refusal of ``model``, or of what is loaded, if it refuses it.

    Types and shapes that do not fit each other are for onnxruntime to find, and its reason is the one to be told; the
    question costs as much as loading, so it is asked when something is wrong.

    Raises:
        RuntimeFailure: onnxruntime cannot load ``model``.
    """
    try:
        yield
    except OnnxqError:
        raise
    except Exception:
        with temporary_folder() as folder:
            open_session(to_runtime(model, folder) if isinstance(model, ir.Model) else model, optimize="none")
        raise


def set_aside(nodes: Iterable[ir.Node], scratch: Scratch) -> None:
    """Puts the constants that ``nodes`` read, where they were computed and not loaded, where ``scratch`` keeps them."""
    for value in {id(v): v for node in nodes for v in node.inputs if v is not None}.values():
        tensor = value.const_value
        if isinstance(tensor, ir.Tensor) and tensor.nbytes >= SMALL_BYTES:
            array = tensor.numpy()
            if not isinstance(array, np.memmap):
                value.const_value = ir.Tensor(scratch.kept(array), dtype=tensor.dtype, name=tensor.name)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for graph in all_graphs(model)
        for value in graph.initializers.values()
        if value.const_value is not None
    )
