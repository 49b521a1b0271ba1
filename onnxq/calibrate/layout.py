"""Where the samples are: which axis of which input is the batch, and how an array of the user's maps to samples.

**The batch axis of a model** is decided from its inputs' first dimensions, scalars left aside:

| first dimensions                                    | rows in a feed              | inputs that carry the batch axis |
|-----------------------------------------------------|-----------------------------|----------------------------------|
| all symbolic                                        | ``batch_size``              | all                              |
| all the same number f (and f = 1 or some rank >= 2) | f; fewer at the end dropped | all                              |
| anything else (a state `[2, 1, 128]`, a `[16000]`)  | 1                           | those with a symbol or 1         |

A symbol that speaks of time (``seq``, ``time``, ``frames``, ``length``...) is no batch axis, nor is the first axis of
an input that names a later axis ``batch``.

**An array for an input of rank r** (``count`` samples; a count of 1 serves all samples where others have more):

| the input              | rank of the array | meaning                                                              |
|------------------------|-------------------|----------------------------------------------------------------------|
| carries the batch axis | r                 | axis 0 = samples; grouped to the rows of a feed                      |
| carries the batch axis | r + 1             | axis 0 = samples, each a complete input with a batch axis of its own |
| carries the batch axis | r - 1             | one sample; only in a folder (one sample a file) and in dicts        |
| does not (scalars too) | r                 | the complete input, constant for all samples                         |
| does not (scalars too) | r + 1             | axis 0 = samples, each a complete input                              |

Rank alone decides, so no array has two readings; any other rank is an error. A *dict* (of an iterable or a callable) is
a feed, not an array of samples: there rank r is the complete input with as many rows as it has, kept together.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from onnxq.errors import ConfigError, DataError
from onnxq.graph.signature import TensorSpec

_TIME = re.compile(r"seq|time|frame|len|step|token|^t$", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """How the samples of a model with ``inputs`` become feeds: ``rows`` samples each.

    ``batched`` names the inputs whose first axis is the batch; ``fixed``: the model takes exactly ``rows``, no fewer.
    """

    inputs: tuple[TensorSpec, ...]
    batched: frozenset[str]
    rows: int
    fixed: bool

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], batch_size: int) -> Layout:
        """The layout of a model with these inputs by the first table above. ConfigError where ``batch_size`` < 1."""
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        firsts = {s.name: _first(s) for s in inputs if s.shape != ()}
        values = set(firsts.values())
        if values == {None}:
            return cls(tuple(inputs), frozenset(firsts), batch_size, False)
        common = values.pop() if len(values) == 1 else None
        deep = any(s.shape is not None and len(s.shape) > 1 for s in inputs)
        if common is not None and common > 0 and (deep or common == 1):
            return cls(tuple(inputs), frozenset(firsts), common, True)
        return cls(tuple(inputs), frozenset(n for n, f in firsts.items() if f in (None, 1)), 1, False)


def _first(spec: TensorSpec) -> int | None:
    """The fixed first dimension of an input, None for a symbolic batch axis, -1 where a symbol means time."""
    if spec.shape is None:
        return None
    first = spec.shape[0]
    if isinstance(first, int):
        return first
    later = any(isinstance(d, str) and "batch" in d.lower() for d in spec.shape[1:])
    named = isinstance(first, str) and "batch" in first.lower()
    if not named and (later or (isinstance(first, str) and _TIME.search(first))):
        return -1
    return None


class Form(enum.Enum):
    """What axis 0 of an array is; a row of the second table above."""

    ROWS = "samples, without their batch axis"
    COMPLETE = "samples, each a complete input"
    BARE = "one sample, without its batch axis"
    CONSTANT = "the complete input for all samples"


def form_of(spec: TensorSpec, shape: tuple[int, ...], layout: Layout, *, where: str, bare: bool) -> Form:
    """The reading of an array of ``shape`` for the input ``spec``; ``DataError`` where rank or dimensions differ.

    ``bare`` admits one sample without its batch axis. ``where`` begins the message.
    """
    batched = spec.name in layout.batched
    if spec.shape is None:
        if not shape:
            raise DataError(f"{where} is a scalar: give it a first axis, the samples")
        return Form.ROWS
    rank = len(spec.shape)
    if len(shape) == rank:
        form, found, wanted = (Form.ROWS, shape[1:], spec.shape[1:]) if batched else (Form.CONSTANT, shape, spec.shape)
    elif len(shape) == rank + 1:
        form, found, wanted = Form.COMPLETE, shape[1:], spec.shape
    elif bare and batched and len(shape) == rank - 1:
        form, found, wanted = Form.BARE, shape, spec.shape[1:]
    else:
        advice = f"give an array of rank {rank if batched or not rank else rank + 1}, first axis samples"
        if batched and len(shape) == rank - 1:
            advice = "a single sample needs a leading axis: array[None]"
        raise DataError(
            f"{where} has shape {_dims(shape)}, the model wants {_dims(spec.shape)} (rank {rank}): {advice}"
        )
    check_dims(found, wanted, where=where, full=(shape, spec.shape))
    return form


def feed_form(spec: TensorSpec, shape: tuple[int, ...], layout: Layout, *, where: str) -> Form:
    """The reading of an array of ``shape`` in a dict that is itself a feed: ``CONSTANT`` (complete) or ``BARE``."""
    if spec.shape is None:
        return Form.CONSTANT
    batched = spec.name in layout.batched
    wanted = spec.shape
    if batched and len(shape) == len(wanted) - 1:
        check_dims(shape, wanted[1:], where=where, full=(shape, wanted))
        return Form.BARE
    # Another number of rows than a fixed batch axis has is regrouped later, so it is no error here.
    loose = (None, *wanted[1:]) if batched and layout.fixed else wanted
    check_dims(shape, loose, where=where, full=(shape, wanted))
    return Form.CONSTANT


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
        f"{where} has shape {_dims(shown_found)} but the model wants {_dims(shown_wanted)}: reshape or resize the data"
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
        f"{where} has no array for the input {name!r}: it holds {_names(available)}, "
        f"the model wants {_names(s.name for s in inputs)}; {advice}"
    )


def missing_label(key: str, available: Collection[str], *, where: str) -> DataError:
    """The error for labels ``key`` that the data lacks."""
    near = difflib.get_close_matches(key, available, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"it holds {_names(available)}"
    return DataError(f"{where} has no labels {key!r}: {advice}")


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in names) or "nothing"


def _dims(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
