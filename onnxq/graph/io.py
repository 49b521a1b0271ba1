"""Reading and writing models: nothing given is changed, nothing is left half-written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped,unused-ignore]

from onnxq.errors import ModelError, OutputError, one_line
from onnxq.files.atomic import staged, write_bytes, write_file
from onnxq.graph.copying import FILES, INFERRED, all_graphs, copy_model
from onnxq.graph.external import embed_external, resolve_external, write_tensor
from onnxq.graph.lazy import read_lazily
from onnxq.graph.passes.order import sort_nodes

# A protobuf message ends at 2^31 - 1 bytes; the rest of the model (nodes, names, shapes) needs room below that.
EXTERNAL_ABOVE = 2_000_000_000
# The same for a model that came with external data itself: one file of it would pass through memory twice.
EXTERNAL_AS_READ = 200_000_000
# Smaller tensors stay in the model file even when the others go out: shapes and axes must be readable without data.
_INLINE_BELOW = 1024
_OLDEST_OPSET = 7


def load(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """The model in ``source``, as a value of our own: what was given is never changed, external data is read lazily.

    Quantized models load too; see ``kinds.require_float32`` for the check.

    Raises:
        ModelError: no such file, not ONNX, truncated, empty, missing or short external data, opset out of range.
    """
    if isinstance(source, ir.Model):
        model = copy_model(source)
        model.meta[FILES] = (*source.meta.get(FILES, ()), *resolve_external(model, None))
        _check(model, "the model")
        return model
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        return _from_proto(proto, "the model", None)
    path = Path(source)
    return _from_proto(_read(path), str(path), path)


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
        OutputError: the folder is missing or not writable, the disk is full, or the target is a file to keep.
    """
    target = Path(os.path.realpath(path))
    data = target.with_name(target.name + ".data")
    copy = copy_model(model)
    copy.ir_version = fitting_ir_version(copy)
    if external_above is None:
        external_above = EXTERNAL_AS_READ if len(model.meta.get(FILES, ())) > 1 else EXTERNAL_ABOVE
    external = _weight_bytes(copy) > external_above
    targets = (data, target) if external else (target,)
    kept = {Path(os.path.realpath(p)) for p in (*model.meta.get(FILES, ()), *keep)}
    for out in targets:
        if out in kept:
            raise OutputError(f"{out} belongs to the input model and is not written over; choose another output path")
        if out.exists() and not overwrite:
            raise OutputError(f"{out} exists already; remove it or choose another output path")
    if not external:
        write_bytes(target, serialize(model))
        return (target,)
    with staged(*targets) as (data_temporary, model_temporary):
        write_file(data_temporary, lambda file: _move_weights_out(copy, file, data.name), durable=durable)
        content = _to_bytes(copy)
        write_file(model_temporary, lambda file: _write(file, content), durable=durable)
    return (target, data)


def serialize(model: ir.Model) -> bytes:
    """``model`` as the bytes of one ONNX file, weights included. Raises OutputError when they are 2 GB or more."""
    copy = copy_model(model)
    copy.ir_version = fitting_ir_version(copy)
    if _weight_bytes(copy) > EXTERNAL_ABOVE:
        raise OutputError("the model has more than 2 GB of weights and does not fit one ONNX file; save it to a path")
    embed_external(copy)
    return _to_bytes(copy)


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


def _read(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the path of an ONNX file")
    if not path.exists():
        raise ModelError(f"{path} does not exist; check the path")
    try:
        proto = read_lazily(path) or onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model, or is truncated; export or copy it again") from error
    except Exception as error:  # text formats have parsers with errors of their own
        raise ModelError(f"{path} cannot be parsed: {one_line(error)}") from error
    return proto


def _from_proto(proto: onnx.ModelProto, name: str, path: Path | None) -> ir.Model:
    if not proto.HasField("graph") or not proto.opset_import:
        # Any short file of zeros parses as an empty protobuf message; a cut one may lack its last fields.
        raise ModelError(f"{name} is not an ONNX model, or is truncated; export or copy it again")
    if any(graph.sparse_initializer for graph in _proto_graphs(proto.graph)):
        raise ModelError(f"{name} has sparse initializers, which are not supported; export dense weights")
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        cause = error.__cause__ or error
        raise ModelError(f"{name} is not a valid ONNX model: {one_line(cause)}") from error
    if "ai.onnx" in model.opset_imports:  # the default domain's other spelling
        version = model.opset_imports.pop("ai.onnx")
        model.opset_imports.setdefault("", version)
    folder = None if path is None else Path(os.path.abspath(path)).parent
    files = resolve_external(model, folder)
    if path is not None:
        real = Path(os.path.realpath(path))
        files = (real, *(file for file in files if Path(os.path.realpath(file)) != real))
    model.meta[FILES] = files
    _check(model, name)
    return model


def _check(model: ir.Model, name: str) -> None:
    if len(model.graph) == 0:
        raise ModelError(f"{name} has no nodes, so there is nothing to run; export it again")
    if not model.graph.outputs:
        raise ModelError(f"{name} has no outputs, or is truncated; export or copy it again")
    opset = model.opset_imports.get("")
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and opset > newest:
        raise ModelError(
            f"{name} has opset {opset}, newer than {newest}, the last one that the installed onnx {onnx.__version__} "
            "knows; update onnx and onnxruntime, or export with opset 17 to 20"
        )
    if opset is not None and opset < _OLDEST_OPSET:
        raise ModelError(f"{name} has opset {opset}; export it again with opset 13 or newer")
    sort_nodes(model)
    for graph in all_graphs(model):
        for node in graph:
            for value in node.inputs:
                if value is not None and value.name and value.graph is None and value.producer() is None:
                    raise ModelError(
                        f"{name}: node {node.name or node.op_type!r} reads {value.name!r}, which nothing makes; the "
                        "file is damaged, export it again"
                    )


def _proto_graphs(graph: onnx.GraphProto) -> Iterable[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from _proto_graphs(body)


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


def _to_bytes(model: ir.Model) -> bytes:
    proto = ir.to_proto(model)
    values = (value for graph in all_graphs(model) for node in graph for value in node.outputs)
    inferred = {value.name for value in values if value.meta.get(INFERRED)}
    for graph in _proto_graphs(proto.graph):
        # onnx_ir repeats every initializer's type in value_info; dropping that makes files smaller and loses nothing.
        names = inferred | {tensor.name for tensor in graph.initializer}
        infos = [info for info in graph.value_info if info.name not in names]
        del graph.value_info[:]
        graph.value_info.extend(infos)
    try:
        content: bytes = proto.SerializeToString()
    except (EncodeError, ValueError) as error:  # 2 GB outside the initializers: tensors in attributes
        raise OutputError(f"the model does not fit one ONNX file: {one_line(error)}") from error
    return content


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
