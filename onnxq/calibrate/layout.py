"""Where the samples are: which axis of which input is the batch, and how an array of the user's maps to samples.

Which inputs carry a **batch axis**, and where, is decided over all of them together (``batch_axis``). From that follow
the rows of a feed:

| the inputs, scalars left aside                                          | rows in a feed              |
|-------------------------------------------------------------------------|-----------------------------|
| all carry a symbolic batch axis                                         | ``batch_size``              |
| all carry a batch axis of the same number f (f = 1, or some rank >= 2)  | f; fewer at the end dropped |
| anything else (a `[16000]` beside them, node features and edges)        | 1                           |

**An array for an input of rank r** (``count`` samples; a count of 1 serves all samples where others have more):

| the input              | rank of the array | meaning                                                              |
|------------------------|-------------------|----------------------------------------------------------------------|
| carries a batch axis   | r                 | that axis = samples; grouped to the rows of a feed                   |
| carries a batch axis   | r + 1             | axis 0 = samples, each a complete input with a batch axis of its own |
| carries a batch axis   | r - 1             | one sample; in a folder (one sample a file), in dicts, or a scalar   |
| does not (scalars too) | r                 | the complete input, for all samples; in a folder the file's own      |
| does not (scalars too) | r + 1             | axis 0 = samples, each a complete input                              |

Rank alone decides, so no array has two readings; any other rank is an error. A *dict* (of an iterable or a callable) is
a feed, not an array of samples: there rank r is the complete input with as many rows as it has, kept together.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from onnxq.calibrate.batch_axis import Shapes, axes_by_arrays, axes_by_name
from onnxq.errors import ConfigError, DataError
from onnxq.graph.signature import TensorSpec

Dim = TypeVar("Dim")


@dataclass(frozen=True)
class Layout:
    """How the samples of a model with ``inputs`` become feeds: ``rows`` samples each.

    ``axes``: by input that carries one, its batch axis; ``fixed``: the model takes exactly ``rows``, no fewer;
    ``batch_size``: the rows where the model leaves them open; ``asked``: the user's word on the axes, None for whole.
    """

    inputs: tuple[TensorSpec, ...]
    axes: Mapping[str, int]
    rows: int
    fixed: bool
    batch_size: int = 1
    asked: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], batch_size: int, asked: Mapping[str, int | None] | None = None) -> Layout:
        """The layout of a model with these inputs, as far as their names tell.

        ConfigError where ``batch_size`` < 1, or ``asked`` is of no input or no axis.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        chosen = _checked(inputs, asked or {})
        axes = axes_by_name(inputs, chosen)
        return cls(tuple(inputs), axes, *_rows(inputs, axes, batch_size), batch_size, chosen)

    def seeing(self, shapes: Sequence[Shapes]) -> Layout:
        """The same as arrays of these ``shapes`` (of each file, by input) bear it out; what was asked for stays."""
        axes = dict(self.axes) if self.asked else axes_by_arrays(self.inputs, self.axes, shapes)
        if axes == self.axes:
            return self
        rows, fixed = _rows(self.inputs, axes, self.batch_size)
        return replace(self, axes=axes, rows=rows, fixed=fixed)

    @property
    def batched(self) -> frozenset[str]:
        """The inputs that carry the batch axis."""
        return frozenset(self.axes)

    @property
    def rows_first(self) -> bool:
        """Whether the first axis of every input, scalars left aside, is the batch."""
        return all(self.axes.get(s.name) == 0 for s in self.inputs if s.shape != ())


def require_inputs(inputs: Sequence[TensorSpec]) -> None:
    """Nothing; raises ``DataError`` where a model takes nothing, or something that arrays are not."""
    if not inputs:
        raise DataError("the model has no inputs: there is nothing to feed")
    for spec in inputs:
        if spec.kind != "tensor":
            raise DataError(
                f"input {spec.name!r} takes a {spec.kind}, which no calibration data can hold",
                hint="quantize without data: ranges are then measured at run time",
            )


def _rows(inputs: Sequence[TensorSpec], axes: Mapping[str, int], batch_size: int) -> tuple[int, bool]:
    """(rows in a feed, whether the model takes no fewer) by the first table above."""
    arrays = [s for s in inputs if s.shape != ()]
    if any(s.name not in axes for s in arrays):
        return 1, False
    sizes = {None if s.shape is None or not isinstance(d := s.shape[axes[s.name]], int) else d for s in arrays}
    if sizes == {None}:
        return batch_size, False
    size = sizes.pop() if len(sizes) == 1 else None
    return (1, False) if size is None else (size, True)


def _checked(inputs: Sequence[TensorSpec], asked: Mapping[str, int | None]) -> dict[str, int | None]:
    """``asked`` with the axes counted from the front; the empty name stands for every input."""
    known = {s.name: s for s in inputs}
    if asked.get("", 0) is None:
        return {**dict.fromkeys(known), **_checked(inputs, {n: a for n, a in asked.items() if n})}
    for name, axis in asked.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"it has {_names(known)}"
            raise ConfigError(f"batch axis of {name!r}: the model has no such input", hint=advice)
        shape = known[name].shape
        if axis is not None and shape is not None and not -len(shape) <= axis < len(shape):
            raise ConfigError(
                f"batch axis {axis} of {name!r}: the input has the shape {_dims(shape)}", hint="axes count from 0"
            )
    ranks = {s.name: 1 if s.shape is None else max(len(s.shape), 1) for s in inputs}
    return {name: None if axis is None else axis % ranks[name] for name, axis in asked.items()}


# How the user says otherwise.
OVERRIDE = "--batch-axis INPUT=AXIS (or =none) says which axis counts samples"


class Form(enum.Enum):
    """What an array holds; a row of the second table above."""

    ROWS = "samples, without their batch axis"
    COMPLETE = "samples, each a complete input"
    BARE = "one sample, without its batch axis"
    CONSTANT = "the complete input for all samples"


def form_of(spec: TensorSpec, shape: tuple[int, ...], layout: Layout, *, where: str, bare: bool) -> Form:
    """The reading of an array of ``shape`` for the input ``spec``; ``DataError`` where rank or dimensions differ.

    ``bare`` admits one sample without its batch axis. ``where`` begins the message.
    """
    axis = layout.axes.get(spec.name)
    if spec.shape is None:
        if not shape:
            raise DataError(f"{where} is a scalar", hint="give it a first axis, the samples")
        return Form.ROWS
    rank = len(spec.shape)
    if len(shape) == rank:
        form, found, wanted = Form.CONSTANT, shape, spec.shape
        if axis is not None:
            form, found, wanted = Form.ROWS, _without(shape, axis), _without(spec.shape, axis)
    elif len(shape) == rank + 1:
        form, found, wanted = Form.COMPLETE, shape[1:], spec.shape
    elif axis is not None and len(shape) == rank - 1 and (bare or not shape):
        form, found, wanted = Form.BARE, shape, _without(spec.shape, axis)
    else:
        where_samples = "first axis" if not axis else f"axis {axis}"
        advice = f"give an array of rank {rank if axis is not None or not rank else rank + 1}, {where_samples} samples"
        if axis == 0 and len(shape) == rank - 1:
            advice = "a single sample needs a leading axis: array[None]"
        raise DataError(
            f"{where} has shape {_dims(shape)}, the model wants {_dims(spec.shape)} (rank {rank})", hint=advice
        )
    check_dims(found, wanted, where=where, full=(shape, spec.shape))
    return form


def feed_form(spec: TensorSpec, shape: tuple[int, ...], layout: Layout, *, where: str) -> Form:
    """The reading of an array of ``shape`` in a dict that is itself a feed: ``CONSTANT`` (complete) or ``BARE``."""
    if spec.shape is None:
        return Form.CONSTANT
    axis, wanted = layout.axes.get(spec.name), spec.shape
    if axis is not None and len(shape) == len(wanted) - 1:
        check_dims(shape, _without(wanted, axis), where=where, full=(shape, wanted))
        return Form.BARE
    # Another number of rows than a fixed batch axis has is regrouped later, so it is no error here.
    loose = (*wanted[:axis], None, *wanted[axis + 1 :]) if axis is not None and layout.fixed else wanted
    check_dims(shape, loose, where=where, full=(shape, wanted))
    return Form.CONSTANT


def reading(layout: Layout, forms: Mapping[str, Form], count: int, *, many: bool) -> str:
    """How arrays of these ``forms`` are read, in words; ``many``: they are those of one file of many."""
    groups: dict[str, list[str]] = {}
    for spec in layout.inputs:
        form, axis = forms[spec.name], layout.axes.get(spec.name, 0)
        constant = form is Form.CONSTANT and (not many and count > 1)
        how = f"along axis {axis}" if form is Form.ROWS else "the same for all" if constant else "whole"
        groups.setdefault(how, []).append(shown(spec))
    return _grouped(groups)


def reading_of_dicts(layout: Layout) -> str:
    """How dicts are read, in words."""
    return _grouped({"whole": [shown(spec) for spec in layout.inputs]})


def _grouped(groups: Mapping[str, Sequence[str]]) -> str:
    parts = [
        f"{', '.join(names)} {'each ' if how == 'whole' and len(names) > 1 else ''}{how}"
        for how, names in groups.items()
    ]
    return "; ".join(parts)


def shown(spec: TensorSpec) -> str:
    """``name[dims]`` of an input."""
    return f"{spec.name}{'[?]' if spec.shape is None else _dims(spec.shape)}"


def _without(shape: tuple[Dim, ...], axis: int) -> tuple[Dim, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def check_dims(
    found: Sequence[int],
    wanted: Sequence[int | str | None],
    *,
    where: str,
    full: tuple[Sequence[int], Sequence[int | str | None]] | None = None,
) -> None:
    """Nothing; raises ``DataError`` where a fixed dimension of ``wanted`` differs (``full``: the shapes to show)."""
    if len(found) == len(wanted) and all(not isinstance(w, int) or f == w for f, w in zip(found, wanted, strict=True)):
        return
    shown_found, shown_wanted = full or (found, wanted)
    raise DataError(
        f"{where} has shape {_dims(shown_found)} but the model wants {_dims(shown_wanted)}",
        hint="reshape or resize the data",
    )


def match_names(available: Collection[str], inputs: Sequence[TensorSpec], *, where: str) -> dict[str, str]:
    """Which array serves which input: ``{input: array}``; raises ``DataError`` where one is missing.

    A model with one input also takes ``arr_0`` (``np.savez``'s name for an unnamed array), if it is the only such one.
    """
    missing = [s.name for s in inputs if s.name not in available]
    if not missing:
        return {s.name: s.name for s in inputs}
    if len(inputs) == 1 and "arr_0" in available and "arr_1" not in available:
        return {inputs[0].name: "arr_0"}
    name = missing[0]
    others = [a for a in available if a not in {s.name for s in inputs}]
    near = difflib.get_close_matches(name, others, n=1) or (others if len(others) == 1 and len(missing) == 1 else [])
    advice = f"rename {near[0]!r} to {name!r}" if near else f"add an array named {name!r}"
    raise DataError(
        f"{where} has no array for the input {name!r}: it holds {_names(available)}, the model wants "
        f"{_names(s.name for s in inputs)}",
        hint=advice,
    )


def missing_label(key: str, available: Collection[str], *, where: str) -> DataError:
    """The error for labels ``key`` that the data lacks."""
    near = difflib.get_close_matches(key, available, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"it holds {_names(available)}"
    return DataError(f"{where} has no labels {key!r}", hint=advice)


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in names) or "nothing"


def _dims(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
