"""Runs the float model over calibration data and keeps nothing but statistics: memory does not grow with samples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.layer_inputs import LayerInput, LayerInputs
from onnxq.calibrate.observers import merge, observe
from onnxq.errors import DataError
from onnxq.files.scratch import Scratch
from onnxq.graph.instrument import expose
from onnxq.graph.runtime_model import to_runtime
from onnxq.ranges.histogram import Histogram
from onnxq.ranges.moments import Moments
from onnxq.runtime.session import open_to_look, run

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]
Progress = Callable[[int], None]


@dataclass
class Statistics:
    """What was seen: the histogram of each tensor, and by node and input the moments of what each weight multiplies.

    ``elements``: of each tensor, all that there were; of large ones a histogram counts a part.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    moments: dict[tuple[str, int], Moments] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)


def values_of(model: ir.Model, tensors: Sequence[str], feeds: Feeds) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """For each of ``feeds``, what the float ``model`` makes of ``tensors``, by name; inputs count as tensors.

    Names that do not exist are left out; an empty array stands for a tensor of an If branch that did not run. Who takes
    the arrays out of the dict has the next ones made in their memory.
    Raises ``RuntimeFailure`` where the model does not run on a feed.
    """
    inputs = {v.name for v in model.graph.inputs}
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        shown, output_of = expose(model, [t for t in tensors if t not in inputs])
        outputs = list(dict.fromkeys(output_of.values()))
        session = open_to_look(to_runtime(shown, Path(folder))) if outputs else None
        for feed in feeds:
            arrays = dict(feed)
            if session is not None:
                arrays.update(zip(outputs, run(session, feed, outputs=outputs), strict=True))
            found = {t: arrays[output_of.get(t, t)] for t in tensors if output_of.get(t, t) in arrays}
            del arrays
            yield found


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

    Raises ``DataError`` for NaN, infinity or no feed at all, ``RuntimeFailure`` where the model does not run on the
    data.
    """
    histograms: dict[str, Histogram | None] = dict.fromkeys(tensors)
    elements = dict.fromkeys(tensors, 0)
    read_by: dict[tuple[str, int], LayerInputs] = {}
    readers: dict[str, list[tuple[str, int]]] = {}
    layers, scratch = layers or {}, scratch or Scratch()
    for place, read in layers.items():
        readers.setdefault(read.tensor, []).append(place)
    done = 0
    for done, arrays in enumerate(values_of(model, tensors, feeds), start=1):
        for tensor in tuple(arrays):
            array = arrays.pop(tensor)
            if np.issubdtype(array.dtype, np.floating):
                elements[tensor] += array.size
                histograms[tensor] = merge(histograms[tensor], observe(array, tensor=tensor))
                for place in readers.get(tensor, ()) if array.size else ():
                    if place not in read_by:
                        read_by[place] = LayerInputs(layers[place], scratch)
                    read_by[place].add(array)
            del array
        if progress is not None:
            progress(done)
    if done == 0:
        raise DataError("the calibration data holds no sample: give at least one")
    return Statistics(
        {tensor: h for tensor, h in histograms.items() if h is not None},
        {place: seen.moments() for place, seen in read_by.items()},
        elements,
    )
