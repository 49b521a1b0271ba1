"""Whether a float model's outputs are numbers where something inside it is NaN: data with missing values is data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxq.errors import DataError
from onnxq.files.temporary import temporary_folder
from onnxq.graph.runtime_model import to_runtime
from onnxq.measure.places import holds_nan, place_of, require_defined
from onnxq.runtime.session import open_to_look, run

Feed = Mapping[str, npt.NDArray[Any]]


class DefinedOutputs(contextlib.ExitStack):
    """Passes ``feeds`` on, and knows of the last one whether the outputs of the float ``model`` are numbers on it."""

    def __init__(self, model: ir.Model, feeds: Iterable[Feed]) -> None:
        super().__init__()
        self._model, self._feeds = model, feeds
        self._number, self._feed = -1, dict[str, npt.NDArray[Any]]()
        self._session: Any = None
        self._checked = -1

    def __iter__(self) -> Iterator[Feed]:
        for number, feed in enumerate(self._feeds):
            self._number, self._feed = number, dict(feed)
            yield feed

    def require(self, tensor: str) -> None:
        """Raises ``DataError`` where NaN in ``tensor`` reaches an output: it names output, sample and input."""
        if self._checked == self._number:
            return
        self._checked = self._number
        if self._session is None:
            folder = self.enter_context(temporary_folder())
            self._session = open_to_look(to_runtime(self._model, folder))
        names = [output.name for output in self._session.get_outputs()]
        for name, array in zip(names, run(self._session, self._feed), strict=True):
            place = partial(place_of, self._feeds, self._number)
            require_defined(name, array, self._feed, place=place)
            if holds_nan(array):
                raise DataError(
                    f"output '{name}' of the float model is NaN for {place()}, as tensor '{tensor}' holds NaN",
                    hint="check the input values and the preprocessing",
                )
