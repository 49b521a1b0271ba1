"""Calibration and test data as feeds: whatever the user has, as dicts ready for ``InferenceSession.run``.

``open_feed`` reads the kind of data off its source:

| source                                | samples                                             | lives in         |
|---------------------------------------|-----------------------------------------------------|------------------|
| ``.npz``, ``.npy``, a folder of them  | axis 0 of every array; a file is one or several     | ``arrays``       |
| a folder of images                    | an image file                                       | ``images``       |
| ``.txt``, ``.jsonl``                  | a line, through a ``tokenizer.json``                | ``texts``        |
| ``package.module:function``, ``path/file.py:function`` | a dict; called again for every pass | ``callables`` |
| the word ``random``                   | made up                                             | ``random_data``  |
| mapping of arrays, one array          | axis 0, as in an ``.npz``                           | ``array_source`` |
| list of dicts, re-iterable, function  | a dict: a feed, or a sample without its batch axis  | ``dicts``        |
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from onnxq.calibrate import images, texts
from onnxq.calibrate.array_source import ArraySource
from onnxq.calibrate.arrays import ArrayFolder, array_file, require_file
from onnxq.calibrate.callables import SizedStream, StreamSource, load_reference, parse_reference
from onnxq.calibrate.casting import Array
from onnxq.calibrate.dicts import DictSource, to_array
from onnxq.calibrate.grouping import groups, in_words
from onnxq.calibrate.layout import OVERRIDE, Layout, require_inputs
from onnxq.calibrate.options import FeedOptions, ImageOptions
from onnxq.calibrate.pinned import pinned
from onnxq.calibrate.random_data import RandomSource
from onnxq.calibrate.sources import Indexed, Picked, Sifted, Source, dealt
from onnxq.errors import ConfigError, DataError, RunFailure
from onnxq.graph.signature import TensorSpec

__all__ = ["Feed", "FeedOptions", "FeedSource", "ImageOptions", "open_feed"]

ARRAY_SUFFIXES = (".npz", ".npy")
FeedSource: TypeAlias = (
    "str | Path | Mapping[str, Array] | Array | Iterable[Mapping[str, Array]] | "
    "Callable[[], Iterable[Mapping[str, Array]]] | Feed"
)


@dataclass(frozen=True, eq=False)
class Feed:
    """Samples for a model; every ``iter(feed)`` goes through them anew and yields ``{input: array}``.

    Names, dtypes and batch axes are the model's, arrays are contiguous. One feed is decoded at a time, and what one
    sample needs is gone before the next. Made by ``open_feed``. Iterating raises ``DataError`` where data turns out
    unreadable, unfit or empty.
    """

    source: Source
    layout: Layout
    _members: dict[int, list[int]] = field(init=False, default_factory=dict)  # of the feeds that were made so far

    @property
    def description(self) -> str:
        """Short text for reports and provenance: what, how many, how treated."""
        return self.source.description

    @property
    def warning(self) -> str | None:
        """One line that the user must see before trusting the outcome, or None."""
        return self.source.warning

    @property
    def reading(self) -> str:
        """One line: which axis of which input was taken to count samples; empty where that is no question."""
        if not self.source.reading:
            return ""
        count = self.samples
        many = "sample by sample" if count is None else f"as {count} sample{'s' if count != 1 else ''}"
        return f"read {many}: {self.source.reading}"

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """A block in which a ``RunFailure`` of a model on these feeds also says how the data was read."""
        try:
            yield
        except RunFailure as error:
            if error.hint or not self.reading:
                raise
            raise RunFailure(error.what, hint=f"the data was {self.reading}; {OVERRIDE}") from error

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of arrays in the data that no input wants (labels, for instance)."""
        return self.source.ignored

    @property
    def samples(self) -> int | None:
        """The number of samples, None for callables. Of a folder of arrays it reads every file's header."""
        return self.source.count()

    @property
    def len_hint(self) -> int | None:
        """About how many feeds an iteration yields (exact where all samples have one shape), or None."""
        count = self.samples
        if count is None:
            return None
        rows = 1 if self.source.complete else self.layout.rows
        return count // rows if self.layout.fixed else -(-count // rows)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        empty = True
        for number, (feed, members) in enumerate(groups(self.source, self.layout, padding=self.source.padding)):
            empty = False
            self._members[number] = members
            yield feed
        if empty:
            self._refuse_empty()

    def place(self, number: int, row: int | None = None) -> str:
        """Which sample feed ``number``, or its ``row``, is made of, in words; reads data that was not read yet."""
        if number not in self._members:
            for at, _ in enumerate(self):
                if at == number:
                    break
        if number not in self._members:
            return f"feed {number}"
        return in_words([self.source.number(member) for member in self._members[number]], self.source.where, row)

    def labels(self, key: str) -> Array:
        """``[samples, ...]``: the array ``key`` of the data, one entry a sample, in the order of the samples yielded.

        Samples that a fixed batch axis leaves over are left out here too. DataError where there are no such labels.
        """
        everything = self.source.labels(key)
        if not self.layout.fixed or self.layout.rows == 1:
            return everything
        numbers = [n for _, members in groups(self.source, self.layout, padding=self.source.padding) for n in members]
        chosen: Array = everything[list(dict.fromkeys(numbers))]
        return chosen

    def limit(self, most: int) -> Feed:
        """At most ``most`` samples, evenly spaced over the data; of a callable the first ones.

        Where the model's batch axis is fixed: one full batch at least.
        """
        if most < 1:
            raise ConfigError(f"a limit must be at least 1 sample, not {most}")
        if self.layout.fixed and not self.source.complete:
            most = max(most, self.layout.rows)
        if not isinstance(self.source, Indexed):
            return replace(self, source=Sifted(self.source, lambda _: True, most=most))
        count = self.source.count()
        if count <= most:
            return self
        return replace(self, source=Picked(self.source, np.arange(most, dtype=np.intp) * count // most))

    def batches(self, rows: int) -> Feed:
        """The same samples, ``rows`` in each feed where the model leaves that open."""
        if self.layout.fixed or not self.layout.rows_first or self.source.complete:
            return self
        return replace(self, layout=replace(self.layout, rows=rows))

    def split(self, held_out: float, *, seed: int = 0) -> tuple[Feed, Feed]:
        """``(rest, held_out)``: two disjoint feeds, both in the order of the data, the same for the same ``seed``.

        ``held_out`` below 1 is a fraction, from 1 on a number of samples (an int). With a fixed batch axis whole
        batches go to either side. Samples that are known by number are drawn at random; those of a callable are
        dealt by their number alone (for 0.5 every second one), and of a whole number every second one until there are
        enough. DataError where either side would be empty.
        """
        if not held_out > 0 or (held_out >= 1 and held_out != int(held_out)):
            raise ConfigError(f"held_out must be a fraction between 0 and 1 or a number of samples, not {held_out}")
        unit = self.layout.rows if self.layout.fixed and not self.source.complete else 1
        source = self.source
        if not isinstance(source, Indexed):
            held = dealt(held_out, unit)
            return (
                replace(self, source=Sifted(source, lambda i: not held(i))),
                replace(self, source=Sifted(source, held)),
            )
        count = source.count()
        unit = unit if count // unit > 1 else 1
        units = count // unit
        wanted = max(1, int(held_out * units)) if held_out < 1 else -(-int(held_out) // unit)
        if wanted >= units:
            raise DataError(
                f"{source.where} has {count} samples, too few to hold out {held_out} of them", hint="give more samples"
            )
        chosen = np.zeros(count, bool)
        for number in np.random.default_rng(seed).permutation(units)[:wanted]:
            chosen[number * unit : (number + 1) * unit] = True
        return (
            replace(self, source=Picked(source, np.flatnonzero(~chosen))),
            replace(self, source=Picked(source, np.flatnonzero(chosen))),
        )

    def _refuse_empty(self) -> None:
        where, rows = self.source.where, self.layout.rows
        if self.layout.fixed and rows > 1 and next(iter(self.source), None) is not None:
            raise DataError(
                f"{where} has no {rows} samples of one shape, but the model's batch axis is fixed at {rows}",
                hint=f"give at least {rows} samples",
            )
        again = "" if isinstance(self.source, Indexed) else " (and anew in every pass)"
        raise DataError(f"{where} is empty: it must give at least one sample{again}")


def open_feed(source: FeedSource, inputs: Sequence[TensorSpec], *, options: FeedOptions | None = None) -> Feed:
    """The feed of ``source`` (table in the module's docstring) for a model with these ``inputs``.

    ``options``: None for the defaults of ``FeedOptions``. A ``Feed`` is returned as it is. Raises ``DataError`` where
    the data is missing, unreadable, empty or does not fit the inputs, ``ConfigError`` for options that make no sense.
    """
    if isinstance(source, Feed):
        return source
    require_inputs(inputs)
    options = FeedOptions() if options is None else options
    layout = Layout.of(pinned(inputs, options.dims), options.batch_size, options.batch_axes)
    found = _from_text(source, layout, options) if isinstance(source, (str, Path)) else _from_value(source, layout)
    feed = Feed(found, found.layout)
    return feed if options.limit is None else feed.limit(options.limit)


def _from_text(source: str | Path, layout: Layout, options: FeedOptions) -> Source:
    if source == "random":
        return RandomSource(layout, options.limit, options.seed)
    path = Path(source)
    if os.path.isdir(path):
        return _from_folder(path, layout, options)
    if not os.path.exists(path):
        reference = parse_reference(str(source))
        if reference is None:
            raise DataError(
                f"there is no file or folder {source}",
                hint="check the path (or give package.module:function, or 'random')",
            )
        target, where = load_reference(*reference), str(source)
        if callable(target):
            return StreamSource(target, layout, where=where)
        return _from_value(target, layout, where=where)
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return array_file(path, layout)
    if suffix in texts.SUFFIXES:
        return texts.TextSource(path, layout, options)
    if suffix in images.SUFFIXES:
        return images.ImageSource(path.parent, [path], layout, options)
    known = ", ".join((*ARRAY_SUFFIXES, *texts.SUFFIXES, *images.SUFFIXES))
    raise DataError(f"{path} is of no known kind", hint=f"give a file that ends in one of {known}, or a folder")


def _from_folder(path: Path, layout: Layout, options: FeedOptions) -> Source:
    # Hidden files are a file manager's thumbnails and the like, no data.
    files = [p for p in sorted(path.rglob("*")) if not p.name.startswith(".") and not os.path.isdir(p)]
    for odd in (p for p in files if p.suffix.lower() in (*ARRAY_SUFFIXES, *images.SUFFIXES)):
        require_file(odd)  # a pipe is never waited for
    arrays = [p for p in files if p.suffix.lower() in ARRAY_SUFFIXES]
    pictures = [p for p in files if p.suffix.lower() in images.SUFFIXES]
    if arrays and pictures:
        raise DataError(
            f"{path} holds both arrays ({arrays[0].name}) and images ({pictures[0].name})", hint="keep one kind"
        )
    if arrays:
        return ArrayFolder(path, arrays, layout)
    if pictures:
        return images.ImageSource(path, pictures, layout, options)
    known = ", ".join((*ARRAY_SUFFIXES, *images.SUFFIXES))
    raise DataError(f"folder {path} is empty: it holds no file that ends in one of {known}")


def _from_value(value: object, layout: Layout, *, where: str = "the data") -> Source:
    if isinstance(value, Mapping):
        arrays = {str(k): to_array(v, where=f"array {k!r} of {where}") for k, v in value.items()}
        return ArraySource(arrays, layout, where=where)
    if isinstance(value, np.ndarray):
        if len(layout.inputs) != 1:
            names = ", ".join(repr(s.name) for s in layout.inputs)
            raise DataError(
                f"{where} is one array, but the model has the inputs {names}", hint="give {input name: array}"
            )
        return ArraySource({layout.inputs[0].name: value}, layout, where=where)
    if isinstance(value, Iterator):
        raise DataError(
            f"{where} can be read only once ({type(value).__name__})", hint="give a list, or the function that makes it"
        )
    if isinstance(value, (list, tuple)):
        return DictSource(value, layout, where=where)
    if isinstance(value, Iterable):
        if isinstance(value, Sized):
            return SizedStream(value, value, layout, where=where)
        return StreamSource(lambda: value, layout, where=where)
    if callable(value):
        return StreamSource(value, layout, where=where)
    raise DataError(
        f"{where} is {type(value).__name__}",
        hint="give a path, a mapping of arrays, dicts, or a function of no arguments",
    )
