"""Which axis of which input counts samples, decided over all inputs of a model together: by names, then by arrays.

An input's first axis counts samples where it is symbolic (or 1), unless something speaks against it. What speaks
against it, in the order in which it is asked:

| evidence                                                         | then                                              |
|------------------------------------------------------------------|---------------------------------------------------|
| the user's word (``asked``)                                      | that, and the same symbol wherever it stands      |
| its symbol speaks of time, nodes, points..., or a later axis of  | it is whole                                       |
| the input is named ``batch``; a picture ``[3, H, W]``            |                                                   |
| its symbol is a later axis of any input (``[T, N, C]`` beside    | every input is whole; but ``h0 [layers, N, H]``   |
| lengths ``[N]``, an adjacency ``[V, V]``)                        | beside ``x [N, C]`` is a state: samples on axis 1 |
| integers ``[2, E]`` with a symbol of their own beside it (edges) | every input is whole                              |
| arrays of other lengths for first axes of other names            | those not named like a batch are whole, where one |
|                                                                  | is (anchors ``[A, 4]``), else every input is      |
| arrays of other lengths for nameless first axes, one of them the | every input is whole                              |
| length of another's later axis, or that of integers              |                                                   |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.graph.signature import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]

_NO_BATCH = re.compile(r"seq|time|frame|len|step|token|node|edge|vert|point|atom|residue|^[tvel]$", re.IGNORECASE)
_BATCH = re.compile(r"batch|^(n|b|bs|bsz|samples?|num_samples|examples?)$", re.IGNORECASE)
# Names that some exporters give to every dimension that they do not know: they say nothing.
_NAMELESS = re.compile(r"none|unk|unknown|dynamic|dyn", re.IGNORECASE)
# From so many pixels on, the last two axes of `[3, H, W]` are those of a picture.
_PICTURE = 16


def axes_by_name(inputs: Sequence[TensorSpec], asked: Mapping[str, int | None]) -> dict[str, int]:
    """By input, the axis that counts samples, as far as names tell; inputs that are whole are left out.

    ``asked``: the user's word on some inputs, None for whole.
    """
    free = [s for s in inputs if s.name not in asked]
    axes = _decided(free)
    chosen = {name: axis for name, axis in asked.items() if axis is not None}
    symbols = {symbol(s, chosen[s.name]) for s in inputs if s.name in chosen} - {None}
    if symbols:
        for spec in free:
            names = [symbol(spec, axis) for axis in range(len(spec.shape or ()))]
            found = [axis for axis, name in enumerate(names) if name in symbols]
            if found:
                axes[spec.name] = found[0]
    return {s.name: {**axes, **chosen}[s.name] for s in inputs if s.name in {**axes, **chosen}}


def _is_open(spec: TensorSpec, axis: int) -> bool:
    """Whether the length of an axis of ``spec`` is no number; not of an input of unknown rank."""
    return spec.shape is not None and axis < len(spec.shape) and not isinstance(spec.shape[axis], int)


def symbol(spec: TensorSpec, axis: int) -> str | None:
    """The name of an axis of ``spec``; None where it is a number or says nothing."""
    dim = None if spec.shape is None else spec.shape[axis]
    return dim if isinstance(dim, str) and not _NAMELESS.fullmatch(dim) else None


def _decided(inputs: Sequence[TensorSpec]) -> dict[str, int]:
    firsts = {s.name: _first(s) for s in inputs if s.shape != ()}
    common = next(iter(firsts.values())) if len(set(firsts.values())) == 1 else None
    deep = any(s.shape is not None and len(s.shape) > 1 for s in inputs)
    if common is not None and common > 0 and (deep or common == 1):
        return dict.fromkeys(firsts, 0)
    carriers = [s for s in inputs if s.shape != () and firsts[s.name] in (None, 1)]
    named = {name for s in carriers if (name := symbol(s, 0)) is not None}
    if any(_later(s, named) and not _state(s, named) for s in inputs) or _beside_edges(inputs, carriers, named):
        return {}
    states = {s.name: 1 for s in inputs if _state(s, named)}
    return {**dict.fromkeys((s.name for s in carriers), 0), **states}


def _first(spec: TensorSpec) -> int | None:
    """The fixed first dimension of an input, None for a symbolic batch axis, -1 where it is surely none."""
    if spec.shape is None:
        return None
    first, *others = spec.shape
    if isinstance(first, int):
        picture = first == 3 and len(others) == 2 and all(not isinstance(d, int) or d >= _PICTURE for d in others)
        return -1 if picture else first
    later = any(isinstance(d, str) and "batch" in d.lower() for d in others)
    named = isinstance(first, str) and "batch" in first.lower()
    if not named and (later or (isinstance(first, str) and _NO_BATCH.search(first))):
        return -1
    return None


def _later(spec: TensorSpec, named: set[str]) -> bool:
    return any(symbol(spec, axis) in named for axis in range(1, len(spec.shape or ())))


def _state(spec: TensorSpec, named: set[str]) -> bool:
    """Whether ``spec`` is `[layers, N, ..]` with N one of the symbols ``named``, and no other of them behind it."""
    if not _stacked_state(spec) or symbol(spec, 1) not in named:
        return False
    return not any(symbol(spec, axis) in named for axis in range(2, len(spec.shape or ())))


def _stacked_state(spec: TensorSpec) -> bool:
    return spec.shape is not None and len(spec.shape) >= 3 and isinstance(spec.shape[0], int) and not _integral(spec)


def _integral(spec: TensorSpec) -> bool:
    return spec.dtype is not None and np.dtype(spec.dtype).kind in "iu"


def _beside_edges(inputs: Sequence[TensorSpec], carriers: Sequence[TensorSpec], named: set[str]) -> bool:
    """Whether integers `[2, E]` lie beside what would be samples: numbers of rows, as many as the sample has."""
    if not _could_be_nodes(carriers):
        return False
    return any(_edges(s) and (own := symbol(s, 1)) is not None and own not in named for s in inputs)


def _could_be_nodes(carriers: Sequence[TensorSpec]) -> bool:
    open_ones = [s for s in carriers if s.shape is not None and not isinstance(s.shape[0], int)]
    sure = any("batch" in (symbol(s, 0) or "").lower() or len(s.shape or ()) == 4 for s in open_ones)
    return bool(open_ones) and not sure


def _edges(spec: TensorSpec) -> bool:
    shape = spec.shape
    return _integral(spec) and shape is not None and len(shape) == 2 and isinstance(shape[0], int) and shape[0] > 1


def axes_by_arrays(inputs: Sequence[TensorSpec], axes: Mapping[str, int], seen: Sequence[Shapes]) -> dict[str, int]:
    """``axes`` as the ``seen`` arrays bear them out; ``seen``: of each file, by input the shape of its array."""
    carriers = [s for s in inputs if s.name in axes and _is_open(s, axes[s.name])]
    files = [_File.of(inputs, carriers, axes, shapes) for shapes in seen]
    names = {s.name: symbol(s, axes[s.name]) for s in carriers}
    apart = None not in names.values() and len(set(names.values())) > 1
    batch = {name for name in names.values() if name is not None and _BATCH.search(name)}
    if apart and len(batch) == 1 and any(len(set(file.lengths.values())) > 1 for file in files):
        return {name: axis for name, axis in axes.items() if names.get(name) in (None, *batch)}
    if any(file.differ for file in files) and not batch:
        whole = apart or (None in names.values() and any(_explained(inputs, file) for file in files if file.differ))
        return {} if whole else dict(axes)
    if _could_be_nodes(carriers) and any(_nameless_edges(s, file) for s in inputs for file in files):
        return {}
    return {**axes, **{s.name: 1 for s in inputs if s.name not in axes and _nameless_state(s, files)}}


@dataclass(frozen=True)
class _File:
    """By input, the shapes of the arrays that have the input's rank; ``lengths``: those of the axes in question."""

    shapes: Shapes
    lengths: Mapping[str, int]

    @classmethod
    def of(
        cls, inputs: Sequence[TensorSpec], carriers: Sequence[TensorSpec], axes: Mapping[str, int], shapes: Shapes
    ) -> _File:
        alike = {s.name: shapes[s.name] for s in inputs if s.shape is not None and len(shapes[s.name]) == len(s.shape)}
        return cls(alike, {s.name: alike[s.name][axes[s.name]] for s in carriers if s.name in alike})

    @property
    def differ(self) -> bool:
        """Whether the lengths are no numbers of samples; what has length 1 serves all samples."""
        return len(set(self.lengths.values()) - {1}) > 1


def _explained(inputs: Sequence[TensorSpec], file: _File) -> bool:
    """Whether lengths differ since they count other things than samples: steps, or pairs of indices."""
    later = {size for shape in file.shapes.values() for size in shape[1:]}
    indices = any(_integral(s) and len(file.shapes[s.name]) == 2 for s in inputs if s.name in file.lengths)
    return indices or any(size in later for size in file.lengths.values() if size > 1)


def _nameless_edges(spec: TensorSpec, file: _File) -> bool:
    """Whether ``spec`` is `[2, ?]` of integers, of a length that no samples explain."""
    open_list = _edges(spec) and _is_open(spec, 1) and spec.name in file.shapes
    return open_list and file.shapes[spec.name][1] not in {1, *file.lengths.values()}


def _nameless_state(spec: TensorSpec, files: Sequence[_File]) -> bool:
    """Whether ``spec`` is `[layers, ?, ..]` with as many entries as there are samples, more than one."""
    if not (_stacked_state(spec) and _is_open(spec, 1) and symbol(spec, 1) is None):
        return False
    sizes = [(f.shapes[spec.name][1], set(f.lengths.values())) for f in files if spec.name in f.shapes]
    return any(size > 1 and lengths == {size} for size, lengths in sizes)
