"""The models of onnx's own backend tests with the inputs that they come with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
Value = Any  # an array, or what onnxruntime takes for a sequence or an optional: a list, None


@dataclass(frozen=True)
class Source:
    """A model, called KIND/NAME, and the values of its first data set, by input; none where it has no data."""

    name: str
    model: onnx.ModelProto
    feed: dict[str, Value]


def names() -> list[str]:
    """All of them."""
    return list(_loaders())


def load(name: str) -> Source:
    """The one called ``name``."""
    model, values = _loaders()[name]()
    values = [np.asarray(value) if isinstance(value, np.generic) else value for value in values]
    given = [v for v in model.graph.input if v.name not in {t.name for t in model.graph.initializer}]
    return Source(name, model, dict(zip((v.name for v in given), values, strict=False)))


_CACHE: dict[str, Any] = {}


def _loaders() -> dict[str, Any]:
    if not _CACHE:
        from onnx.backend.test.case.node import collect_testcases
        from onnx.backend.test.loader import load_model_tests

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # overflows that the cases are about
            for case in collect_testcases(None):
                values = case.data_sets[0][0] if case.data_sets else []
                _CACHE[f"node/{case.name}"] = lambda case=case, values=values: (case.model, values)
        for kind in KINDS[1:]:
            for case in load_model_tests(kind=kind):
                _CACHE[f"{kind}/{case.name}"] = lambda case=case: _from_files(case)
    return _CACHE


def _from_files(case: Any) -> tuple[onnx.ModelProto, list[Value]]:
    if case.model_dir is None:  # networks without weights of their own, which lie in the package
        path = Path(onnx.__file__).parent.parent / case.url
        model = onnx.load(path)
        rng, given = np.random.default_rng(0), {t.name for t in model.graph.initializer}
        wanted = [v.type.tensor_type.shape.dim for v in model.graph.input if v.name not in given]
        return model, [rng.standard_normal([d.dim_value for d in dims]).astype(np.float32) for dims in wanted]
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    found = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda p: int(p.stem.rpartition("_")[2]))
    return model, list(_values(model, found))


def _values(model: onnx.ModelProto, paths: list[Path]) -> Iterator[Value]:
    for path, info in zip(paths, model.graph.input, strict=False):
        kind = info.type.WhichOneof("value")
        if kind == "sequence_type":
            sequence = onnx.SequenceProto()
            sequence.ParseFromString(path.read_bytes())
            yield numpy_helper.to_list(sequence)
        elif kind == "optional_type":
            optional = onnx.OptionalProto()
            optional.ParseFromString(path.read_bytes())
            yield numpy_helper.to_optional(optional)
        else:
            tensor = onnx.TensorProto()
            tensor.ParseFromString(path.read_bytes())
            yield numpy_helper.to_array(tensor)


def is_float(value: Value) -> bool:
    """Whether ``value`` is an array of float32 with something in it."""
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.size > 0
