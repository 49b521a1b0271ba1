"""External data: weights that live in files beside the model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.files.opening import check_file, is_within
from onnxq.files.scratch import forget, let_go
from onnxq.graph.copying import all_graphs, all_nodes

# Bytes of a tensor that are copied at once.
_AT_ONCE = 1 << 24


def resolve_external(model: ir.Model, file: Path | None) -> tuple[Path, ...]:
    """Points every external tensor of ``model`` at its real file and returns those files; nothing is read.

    ``file`` is that of the model; None (a model from memory) leaves paths relative to the working directory.

    Raises:
        ModelError: a file is missing, too short, no regular file, or lies outside the model's folder.
    """
    files: dict[Path, None] = {}

    def resolved(tensor: ir.ExternalTensor, owner: str) -> ir.ExternalTensor:
        path = _locate(tensor, owner, file)
        files[path] = None
        # The real path and no base folder: model hubs keep data behind symbolic links that leave the model's folder.
        return relocated(tensor, os.fspath(path), name=tensor.name or owner)

    for graph in all_graphs(model):
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = resolved(value.const_value, name)
    for node, key, tensor in _external_attributes(model):
        owner = tensor.name or (node.outputs[0].name if node.outputs else None) or node.name or "?"
        node.attributes[key] = ir.AttrTensor(key, resolved(tensor, owner))
    return tuple(files)


def relocated(tensor: ir.ExternalTensor, location: str, *, name: str | None = None) -> ir.ExternalTensor:
    """``tensor`` with its bytes at the same place of the file ``location``, called ``name`` if that is given."""
    return ir.ExternalTensor(
        location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name if name is None else name,
        doc_string=tensor.doc_string,
    )


def embed_external(model: ir.Model) -> None:
    """Replaces, in place, every external tensor by one whose bytes go into the model file (still mapped, not read)."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _embedded(value.const_value)
    for node, key, tensor in _external_attributes(model):
        node.attributes[key] = ir.AttrTensor(key, _embedded(tensor))


def has_external(model: ir.Model) -> bool:
    """Whether something of ``model`` lies in a file beside it."""
    tensors = (value.const_value for graph in all_graphs(model) for value in graph.initializers.values())
    return any(isinstance(t, ir.ExternalTensor) for t in tensors) or any(True for _ in _external_attributes(model))


def write_tensor(tensor: ir.TensorProtocol, file: BinaryIO) -> int:
    """Writes what ``tensor`` holds to ``file``, some of it in memory at a time; the number of bytes."""
    while isinstance(tensor, ir.LazyTensor):
        tensor = tensor.raw()
    if isinstance(tensor, ir.ExternalTensor):
        _copy(Path(tensor.path), tensor.offset or 0, tensor.nbytes, file)
        return int(tensor.nbytes)
    array = tensor.numpy() if tensor.dtype.bitwidth >= 8 and sys.byteorder == "little" else None
    if isinstance(array, np.memmap) and array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _AT_ONCE):
            file.write(flat[start : start + _AT_ONCE].data)
            let_go(array)
        return int(flat.size)
    content = tensor.tobytes()
    file.write(content)
    return len(content)


def let_go_of(model: ir.Model) -> None:
    """Gives back the memory that the weights of ``model`` took as they were looked at, as far as files have them."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            while isinstance(tensor, ir.LazyTensor):
                tensor = tensor.raw()
            if isinstance(tensor, ir.ExternalTensor):
                forget(tensor.raw)
            elif isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, np.memmap):
                let_go(tensor.raw)


def _copy(path: Path, offset: int, size: int, file: BinaryIO) -> None:
    with path.open("rb") as source:
        source.seek(offset)
        while size > 0:
            part = source.read(min(size, _AT_ONCE))
            if not part:
                raise ModelError(f"external data file {str(path)!r} is truncated", hint="copy the file again")
            file.write(part)
            size -= len(part)


def _embedded(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.LazyTensor(
        lambda: tensor,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        doc_string=tensor.doc_string,
    )


def _external_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, str, ir.ExternalTensor]]:
    for node in all_nodes(model):
        for key, attribute in tuple(node.attributes.items()) if node.attributes else ():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                yield node, key, attribute.value


def _locate(tensor: ir.ExternalTensor, owner: str, file: Path | None) -> Path:
    location = os.fspath(tensor.location)
    base = Path(tensor.base_dir) if file is None else Path(os.path.abspath(file)).parent
    path = base / location
    if file is not None and not _belongs(location, base, file):
        raise ModelError(
            f"tensor {owner!r} keeps its data in {location!r}, outside the model's folder",
            hint="save the model again with its data beside it",
        )
    try:
        check_file(path)
    except FileNotFoundError as error:
        hint = "put it beside the model" if file is not None else "give the path of the model instead of the object"
        raise ModelError(f"external data file {str(path)!r} of tensor {owner!r} is missing", hint=hint) from error
    except OSError as error:
        raise ModelError(
            f"external data file {str(path)!r} of tensor {owner!r} is not read: {error.strerror}"
        ) from error
    path = path.resolve()
    start, length = tensor.offset or 0, tensor.length or tensor.nbytes
    size = path.stat().st_size
    if tensor.size and (start < 0 or length < 0 or start + length > size):
        raise ModelError(
            f"external data file {str(path)!r} is truncated: tensor {owner!r} ends at byte {start + length}, "
            f"the file at {size}",
            hint="copy the file again",
        )
    return path


def _belongs(location: str, folder: Path, file: Path) -> bool:
    """Whether ``location`` is a file of the model ``file`` in ``folder``, by name and with links followed.

    Model hubs keep both behind links that leave the folder, side by side (``blobs/``): that is the model's real folder.
    """
    if os.path.isabs(location) or ".." in Path(location).parts:
        return False
    data = os.path.realpath(folder / location)
    return any(is_within(data, home) for home in (os.path.realpath(folder), os.path.dirname(os.path.realpath(file))))
