"""Reading a model's graph without its weights: all that measuring needs, and cheap for models of any size."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from onnxq.errors import ModelError, one_line
from onnxq.files.opening import open_file, read_file
from onnxq.runtime.skeleton import TooMany, check_skeleton

if TYPE_CHECKING:
    import onnx

# Far below the 2 GiB that protobuf can write: the graph and a copy come on top.
_LARGEST_INLINE = 2**30

# Where a message of protobuf ends.
LARGEST_MODEL = 2**31 - 1
_LARGEST_TEXT_FORM = 128 << 20
_DEEPEST = 1000
_OPENING = b"([{<"
_NO_BRACKETS = bytes(set(range(256)) - set(b"()[]{}<>"))

# A file (its external data lies beside it) or a serialised ModelProto.
Model: TypeAlias = "Path | str | bytes"


# What messages call a model that came from no file.
IN_MEMORY = "the model in memory"


class NamedBytes(bytes):
    """A serialised model that knows what messages call it."""

    name: str

    def __new__(cls, content: bytes, name: str) -> NamedBytes:
        """``content`` under that name."""
        made = super().__new__(cls, content)
        made.name = name
        return made


def label(model: Model) -> str:
    """How messages and tables call ``model``: its file name, or a phrase for bytes."""
    if isinstance(model, NamedBytes):
        return model.name
    return IN_MEMORY if isinstance(model, bytes) else Path(model).name


def folder(model: Model) -> Path | None:
    """The folder that external data is relative to; None for bytes."""
    return None if isinstance(model, bytes) else Path(model).resolve().parent


def load_proto(model: Model) -> onnx.ModelProto:
    """The ``ModelProto`` of ``model``; weights in external files stay there.

    Raises ``ModelError`` where the file is missing, unreadable or not ONNX.
    """
    import onnx

    name = label(model)
    if not isinstance(model, bytes):
        proto = read_model(Path(model))
    else:
        try:
            proto = onnx.ModelProto.FromString(model)
        except Exception as error:  # protobuf's DecodeError lies in a module that moves between versions
            raise ModelError(
                f"{name} is not an ONNX model or is truncated", hint="export or download it again"
            ) from error
    if not proto.HasField("graph"):
        raise ModelError(f"{name} holds no graph: it is not an ONNX model", hint="give the .onnx file itself")
    return proto


def read_model(path: Path, *, lazily: Callable[[Path], onnx.ModelProto | None] | None = None) -> onnx.ModelProto:
    """The message in the file ``path``, in any of ONNX's formats; weights in external files stay there.

    ``lazily``: what reads a file that was looked through without its weights; None from it where it does not.

    Raises ``ModelError`` where there is no such file, it is no regular one, or not an ONNX model.
    """
    import onnx

    try:
        kind = onnx.serialization.registry.get_format_from_file_extension(path.suffix) or "protobuf"
        if kind != "protobuf":
            return _read_text_form(path, kind)
        with open_file(path, at_most=LARGEST_MODEL) as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    check_skeleton(mapped)
            found = None if lazily is None else lazily(path)
            proto: onnx.ModelProto = onnx.ModelProto.FromString(file.read()) if found is None else found
    except OSError as error:
        raise _unreadable(path, error) from error
    except ModelError:
        raise
    except TooMany as error:
        raise ModelError(f"{path} has {error}", hint="check where the file comes from, or split the model") from error
    except Exception as error:  # protobuf's DecodeError lies in a module that moves between versions
        raise ModelError(f"{path} is not an ONNX model, or is truncated", hint="export or copy it again") from error
    return proto


def _unreadable(path: Path, error: OSError) -> ModelError:
    if os.path.isdir(path):
        return ModelError(f"{path} is a folder", hint="give the path of an ONNX file")
    if isinstance(error, FileNotFoundError):
        return ModelError(f"{path} does not exist", hint="check the path")
    return ModelError(f"{path} cannot be read: {error.strerror or one_line(error)}")


def _read_text_form(path: Path, kind: str) -> onnx.ModelProto:
    """The model in a text format, none of whose parsers takes any input. Raises ``OSError`` and ``ModelError``."""
    import onnx

    text = read_file(path, at_most=_LARGEST_TEXT_FORM)
    try:
        # onnx's own parser kills the process where its input is nested deeply.
        if (levels := depth(text)) > _DEEPEST:
            raise ValueError(f"it is nested {levels} levels deep")
        return onnx.serialization.registry.get(kind).deserialize_proto(text, onnx.ModelProto())
    except Exception as error:  # each parser has errors of its own
        raise ModelError(f"{path} cannot be parsed: {one_line(error)}") from error


def depth(text: bytes) -> int:
    """How deeply brackets of all kinds are nested in ``text``, those in strings counted too."""
    deepest = level = 0
    for bracket in text.translate(None, _NO_BRACKETS):
        level = level + 1 if bracket in _OPENING else max(0, level - 1)
        deepest = max(deepest, level)
    return deepest


def bring_weights(proto: onnx.ModelProto, base: Path | None) -> Path | None:
    """Read external weights from ``base`` into ``proto`` where all of it still fits one message.

    Returns the folder that is still needed: None where nothing external is left. Not every onnxruntime can find
    external data of a model that is handed over as bytes, so the exception is made for large models only.

    Raises ``ModelError`` for a missing file.
    """
    from onnx.external_data_helper import load_external_data_for_model

    outside = [t for _, graph in walk(proto.graph) for t in graph.initializer if t.external_data]
    if base is None or not outside:
        return None
    # Lengths are optional; a tensor without one is the rest of its file.
    files = {e.value for t in outside for e in t.external_data if e.key == "location"}
    missing = sorted(f for f in files if not (base / f).is_file())
    if missing:
        raise ModelError(
            f"the model keeps weights in {missing[0]}, which is not there", hint="put that file beside the model"
        )
    if sum((base / f).stat().st_size for f in files) > _LARGEST_INLINE:
        return base
    load_external_data_for_model(proto, str(base))
    return None


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """(attribute name, body) of every graph that ``node`` (If, Loop, Scan) holds."""
    import onnx

    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            for i, graph in enumerate(attribute.graphs):
                yield f"{attribute.name}[{i}]", graph


def scope_of(node: onnx.NodeProto, attribute: str) -> str:
    """A name for the body ``attribute`` of ``node`` that onnxruntime's optimiser keeps."""
    return f"{node.name or (node.output[0] if node.output else node.op_type)}/{attribute}"


def walk(graph: onnx.GraphProto, *, scope: str = "") -> Iterator[tuple[str, onnx.GraphProto]]:
    """(scope, graph) of ``graph`` and of all bodies below it, outer ones first; the main graph's scope is ``""``."""
    yield scope, graph
    for node in graph.node:
        for attribute, body in subgraphs(node):
            below = scope_of(node, attribute)
            yield from walk(body, scope=f"{scope}/{below}" if scope else below)


def used_names(node: onnx.NodeProto) -> set[str]:
    """All values ``node`` reads, those captured by its bodies from outside among them."""
    names = {name for name in node.input if name}
    for _, body in subgraphs(node):
        made = {v.name for v in body.input} | {t.name for t in body.initializer}
        for inner in body.node:
            names |= used_names(inner) - made
            made |= set(inner.output)
        names |= {v.name for v in body.output} - made
    return names
