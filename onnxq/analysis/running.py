"""Running models as their users have them: ``run_model`` over data, ``benchmark`` for several models in one run."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.feeds import Feed, FeedOptions, FeedSource, open_feed
from onnxq.calibrate.first_run import before_first_run
from onnxq.calibrate.made_up import made_up
from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.files.atomic import staged, write_file
from onnxq.files.temporary import temporary_folder
from onnxq.graph.copying import called
from onnxq.graph.io import load
from onnxq.graph.reference import Reference, reference
from onnxq.graph.runtime_model import to_runtime
from onnxq.graph.signature import Signature, signature
from onnxq.measure import latency
from onnxq.query import nodes
from onnxq.runtime.session import open_session, run

if TYPE_CHECKING:
    from onnxq.pipeline import ModelSource
    from onnxq.search.attempt import Progress

Array: TypeAlias = npt.NDArray[Any]
Outputs: TypeAlias = "dict[str, Array | list[Array]]"


@dataclass(frozen=True)
class Opened:
    """A user's model: its ``name`` for messages, its graph, what it is as a file, and what is run of it."""

    name: str
    model: ir.Model
    source: Path | bytes
    reference: Reference

    @property
    def runnable(self) -> Path | bytes:
        """What onnxruntime loads."""
        return self.reference.runnable

    @property
    def signature(self) -> Signature:
        """Inputs and outputs."""
        return signature(self.model)


@contextlib.contextmanager
def opened(*models: ModelSource) -> Iterator[tuple[Opened, ...]]:
    """Each of ``models`` as ``Opened``; a file stays the file it is, what is in memory lives until the block ends.

    Raises ``ModelError`` for what ``graph.load`` refuses.
    """
    with contextlib.ExitStack() as stack:
        found = []
        for model in models:
            graph = load(model)
            folder = stack.enter_context(temporary_folder())
            given = Path(model) if isinstance(model, (str, os.PathLike)) else None
            source = to_runtime(graph, folder) if given is None else given
            found.append(Opened(called(graph), graph, source, reference(graph, source, folder)))
        yield tuple(found)


def checked_feed(data: FeedSource, given: Sequence[Opened], options: FeedOptions | None) -> Feed:
    """The feed of ``data`` for models with the same inputs, each of which can be run on its first sample.

    Raises as ``open_feed`` and ``before_first_run``.
    """
    feed = open_feed(data, given[0].signature.inputs, options=options)
    first = next(iter(feed))
    for one in given:
        before_first_run(one.model, one.runnable, first)
    return feed


def told(feeds: Feed, progress: Progress | None, stage: str) -> Iterable[dict[str, Array]]:
    """``feeds``, with ``progress`` told of each one when the next is asked for."""
    if progress is None:
        return feeds
    return _Told(feeds, progress, stage)


@dataclass(frozen=True)
class _Told:
    """Feeds of which ``progress`` is told; they know where they come from, as those that they are."""

    feeds: Feed
    progress: Progress
    stage: str

    def __iter__(self) -> Iterator[dict[str, Array]]:
        total = self.feeds.len_hint
        self.progress(self.stage, 0, total)
        for done, feed in enumerate(self.feeds, start=1):
            yield feed
            self.progress(self.stage, done, total)

    def place(self, number: int, row: int | None = None) -> str:
        """Which sample feed ``number``, or its ``row``, is made of."""
        return self.feeds.place(number, row)


def run_model(
    model: ModelSource,
    data: FeedSource,
    *,
    feed_options: FeedOptions | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Outputs:
    """The outputs of ``model`` over all samples of ``data``, by output name.

    | an output whose values                                  | becomes                                              |
    |---------------------------------------------------------|------------------------------------------------------|
    | have as first axis the samples of their run             | one array, joined along that axis: ``[samples, ...]`` |
    | have none, but one shape in all runs                    | one array with a new first axis: ``[runs, ...]``     |
    | have shapes that differ in another axis between runs    | a list of arrays, one a run                          |

    Args:
        model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
        data: anything that ``open_feed`` takes.
        feed_options: how files become inputs; see ``FeedOptions``.
        threads: of onnxruntime; None leaves its choice.
        progress: called as ``progress(stage, done, total)``; ``total`` is None where unknown.

    Raises:
        ModelError: unreadable, or an output that is no tensor.
        DataError: the data does not fit the model.
        RuntimeFailure: onnxruntime cannot load or run the model.
    """
    with opened(model) as (given,):
        feed = checked_feed(data, (given,), feed_options)
        session = open_session(given.runnable, threads=threads)
        names = [output.name for output in session.get_outputs()]
        for output in session.get_outputs():
            if not output.type.startswith("tensor("):
                raise ModelError(f"{given.name}: output {output.name} is a {output.type}, and only tensors can be kept")
        rows: list[int | None] = []
        values: list[list[Array]] = []
        with feed.explaining():
            for arrays in told(feed, progress, "run"):
                rows.append(next((arrays[name].shape[0] for name, axis in feed.layout.axes.items() if axis == 0), None))
                values.append(run(session, arrays))
    return {name: _joined([row[i] for row in values], rows) for i, name in enumerate(names)}


def _joined(values: list[Array], rows: Sequence[int | None]) -> Array | list[Array]:
    """The values of one output over all runs; ``rows``: samples in each run, None where there is no batch axis."""
    sampled = all(v.ndim > 0 and v.shape[0] == n for v, n in zip(values, rows, strict=True))
    if sampled and len({v.shape[1:] for v in values}) == 1:
        return np.concatenate(values)
    if len({v.shape for v in values}) == 1:
        return np.stack(values)
    return values


def save_outputs(outputs: Mapping[str, Array | list[Array]], path: str | os.PathLike[str]) -> None:
    """Write ``outputs`` to the ``.npz`` file ``path``, whole or not at all; a list becomes ``name_0``, ``name_1``, ...

    Raises ``OutputError``.
    """
    arrays: dict[str, Array] = {n: v for n, v in outputs.items() if not isinstance(v, list)}
    for name, value in outputs.items():
        for i, array in enumerate(value if isinstance(value, list) else ()):
            key = f"{name}_{i}"
            while key in arrays:  # an output may be called like an entry of another one
                key += "_"
            arrays[key] = array
    with staged(Path(path)) as (temporary,):
        write_file(temporary, _writer(arrays))


def _writer(arrays: Mapping[str, Array]) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        # Not np.savez: it takes the arrays as keywords, and one of its own is called ``file``.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    plain = array.astype(str) if array.dtype.kind == "O" else array
                    np.lib.format.write_array(entry, plain, allow_pickle=False)

    return write


def benchmark(
    models: Sequence[ModelSource],
    data: FeedSource | None = None,
    *,
    threads: Sequence[int] = (),
    seconds: float | None = None,
    seed: int | None = None,
    feed_options: FeedOptions | None = None,
) -> latency.LatencyReport:
    """The ``LatencyReport`` of ``models``, which take the same inputs: interleaved in random order, compared in pairs.

    Args:
        models: paths, ``onnx.ModelProto`` or ``onnx_ir.Model``; the first one is what the others are compared with.
        data: anything that ``open_feed`` takes, of which the first few feeds serve; None: one made-up feed, for which
            ``feed_options.dims`` must say how long symbolic dimensions are.
        threads: numbers of threads to measure with, one after another; () and None below: as ``measure.benchmark``.
        seconds: for each number of threads.
        seed: of the order.
        feed_options: how files become inputs; see ``FeedOptions``.

    Raises:
        ConfigError: no model, or a number that makes no sense.
        ModelError: unreadable, or inputs that differ between the models.
        DataError: the data does not fit the models.
        RuntimeFailure: onnxruntime cannot load or run a model.
    """
    if not models:
        raise ConfigError("give at least one model to measure")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ConfigError(f"seconds must be above 0, not {seconds:g}")
    options = FeedOptions() if feed_options is None else feed_options
    chosen: dict[str, Any] = {"threads": tuple(threads) or None, "seconds": seconds, "seed": seed}
    with opened(*models) as given:
        _require_same_inputs(given)
        if data is None:
            feed = checked_feed("random", given, replace(options, limit=options.batch_size))
        else:
            feed = checked_feed(data, given, options)
        given_options = {key: value for key, value in chosen.items() if value is not None}
        with feed.explaining():
            return latency.benchmark([g.runnable for g in given], feed, **given_options)


# Feeds that a profile goes round: what it measures depends on shapes, hardly on values.
_SOME = 4


def some_feed(given: Opened, data: FeedSource | None, options: FeedOptions | None) -> Feed:
    """A few inputs to run ``given`` on: of ``data``, or random ones of sizes that it runs with.

    Raises ``DataError`` where nothing can be made up, or ``data`` does not fit.
    """
    if data is not None:
        return checked_feed(data, (given,), options).limit(_SOME)
    feed = made_up(given.model, given.runnable, given.signature.inputs, options).feed
    if feed is None:
        raise DataError(
            f"{given.name} runs on no random input", hint="give some with --data, or sizes with --dim NAME=N"
        )
    return feed.limit(1)


# onnxruntime takes longer to load more of them than all the rest of a look: its time grows faster than their number.
_MOST_TO_RUN = 20_000


def too_large_for_a_look(model: ir.Model) -> str | None:
    """Why ``model`` is not run for a look, if it is not."""
    count = sum(1 for _ in nodes(model))
    if count <= _MOST_TO_RUN:
        return None
    return f"{count:,} nodes are too many to run for a look: where integers pay was not weighed up"


def feeds_for_a_look(given: Opened, options: FeedOptions | None) -> list[Mapping[str, Array]]:
    """Random feeds that ``given`` runs on; none where nothing can be made up."""
    try:
        return list(some_feed(given, None, options))
    except DataError:
        return []


def _require_same_inputs(models: Sequence[Opened]) -> None:
    first, *others = ({s.name: s for s in m.signature.inputs} for m in models)
    for model, inputs in zip(models[1:], others, strict=True):
        if {n: s.dtype for n, s in inputs.items()} != {n: s.dtype for n, s in first.items()}:
            wanted, found = (", ".join(str(s) for s in group.values()) for group in (first, inputs))
            raise ModelError(
                f"{model.name} takes {found} but {models[0].name} takes {wanted}",
                hint="measure models with the same inputs together",
            )
