"""What was seen of the outputs of a float model on a few feeds, and of the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# What a kind is guessed from: so many feeds, and no more than this many elements of outputs.
FEEDS = 16
ELEMENTS = 1 << 22


@dataclass
class Seen:
    """``outputs``: by name, what the float model answered, feed by feed; ``inputs``: the shapes of its inputs."""

    outputs: dict[str, list[Array]] = field(default_factory=dict)
    inputs: list[dict[str, tuple[int, ...]]] = field(default_factory=list)
    whole: set[str] = field(default_factory=set)  # the inputs of integers
    elements: int = 0

    def add(self, names: Sequence[str], references: Sequence[Array], feed: Mapping[str, Array]) -> None:
        """Takes one feed."""
        self.inputs.append({name: tuple(array.shape) for name, array in feed.items()})
        self.whole |= {name for name, array in feed.items() if array.dtype.kind in "iu"}
        for name, array in zip(names, references, strict=True):
            self.outputs.setdefault(name, []).append(array)
            self.elements += array.size

    @property
    def enough(self) -> bool:
        """Whether no more is needed."""
        return len(self.inputs) >= FEEDS or self.elements >= ELEMENTS

    def batch_axis(self, name: str) -> int | None:
        """The axis of the output ``name`` that counts samples; None where a feed is one sample.

        That is the first, or else the second, if it is as long as the first axis of the inputs in every feed. A first
        axis whose length goes up and down, whatever the data, is one of a sequence and counts no samples.
        """
        arrays, rows = self.outputs[name], [_rows(shapes) for shapes in self.inputs]
        for axis in (0, 1):
            if all(
                a.ndim > axis + (axis > 0) and a.shape[axis] in found for a, found in zip(arrays, rows, strict=True)
            ):
                lengths = [a.shape[axis] for a in arrays]
                grows = len(set(lengths)) > 2 and min(lengths) > 1
                return None if grows else axis
        return None

    def varies(self, name: str) -> tuple[bool, ...]:
        """Of each axis of the output ``name``, whether its length was seen to vary; empty where the rank does."""
        shapes = [a.shape for a in self.outputs[name]]
        if len({len(s) for s in shapes}) != 1:
            return ()
        return tuple(len(set(lengths)) > 1 for lengths in zip(*shapes, strict=True))

    @property
    def tokens(self) -> bool:
        """Whether the model reads whole numbers, as texts are given."""
        return any(len(shapes[name]) == 2 for shapes in self.inputs for name in self.whole & shapes.keys())

    @property
    def images(self) -> list[tuple[int, ...]]:
        """The shapes of inputs that are images."""
        return [s for shapes in self.inputs for s in shapes.values() if len(s) == 4 and min(s[1], s[3]) <= 4]

    @property
    def longest(self) -> int:
        """The longest axis of any input."""
        return max((size for shapes in self.inputs for s in shapes.values() for size in s), default=0)


def _rows(shapes: Mapping[str, tuple[int, ...]]) -> set[int]:
    """The lengths of the first axes of the inputs that have one: the number of samples is among them."""
    first = [s[0] for s in shapes.values() if len(s) > 1] or [s[0] for s in shapes.values() if s]
    return {first[0]} if first else set()


def joined(arrays: Sequence[Array]) -> Array:
    """``[rows, C]`` of all of ``arrays`` whose last axes are alike: those like the first."""
    width = arrays[0].shape[-1]
    return np.concatenate([a.reshape(-1, width) for a in arrays if a.shape[-1] == width])
