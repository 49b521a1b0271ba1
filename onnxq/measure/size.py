"""How large a model is: bytes on disk with its external data, and how many parameters of which type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.runtime.proto import Model, folder, label, load_proto, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


@dataclass(frozen=True)
class ModelSize:
    """``file_bytes`` includes the ``external_bytes``; ``parameters`` counts elements, ``by_dtype`` splits them.

    Parameters are floats or integers of at most 8 bits or biases of 32, in initialisers and Constant nodes; int64
    tensors are shapes and indices, and are counted in ``by_dtype`` only.
    """

    name: str
    file_bytes: int
    external_bytes: int
    parameters: int
    by_dtype: dict[str, int]


def model_size(model: Model) -> ModelSize:
    """The ``ModelSize`` of ``model``. Raises ``ModelError`` where it cannot be read; missing data files count 0."""
    import onnx

    proto = load_proto(model)
    own = len(model) if isinstance(model, bytes) else Path(model).stat().st_size
    base, files, counts = folder(model), set(), dict[str, int]()
    for tensor in _tensors(proto.graph):
        dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        counts[dtype] = counts.get(dtype, 0) + math.prod(tensor.dims)
        files |= {e.value for e in tensor.external_data if e.key == "location"}
    external = sum((base / f).stat().st_size for f in files if base is not None and (base / f).is_file())
    parameters = sum(n for dtype, n in counts.items() if dtype not in ("int64", "bool", "string"))
    return ModelSize(label(model), own + external, external, parameters, dict(sorted(counts.items())))


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for _, part in walk(graph):
        yield from part.initializer
        for node in part.node:
            if node.op_type == "Constant":
                yield from (a.t for a in node.attribute if a.name == "value" and a.HasField("t"))
