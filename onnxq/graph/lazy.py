"""Large model files read without their weights: these stay in the file until they are looked at.

A ``TensorProto`` whose ``raw_data`` is large is passed over where it lies in the message (``runtime.wire``), and
remembered by its place. What is left parses as usual.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.files.scratch import forget
from onnxq.runtime.wire import fields, head

# Files below this size are read as they are; of larger ones, tensors from this size on stay in the file.
LARGE_FILE = 32_000_000
_LARGE_TENSOR = 1 << 16

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW = 7, 5, 9
_NEVER_LONGER = 1 << 31  # a protobuf message


def read_lazily(path: Path) -> onnx.ModelProto | None:
    """The model in ``path`` with its large initializers as external data in that very file; None: read it as it is.

    None where the file is small, longer than a message can be, or no message as one expects it (the usual parser says
    what is wrong then).
    """
    size = path.stat().st_size
    if not LARGE_FILE <= size < _NEVER_LONGER:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            small, places = _without_weights(memoryview(content))
        except ValueError:
            return None
        finally:
            forget(content)
    proto: onnx.ModelProto = onnx.ModelProto.FromString(small)
    for index, (offset, length) in places.items():
        tensor = proto.graph.initializer[index]
        bits = ir.DataType(tensor.data_type).bitwidth if tensor.data_type != onnx.TensorProto.STRING else 0
        if -(-math.prod(tensor.dims) * bits // 8) != length or tensor.external_data:
            return None  # damaged: the usual parser says so
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = (("location", path.name), ("offset", str(offset)), ("length", str(length)))
        for key, value in entries:
            tensor.external_data.add(key=key, value=value)
    return proto


def _without_weights(content: memoryview) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """The message less the large ``raw_data`` of its initializers; by number of the initializer (offset, length)."""
    places: dict[int, tuple[int, int]] = {}
    parts: list[bytes] = []
    seen = False
    with content:
        for number, start, at, end in fields(content, 0, len(content)):
            if number != _MODEL_GRAPH:
                parts.append(bytes(content[start:end]))
                continue
            if seen:
                raise ValueError("two graphs, which parsers join")
            parts.append(_field(_MODEL_GRAPH, _graph(content, at, end, places)))
            seen = True
    return b"".join(parts), places


def _graph(content: memoryview, start: int, end: int, places: dict[int, tuple[int, int]]) -> bytes:
    parts: list[bytes] = []
    count = 0
    for number, begin, at, stop in fields(content, start, end):
        if number != _GRAPH_INITIALIZER:
            parts.append(bytes(content[begin:stop]))
            continue
        if stop - at < _LARGE_TENSOR:
            parts.append(bytes(content[begin:stop]))
        else:
            parts.append(_field(_GRAPH_INITIALIZER, _tensor(content, at, stop, count, places)))
        count += 1
    return b"".join(parts)


def _tensor(content: memoryview, start: int, end: int, index: int, places: dict[int, tuple[int, int]]) -> bytes:
    parts: list[bytes] = []
    for number, begin, at, stop in fields(content, start, end):
        if number == _TENSOR_RAW and stop - at >= _LARGE_TENSOR:
            if index in places:
                raise ValueError("two values of one tensor")
            places[index] = (at, stop - at)
        else:
            parts.append(bytes(content[begin:stop]))
    return b"".join(parts)


def _field(number: int, value: bytes) -> bytes:
    return head(number, len(value)) + value
