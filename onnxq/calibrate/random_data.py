"""Made-up inputs, only where the user asks for them by the word ``random``."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from onnxq.calibrate.casting import Array
from onnxq.calibrate.layout import Layout
from onnxq.calibrate.sources import Indexed, Piece
from onnxq.errors import DataError
from onnxq.files.opening import size_text
from onnxq.graph.signature import TensorSpec

DEFAULT_FEEDS = 16
# Of one input in one sample.
LARGEST_BYTES = 1 << 28
WARNING = "calibration data is random: ranges and accuracy say nothing about real inputs; use it for speed tests only"


class RandomSource(Indexed):
    """Samples made from ``(seed, number)``: normal floats, 0 or 1 for wide integers (no index out of range), all ones
    for masks, the whole range of 8-bit integers.

    A batch axis is 1; another symbolic dimension must be given a number, else DataError. Integers of an input that
    carries no batch axis are the same in all samples, which could not be joined otherwise. ``same``: inputs that are
    not drawn, and what they hold in each sample.
    """

    warning = WARNING

    def __init__(
        self, layout: Layout, samples: int | None, seed: int, *, same: Mapping[str, Array] | None = None
    ) -> None:
        self.where = "random"
        self.layout, self._seed = layout, seed
        self._samples = DEFAULT_FEEDS * layout.rows if samples is None else samples
        self._shapes = {s.name: _shape(s, layout) for s in layout.inputs}
        for spec in layout.inputs:
            if spec.dtype is None or np.dtype(spec.dtype).kind not in "iufb":
                raise DataError(f"random data cannot be made for the input {spec}", hint="give real data")
        once = np.random.default_rng(seed)
        self.same: dict[str, Array] = {
            s.name: draw(s, self._shapes[s.name], once)
            for s in layout.inputs
            if s.name not in layout.batched and np.dtype(s.dtype).kind in "iub"
        }
        self.same.update(same or {})
        self.description = f"random, {self._samples} samples, seed {seed}"

    def count(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Piece:
        if index >= self._samples:
            raise IndexError(index)
        rng = np.random.default_rng([self._seed, index])
        drawn = {s.name: draw(s, self._shapes[s.name], rng) for s in self.layout.inputs}
        arrays = {**drawn, **self.same}
        return Piece(arrays, max((arrays[n].shape[axis] for n, axis in self.layout.axes.items()), default=1))


def _shape(spec: TensorSpec, layout: Layout) -> tuple[int, ...]:
    if spec.shape is None:
        raise DataError(
            f"random data cannot be made for the input {spec.name!r}, whose rank is unknown", hint="give real data"
        )
    shape: list[int] = []
    for axis, dim in enumerate(spec.shape):
        if layout.axes.get(spec.name) == axis:
            shape.append(1)
        elif isinstance(dim, int):
            shape.append(dim)
        else:
            key = dim if dim is not None else f"{spec.name}.{axis}"
            raise DataError(
                f"random data needs a number for dimension {key!r} of the input {spec}",
                hint=f"give dims={{{key!r}: ...}} (or real data)",
            )
    size = prod(shape) * np.dtype(spec.dtype or object).itemsize
    if size > LARGEST_BYTES:
        raise DataError(f"random data for the input {spec} would have {size_text(size)}", hint="give real data")
    return tuple(shape)


def draw(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """What an input of ``shape`` holds in one sample."""
    dtype = np.dtype(spec.dtype)
    if "mask" in spec.name.lower():
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype)
    if dtype.itemsize == 1 and dtype.kind != "b":
        limits = np.iinfo(dtype)
        return np.asarray(rng.integers(limits.min, limits.max, shape, dtype, endpoint=True))
    return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
