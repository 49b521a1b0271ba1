"""Named arrays as samples: which of them serves which input, and what their first axis means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from onnxq.calibrate.casting import Array, check_kind, fit
from onnxq.calibrate.grouping import row_of
from onnxq.calibrate.layout import OVERRIDE, Form, Layout, form_of, match_names, missing_label, reading
from onnxq.calibrate.sources import Indexed, Piece
from onnxq.errors import DataError


class Rows(Protocol):
    """An array of which only slices along axis 0 are read; a numpy array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, rows: slice, /) -> Array: ...


class ArraySource(Indexed):
    """Named arrays whose axis 0 is samples (table in ``layout``); rows are read, cast and checked when asked for.

    ``layout``: as the model's names tell; that of the source is as the arrays bear it out. ``bare`` admits arrays that
    are one sample without its batch axis, and takes ``layout`` as it is: one of many files. DataError where the arrays
    do not fit the model.
    """

    def __init__(self, arrays: Mapping[str, Rows], layout: Layout, *, where: str, bare: bool = False) -> None:
        self.where = where
        self._arrays = arrays
        self._keys = match_names(arrays, layout.inputs, where=where)
        self.layout = layout = layout if bare else layout.seeing([self.shapes()])
        self.ignored = tuple(sorted(set(arrays) - set(self._keys.values())))
        self._forms: dict[str, Form] = {}
        self._cut_inside: dict[str, Array] = {}  # those whose samples lie along a later axis, read once
        counts: dict[str, int] = {}
        for spec in layout.inputs:
            array, place = arrays[self._keys[spec.name]], self._place(spec.name)
            check_kind(array.dtype, spec.dtype, where=place)
            form = form_of(spec, tuple(array.shape), layout, where=place, bare=bare)
            self._forms[spec.name] = form
            if form is not Form.CONSTANT:
                axis = layout.axes[spec.name] if form is Form.ROWS else 0
                counts[self._keys[spec.name]] = 1 if form is Form.BARE else array.shape[axis]
        self.complete = all(self._forms[name] is Form.COMPLETE for name in layout.batched)
        lengths = set(counts.values()) or {1}
        if len(lengths - {1}) > 1:
            listed = ", ".join(f"{key!r} {n}" for key, n in counts.items())
            raise DataError(
                f"{where} has different numbers of samples ({listed})",
                hint="make these axes equal, or give an array that is the same for all samples the length 1; "
                f"{OVERRIDE}",
            )
        self._count = (lengths - {1} or {1}).pop()
        if self._count == 0:
            raise DataError(f"{where} is empty: it holds 0 samples")
        self.description = f"{where}, {self._count} samples"
        self.reading = reading(layout, self._forms, self._count, many=bare)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By input, the shape of its array."""
        return {name: tuple(self._arrays[key].shape) for name, key in self._keys.items()}

    def _place(self, name: str) -> str:
        key = self._keys[name]
        array = f"array {key!r} of " if key != name else ""
        return f"input {name!r} ({array}{self.where})"

    def count(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Piece:
        if index >= self._count:
            raise IndexError(index)
        pieces: dict[str, Array] = {}
        rows = 1
        for spec in self.layout.inputs:
            axis = self.layout.axes.get(spec.name)
            value = self._value(spec.name, index, axis)
            pieces[spec.name] = value = fit(value, spec.dtype, where=self._place(spec.name), sample=index)
            if axis is not None:
                rows = value.shape[axis]
        return Piece(pieces, rows)

    def _value(self, name: str, index: int, axis: int | None) -> Array:
        """What sample ``index`` gives the input ``name``, whose batch axis is ``axis``."""
        array, form = self._arrays[self._keys[name]], self._forms[name]
        if form is Form.ROWS and axis:
            whole = self._cut_inside.setdefault(name, np.asarray(array[:]))
            return row_of(whole, 0 if whole.shape[axis] == 1 else index, axis)
        if form in (Form.CONSTANT, Form.BARE):
            whole = array[:] if array.shape else np.asarray(array)
            return np.expand_dims(whole, axis or 0) if form is Form.BARE else whole
        at = 0 if array.shape[0] == 1 else index
        rows = np.asarray(array[at : at + 1])
        return np.asarray(rows[0]) if form is Form.COMPLETE else rows

    def labels(self, key: str) -> Array:
        if key not in self._arrays:
            raise missing_label(key, self.ignored, where=self.where)
        array = self._arrays[key]
        if self._count == 1 and (not array.shape or array.shape[0] != 1):
            return np.asarray(array[:] if array.shape else array)[None]
        if not array.shape or array.shape[0] != self._count:
            raise DataError(
                f"the labels {key!r} of {self.where} have shape {list(array.shape)}",
                hint=f"give one for each of the {self._count} samples",
            )
        return array[:]
