"""Runs the float model over calibration data and keeps nothing but statistics: memory does not grow with samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.defined import DefinedOutputs
from onnxq.calibrate.layer_inputs import LayerInput, LayerInputs
from onnxq.calibrate.observers import ends_of, is_mask, merge, observe
from onnxq.errors import DataError, RuntimeFailure
from onnxq.files.scratch import Scratch
from onnxq.files.temporary import temporary_folder
from onnxq.graph.instrument import expose, loops_around
from onnxq.graph.runtime_model import to_runtime
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.moments import Moments
from onnxq.runtime.session import Level, open_to_look, run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]
Progress = Callable[[int], None]

# Of a value that is shown there is one in its own layout and, at the same time, one in that of blocks of channels.
_COPIES = 2


@dataclass
class Statistics:
    """What was seen: the histogram of each tensor, and by node and input the moments of what each weight multiplies.

    ``masks``: the tensors that hold infinity or numbers that stand for it, which have neither. ``elements``: of each
    tensor, all that there were; of large ones a histogram counts a part.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    moments: dict[tuple[str, int], Moments] = field(default_factory=dict)
    masks: frozenset[str] = frozenset()
    elements: dict[str, int] = field(default_factory=dict)


def values_of(
    model: ir.Model, tensors: Sequence[str], feeds: Feeds, *, workspace: int | None = None
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """For each of ``feeds``, what the float ``model`` makes of ``tensors``, by name; inputs count as tensors.

    The values of all iterations of a Loop or Scan are one, joined along the first axis (a new one, where they have one
    axis or none). Names that do not exist are left out, and so is what lies in such bodies once iterations differ in
    shape. An empty array stands for a tensor of an If branch that did not run. Who takes the arrays out of the dict has
    the next ones made in their memory. ``workspace``: bytes that the values of one feed may take together with their
    copies in the layout of the runtime's fastest kernels; where those are more, other kernels make them.

    Raises ``RuntimeFailure`` where the model does not run on a feed.
    """
    inner = set(tensors) - {v.name for v in model.graph.inputs}
    loops = _loops_around(model, inner)
    with temporary_folder() as folder:
        look = _Look.at(model, [t for t in tensors if t in inner], folder)
        for feed in feeds:
            try:
                found = look.values(feed)
            except RuntimeFailure:
                if not loops.keys() & look.output_of.keys():
                    raise
                # onnxruntime stacks nothing but equal shapes.
                look = _Look.at(model, [t for t in tensors if t in inner - loops.keys()], folder)
                found = look.values(feed)
            if workspace is not None and not look.plain and _COPIES * sum(a.nbytes for a in found.values()) > workspace:
                look = _Look.at(model, list(found), folder, plain=True)
            found = {**feed, **found}
            named = {t: _joined(found[t], loops.get(t, 0)) for t in tensors if t in found}
            del found, feed  # or they would hold what is taken out of the other dict
            yield named


@dataclass(frozen=True)
class _Look:
    """A model that shows some tensors, and by tensor the output that it is; no session where it shows none.

    ``plain``: whether its kernels keep to the layout of the tensors.
    """

    session: InferenceSession | None
    output_of: Mapping[str, str]
    plain: bool = False

    @classmethod
    def at(cls, model: ir.Model, tensors: Sequence[str], folder: Path, *, plain: bool = False) -> _Look:
        """That for ``tensors`` of ``model``, as far as they exist."""
        shown, output_of = expose(model, tensors)
        level: Level = "extended" if plain else "all"
        return cls(open_to_look(to_runtime(shown, folder), optimize=level) if output_of else None, output_of, plain)

    def values(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The tensors, by name, in a run on ``feed``."""
        if self.session is None:
            return {}
        return dict(zip(self.output_of, run(self.session, feed, outputs=list(self.output_of.values())), strict=True))


def _loops_around(model: ir.Model, names: Collection[str]) -> dict[str, int]:
    """By name, in how many Loop and Scan bodies a tensor lies that is in one at all."""
    return {
        value.name: count
        for graph, count in loops_around(model).items()
        for value in (*graph.inputs, *(o for n in graph for o in n.outputs))
        if value.name and value.name in names
    }


def _joined(array: npt.NDArray[Any], loops: int) -> npt.NDArray[Any]:
    """``array``, which has so many axes of iterations in front of its own, with these and the first of those in one."""
    if not loops or array.ndim < loops + 2:
        return array
    return array.reshape(math.prod(array.shape[: loops + 1]), *array.shape[loops + 1 :])


def run_observers(
    model: ir.Model,
    tensors: Sequence[str],
    feeds: Feeds,
    *,
    layers: Mapping[tuple[str, int], LayerInput] | None = None,
    scratch: Scratch | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """The ``Statistics`` of ``tensors`` of the float ``model``, and of ``layers`` that read some of them.

    Each of ``feeds`` is one call of the model. Tensors that no feed reached (an If branch that never ran) are missing
    from the result. ``progress`` is told the number of feeds done. ``scratch`` holds the
    sums.

    Raises ``DataError`` for NaN that reaches the model's outputs, or no feed at all, ``RuntimeFailure`` where the model
    does not run on the data.
    """
    histograms: dict[str, Histogram | None] = dict.fromkeys(tensors)
    elements = dict.fromkeys(tensors, 0)
    read_by: dict[tuple[str, int], LayerInputs] = {}
    readers: dict[str, list[tuple[str, int]]] = {}
    layers, scratch = layers or {}, scratch or Scratch()
    for place, read in layers.items():
        readers.setdefault(read.tensor, []).append(place)
    masks: set[str] = set()
    done = 0
    with DefinedOutputs(model, feeds) as outputs:
        values = values_of(model, tensors, outputs, workspace=scratch.workspace)
        for done, arrays in enumerate(values, start=1):
            for tensor in tuple(arrays):
                array = arrays.pop(tensor)
                if np.issubdtype(array.dtype, np.floating) and tensor not in masks:
                    ends = ends_of(array) if array.size else None
                    if is_mask(array, ends):
                        masks.add(tensor)
                        if not np.isfinite(array).all():
                            outputs.require(tensor)
                        continue
                    elements[tensor] += array.size
                    seen = observe(array, tensor=tensor, undefined=outputs.require, ends=ends)
                    histograms[tensor] = merge(histograms[tensor], seen)
                    for place in readers.get(tensor, ()) if array.size else ():
                        if place not in read_by:
                            read_by[place] = LayerInputs(layers[place], scratch)
                        read_by[place].add(array)
                del array
            if progress is not None:
                progress(done)
    if done == 0:
        raise DataError("the calibration data holds no sample", hint="give at least one")
    return Statistics(
        {tensor: h for tensor, h in histograms.items() if h is not None and tensor not in masks},
        {place: seen.moments() for place, seen in read_by.items() if layers[place].tensor not in masks},
        frozenset(masks),
        elements,
    )
