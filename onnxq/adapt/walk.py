"""Running a model piece by piece over all samples, so that what comes first can be settled before what follows runs.

A piece is a run of nodes in graph order. What later pieces read is kept for every sample, the rest is forgotten: going
through all pieces costs one run of the model, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.files.scratch import ArrayFile, Scratch
from onnxq.graph.copying import copy_model
from onnxq.graph.io import serialize
from onnxq.runtime.proto import load_proto, used_names
from onnxq.runtime.session import open_to_look, run

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]


# Smaller arrays stay in memory.
_SMALL_BYTES = 1 << 16


class Values(MutableMapping[str, Array]):
    """The tensors of one feed by name; large ones lie in files, one for each tensor of all feeds (``files``)."""

    def __init__(self, scratch: Scratch, files: dict[str, ArrayFile | None]) -> None:
        self._scratch, self._files = scratch, files
        self._held: dict[str, Array | int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for that."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> Array:
        held = self._held[name]
        if not isinstance(held, int):
            return held
        file = self._files[name]
        assert file is not None
        return file[held]

    def __setitem__(self, name: str, array: Array) -> None:
        array = np.asarray(array)
        self._shapes[name] = array.shape
        file = None
        if array.nbytes >= _SMALL_BYTES and array.dtype.kind in "fiub":
            if name not in self._files:
                self._files[name] = self._scratch.file()
            file = self._files[name]
        self._held[name] = array if file is None else file.append(array)

    def __delitem__(self, name: str) -> None:
        del self._held[name], self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class Walk:
    """``model`` on its way over ``feeds``: nodes before ``at`` have run.

    ``live``: for each feed, the tensors that nodes from ``at`` on read or that are outputs of the model.
    """

    def __init__(self, model: ir.Model, feeds: Iterable[Mapping[str, Array]], scratch: Scratch | None = None) -> None:
        self._proto, self._constants = _without_constants(model)
        self._nodes = list(self._proto.graph.node)
        self._place = {n.name: i for i, n in enumerate(self._nodes)}
        self._last = {o.name: len(self._nodes) for o in self._proto.graph.output}
        for i, node in enumerate(self._nodes):
            for name in used_names(node):
                self._last[name] = max(i, self._last.get(name, 0))
        self.at = 0
        self.scratch = scratch or Scratch()
        self._files: dict[str, ArrayFile | None] = {}
        self.live: list[Values] = []
        for feed in feeds:
            self.take(feed)

    def take(self, feed: Mapping[str, Array]) -> None:
        """Takes in one more feed, before anything has run."""
        values = Values(self.scratch, self._files)
        values.update(feed)
        self.live.append(values)

    def place(self, node: str) -> int:
        """Where the node called so stands in the main graph."""
        return self._place[node]

    def reads(self, node: str) -> list[str]:
        """The names of the inputs of a node."""
        return list(self._nodes[self._place[node]].input)

    def give(self, node: str, index: int, data: Array) -> None:
        """Makes input ``index`` of ``node``, which has not run yet, the constant ``data``."""
        name, place = f"{node}:{index}", self._place[node]
        self._constants[name] = ir.Tensor(np.ascontiguousarray(data), name=name)
        self._nodes[place].input[index] = name
        self._last[name] = place

    def advance(self, stop: int) -> None:
        """Runs the nodes up to but without ``stop``."""
        piece = self._nodes[self.at : stop]
        made = {name for node in piece for name in node.output if name}
        wanted = [n for n in dict.fromkeys(o for node in piece for o in node.output) if self._needed(n, stop)]
        self.at = max(self.at, stop)
        if wanted and self.live:
            self._run(piece, made, wanted)
        for name in [n for n in self._constants if not self._needed(n, stop)]:
            del self._constants[name]
        for arrays in self.live:
            for name in [n for n in arrays if not self._needed(n, stop)]:
                del arrays[name]
        for name in [n for n in self._files if not self._needed(n, stop)]:
            if (file := self._files.pop(name)) is not None:
                file.clear()

    def _needed(self, name: str, stop: int) -> bool:
        return bool(name) and self._last.get(name, -1) >= stop

    def _run(self, piece: list[onnx.NodeProto], made: set[str], wanted: list[str]) -> None:
        import onnx

        used = {name for node in piece for name in used_names(node)} - made
        part = onnx.ModelProto(ir_version=self._proto.ir_version, opset_import=self._proto.opset_import)
        part.graph.name = "piece"
        part.graph.node.extend(piece)
        part.graph.initializer.extend(_written(self._constants[n], n) for n in sorted(used) if n in self._constants)
        inputs = sorted(n for n in used if n and n not in self._constants)
        for name in inputs:
            first = self.live[0][name]
            dtype = onnx.helper.np_dtype_to_tensor_dtype(first.dtype)
            part.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, [None] * first.ndim))
        part.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted)
        content = part.SerializeToString()
        del part
        session = open_to_look(content)
        for arrays in self.live:
            arrays.update(zip(wanted, run(session, {n: arrays[n] for n in inputs}, outputs=wanted), strict=True))


def _without_constants(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """``model`` as a message that holds no constant of the main graph, and these by name, as ``model`` holds them."""
    copy = copy_model(model)
    values = copy.graph.initializers.values()
    constants = {value.name or "": value.const_value for value in values if value.const_value is not None}
    for value in values:
        value.const_value = ir.Tensor(np.zeros(0, np.float32), name=value.name)
    proto = load_proto(serialize(copy))
    del proto.graph.initializer[:]
    return proto, constants


def _written(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    import onnx

    if tensor.dtype == ir.DataType.STRING:
        return onnx.numpy_helper.from_array(tensor.numpy(), name)
    shape = tensor.shape.numpy()
    return onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=shape, raw_data=tensor.tobytes())
