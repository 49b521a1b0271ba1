"""Dicts as samples: each is a feed ``{input: complete array}``, or one sample without its batch axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from onnxq.calibrate.casting import Array, fit
from onnxq.calibrate.layout import Form, Layout, feed_form, match_names, missing_label, reading_of_dicts
from onnxq.calibrate.sources import Indexed, Piece
from onnxq.errors import DataError, one_line


def feed_piece(feed: object, layout: Layout, *, where: str, sample: int) -> Piece:
    """The ``Piece`` of a user's dict ``{input: complete array, or one sample without its batch axis}``."""
    if not isinstance(feed, Mapping):
        raise DataError(
            f"{where} yields {type(feed).__name__}, not dicts", hint="yield {input name: array} for every sample"
        )
    place = f"sample {sample} of {where}"
    keys = match_names([str(k) for k in feed], layout.inputs, where=place)
    pieces: dict[str, Array] = {}
    rows: dict[str, int] = {}
    for spec in layout.inputs:
        label = f"input {spec.name!r} ({where})"
        value = to_array(feed[keys[spec.name]], where=f"{label}, sample {sample},")
        form = feed_form(spec, value.shape, layout, where=f"{label}, sample {sample},")
        axis = layout.axes.get(spec.name)
        if form is Form.BARE and axis is not None:
            value = np.expand_dims(value, axis)
        pieces[spec.name] = value = fit(value, spec.dtype, where=label, sample=sample)
        if axis is not None:
            rows[spec.name] = value.shape[axis] if value.ndim else 1
    if 0 in rows.values():
        raise DataError(f"{place} is empty: it holds 0 rows")
    if layout.fixed and len(set(rows.values())) > 1:
        listed = ", ".join(f"{name!r} {n}" for name, n in rows.items())
        raise DataError(f"{place} has different numbers of rows ({listed})", hint="give all inputs the same number")
    return Piece(pieces, max(rows.values(), default=1))


def to_array(value: object, *, where: str) -> Array:
    """``value`` as a numpy array; DataError for what is ragged or holds Python objects other than text."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where} is not an array ({one_line(error)})", hint="give numbers in a regular shape"
        ) from error
    if array.dtype == object and not all(isinstance(v, (str, bytes)) for v in array.flat):
        raise DataError(f"{where} holds {type(value).__name__} objects, not numbers", hint="give a numpy array")
    return array


class DictSource(Indexed):
    """A list of dicts, each a feed or one sample without its batch axis."""

    def __init__(self, items: Sequence[object], layout: Layout, *, where: str) -> None:
        if not items:
            raise DataError(f"{where} is empty", hint="give at least one dict {input name: array}")
        self._items, self.layout = items, layout
        self.where = where
        self.reading = reading_of_dicts(layout)
        self.description = f"{where}, {len(items)} samples"
        first = items[0]
        if isinstance(first, Mapping):
            used = {s.name for s in layout.inputs}
            self.ignored = tuple(sorted(str(k) for k in first if k not in used)) if used <= set(first) else ()

    def count(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Piece:
        if index >= len(self._items):
            raise IndexError(index)
        return feed_piece(self._items[index], self.layout, where=self.where, sample=index)

    def labels(self, key: str) -> Array:
        return dict_labels(self._items, key, where=self.where)


def dict_labels(items: Iterable[object], key: str, *, where: str) -> Array:
    """``[samples, ...]``: the entries ``key`` of all dicts, stacked."""
    found: list[Array] = []
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or key not in item:
            keys = [str(k) for k in item] if isinstance(item, Mapping) else []
            raise missing_label(key, keys, where=f"sample {number} of {where}")
        found.append(to_array(item[key], where=f"the labels {key!r} of sample {number} of {where}"))
    if len({a.shape for a in found}) > 1:
        raise DataError(
            f"the labels {key!r} of {where} differ in shape from sample to sample", hint="give them one shape"
        )
    return np.stack(found) if found else np.empty(0)
