"""Reading and writing models: nothing given is changed, nothing is left half-written."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped,unused-ignore]

from onnxq.errors import ModelError, OutputError, one_line
from onnxq.files.atomic import staged, write_bytes, write_file
from onnxq.graph.copying import FILES, INFERRED, NAME, all_graphs, copy_model, note_bodies, only_building
from onnxq.graph.door import DAMAGED, check_model
from onnxq.graph.external import embed_external, has_external, relocated, resolve_external, write_tensor
from onnxq.graph.foreign import TYPES, make_dense, proto_graphs, put_types_back, set_types_aside
from onnxq.graph.lazy import read_lazily
from onnxq.graph.streamed import write_streamed
from onnxq.runtime.proto import LARGEST_MODEL, read_model

# A protobuf message ends at 2^31 - 1 bytes; the rest of the model (nodes, names, shapes) needs room below that.
EXTERNAL_ABOVE = 2_000_000_000
# The same for a model that came with external data itself: one file of it would pass through memory twice.
EXTERNAL_AS_READ = 200_000_000
# With more bytes of weights a model is written a tensor at a time.
STREAMED_ABOVE = 4_000_000
# Smaller tensors stay in the model file even when the others go out: shapes and axes must be readable without data.
_INLINE_BELOW = 1024


@only_building()
def load(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """The model in ``source``, as a value of our own: what was given is never changed, external data is read lazily.

    Quantized models load too; see ``kinds.require_not_quantized`` for the check.

    Raises:
        ModelError: no such file, not ONNX, truncated, empty, missing or short external data, opset out of range.
    """
    if isinstance(source, ir.Model):
        model = copy_model(source)
        model.meta[FILES] = (*source.meta.get(FILES, ()), *resolve_external(model, None))
        check_model(model, "the model")
        note_bodies(model)
        return model
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        return _from_proto(proto, "the model", None)
    path = Path(source)
    return _from_proto(read_model(path, lazily=read_lazily), str(path), path)


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    keep: Iterable[str | os.PathLike[str]] = (),
    external_above: int | None = None,
    durable: bool = True,
) -> tuple[Path, ...]:
    """Writes ``model`` to ``path`` atomically; returns the files written: the model and its data file if it has one.

    With more than ``external_above`` bytes of weights (2 GB, or 200 MB where the model was read with external data)
    they go to ``<name>.data`` beside the model. ``model`` itself is not changed. The IR version written is the oldest
    one that the opsets allow.

    Args:
        model: what to write.
        path: where to; a symbolic link is followed.
        overwrite: False refuses to replace an existing file.
        keep: files that must not be written over, besides those that ``model`` was loaded from.
        external_above: bytes of weights above which they leave the model file.
        durable: whether to wait until all is on the disk; a file that is read and forgotten need not be.

    Raises:
        OutputError: the folder is not writable, the disk is full, or the target is a file to keep.
    """
    target = Path(os.path.realpath(path))
    data = target.with_name(target.name + ".data")
    if external_above is None:
        external_above = EXTERNAL_AS_READ if len(model.meta.get(FILES, ())) > 1 else EXTERNAL_ABOVE
    weights = _weight_bytes(model)
    external = weights > external_above
    targets = (data, target) if external else (target,)
    kept = {Path(os.path.realpath(p)) for p in (*model.meta.get(FILES, ()), *keep)}
    for out in targets:
        if out in kept:
            raise OutputError(
                f"{out} belongs to the input model and is not written over", hint="choose another output path"
            )
        if os.path.exists(out) and not overwrite:
            raise OutputError(f"{out} exists already", hint="remove it or choose another output path")
    if not external and weights < STREAMED_ABOVE:
        write_bytes(target, serialize(model))
        return (target,)
    copy = copy_model(model)
    if not external:
        with staged(target) as (temporary,):
            write_file(temporary, lambda file: write_streamed(copy, file, _to_proto), durable=durable)
        return (target,)
    _save_with_data(copy, target, data, durable)
    return (target, data)


def _save_with_data(model: ir.Model, target: Path, data: Path, durable: bool) -> None:
    """Writes ``model``, which loses its large weights by that, to ``target`` and these to ``data``."""
    with_side = _side_names(target) if target.exists() and data.exists() else None
    if with_side is None:
        with staged(data, target) as (data_temporary, model_temporary):
            write_file(data_temporary, lambda file: _move_weights_out(model, file, data.name), durable=durable)
            _write_model(model, data.name, model_temporary, durable)
        return
    # A model that is there keeps its data until the new one has a copy of its own under another name: whenever this
    # process is killed, the model that lies there is whole. (A hard link would do, but onnx refuses to read those.)
    side, sides = with_side
    with staged(side, target, data, target, then_unneeded=sides) as (side_temporary, first, data_temporary, last):
        write_file(data_temporary, lambda file: _move_weights_out(model, file, side.name), durable=durable)
        shutil.copyfile(data_temporary, side_temporary)
        _write_model(model, side.name, first, durable)
        _write_model(model, data.name, last, durable)


def _side_names(target: Path) -> tuple[Path, Callable[[], Iterable[Path]]]:
    """A free name for data that belongs to ``target`` for a moment, and what looks for all such files."""
    pattern = f"{glob.escape(target.name)}.new-*.data"
    return target.with_name(f"{target.name}.new-{os.getpid()}.data"), lambda: target.parent.glob(pattern)


def _write_model(model: ir.Model, location: str, path: Path, durable: bool) -> None:
    """Writes ``model`` without its external weights, which lie at ``location``."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = relocated(value.const_value, location)
    content = _to_bytes(model)
    write_file(path, lambda file: _write(file, content), durable=durable)


def serialize(model: ir.Model) -> bytes:
    """``model`` as the bytes of one ONNX file, weights included. Raises OutputError when they are 2 GB or more."""
    if _weight_bytes(model) > EXTERNAL_ABOVE:
        raise OutputError(
            "the model has more than 2 GB of weights and does not fit one ONNX file", hint="save it to a path"
        )
    if not _complete(model):
        model = copy_model(model)
        embed_external(model)
    return _to_bytes(model)


def _complete(model: ir.Model) -> bool:
    """Whether ``model`` is a message as it stands; a copy has what it lacks, but takes longer than all the rest.

    That is names of all values, and tensors as bytes: neither in files nor as lists of numbers, which are longer.
    """
    if has_external(model):
        return False
    tensors = (value.const_value for graph in all_graphs(model) for value in graph.initializers.values())
    if any(isinstance(t, ir.serde.TensorProtoTensor) and not t.raw.HasField("raw_data") for t in tensors):
        return False
    return all(value.name is not None for graph in all_graphs(model) for node in graph for value in node.outputs)


def fitting_ir_version(model: ir.Model) -> int:
    """The oldest IR version that allows the model's opsets and features: older runtimes refuse newer ones."""
    known = {"", "ai.onnx.ml", "ai.onnx.training"}
    opsets = [
        onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items() if domain in known
    ]
    version = int(onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)) if opsets else 4
    version = max(version, 4)  # 3 would need every initializer listed among the inputs
    if model.functions:
        version = max(version, 8)
    if any(function.overload for function in model.functions.values()):
        version = max(version, 10)
    return version


def _from_proto(proto: onnx.ModelProto, name: str, path: Path | None) -> ir.Model:
    if not proto.HasField("graph") or not proto.opset_import:
        # Any short file of zeros parses as an empty protobuf message; a cut one may lack its last fields.
        raise ModelError(f"{name} is not an ONNX model, or is truncated", hint="export or copy it again")
    make_dense(proto, name)
    types = set_types_aside(proto)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"{name} is not a valid ONNX model: {one_line(_root(error))}", hint=DAMAGED) from error
    if "ai.onnx" in model.opset_imports:  # the default domain's other spelling
        version = model.opset_imports.pop("ai.onnx")
        model.opset_imports.setdefault("", version)
    model.meta[TYPES] = types
    files = resolve_external(model, path)
    if path is not None:
        model.meta[NAME] = path.name
        real = Path(os.path.realpath(path))
        files = (real, *(file for file in files if Path(os.path.realpath(file)) != real))
    model.meta[FILES] = files
    check_model(model, name)
    note_bodies(model)
    return model


def _root(error: BaseException) -> BaseException:
    """What ``error`` began with: onnx_ir wraps it at every level, in the text of all that it was reading."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _weight_bytes(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for graph in all_graphs(model)
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING
    )


def _move_weights_out(model: ir.Model, file: BinaryIO, location: str) -> None:
    """Writes the large weights of ``model`` to ``file`` and makes them point, by name, at ``location``.

    One tensor is in memory at a time.
    """
    embed_external(model)
    offset = 0
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < _INLINE_BELOW:
                continue
            padding = -offset % 64  # aligned tensors can be used where they are mapped
            file.write(b"\0" * padding)
            offset += padding
            length = write_tensor(tensor, file)
            value.const_value = ir.ExternalTensor(
                location,
                offset,
                length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
            )
            offset += length


@only_building()
def _to_proto(model: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    proto.ir_version = fitting_ir_version(model)
    values = (value for graph in all_graphs(model) for node in graph for value in node.outputs)
    inferred = {value.name for value in values if value.meta.get(INFERRED)}
    put_types_back(proto, model)
    for graph in proto_graphs(proto.graph):
        # onnx_ir repeats every initializer's type in value_info; dropping that makes files smaller and loses nothing.
        names = inferred | {tensor.name for tensor in graph.initializer}
        infos = [info for info in graph.value_info if info.name not in names]
        del graph.value_info[:]
        graph.value_info.extend(infos)
    return proto


def _to_bytes(model: ir.Model) -> bytes:
    proto = _to_proto(model)
    try:
        content: bytes = proto.SerializeToString()
    except (EncodeError, ValueError) as error:  # 2 GB outside the initializers: tensors in attributes
        if proto.ByteSize() <= LARGEST_MODEL:
            raise MemoryError("a message could not be written") from error
        raise OutputError(f"the model does not fit one ONNX file: {one_line(error)}") from error
    return content


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
