"""Where samples come from: a source is a re-iterable sequence of pieces, each one sample as a small feed.

A source that knows its samples by number is ``Indexed``: subsets of it (``Picked``) decode only what they hold. One
that can only be run through (a callable) is sifted as it passes (``Sifted``).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.calibrate.casting import Array
from onnxq.calibrate.layout import Layout
from onnxq.errors import DataError


@dataclass(frozen=True)
class Piece:
    """One sample as a complete feed; ``rows`` along the batch axis of the inputs that carry one (1 where none does)."""

    arrays: dict[str, Array]
    rows: int


class Source(ABC):
    """A re-iterable sequence of pieces.

    | attribute     | meaning                                                                                          |
    |---------------|--------------------------------------------------------------------------------------------------|
    | `where`       | its name in messages                                                                             |
    | `description` | its name and treatment in reports                                                                |
    | `ignored`     | arrays that no input wants                                                                       |
    | `padding`     | by input, the value that lengthens samples to the longest of their feed; absent: never grouped   |
    | `complete`    | whether every sample is a feed by itself                                                         |
    | `warning`     | what the user must know before trusting it                                                       |
    | `layout`      | how samples become feeds                                                                         |
    | `reading`     | the same in words; empty where files decide, as of images                                        |
    """

    where: str
    description: str
    layout: Layout
    ignored: tuple[str, ...] = ()
    padding: Mapping[str, int] = {}
    complete: bool = False
    warning: str | None = None
    reading: str = ""

    @abstractmethod
    def __iter__(self) -> Iterator[Piece]: ...

    def count(self) -> int | None:
        """The number of samples, None where only running through it would tell."""
        return None

    def number(self, index: int) -> int:
        """The number that sample ``index`` has in the user's data."""
        return index

    def labels(self, key: str) -> Array:
        """The labels ``key`` of all samples, ``[count, ...]``; DataError where the source has none."""
        raise DataError(
            f"{self.where} has no labels: only arrays (.npz, a folder of them, dicts) carry labels ({key!r})"
        )


class Indexed(Source):
    """A source whose sample ``i`` can be had alone; beyond the last it raises ``IndexError``."""

    @abstractmethod
    def __getitem__(self, index: int) -> Piece: ...

    @abstractmethod
    def count(self) -> int: ...

    def __iter__(self) -> Iterator[Piece]:
        # Not range(self.count()): a folder learns its count only by opening every file.
        index = 0
        while True:
            try:
                piece = self[index]
            except IndexError:
                return
            yield piece
            index += 1


class _View(Source):
    """What a subset takes over from its base."""

    def __init__(self, base: Source) -> None:
        self.where, self.description, self.warning = base.where, base.description, base.warning
        self.ignored, self.padding, self.complete = base.ignored, base.padding, base.complete
        self.layout, self.reading = base.layout, base.reading


class Picked(_View, Indexed):
    """The samples of ``base`` with these numbers, in this order."""

    def __init__(self, base: Indexed, indices: npt.NDArray[np.intp]) -> None:
        root: Indexed = base
        if isinstance(base, Picked):
            root, indices = base.base, base.indices[indices]
        super().__init__(root)
        self.base: Indexed = root
        self.indices: npt.NDArray[np.intp] = indices
        self.description = f"{root.description} ({len(indices)} used)"

    def __getitem__(self, index: int) -> Piece:
        if index >= len(self.indices):
            raise IndexError(index)
        return self.base[int(self.indices[index])]

    def count(self) -> int:
        return len(self.indices)

    def number(self, index: int) -> int:
        return int(self.indices[index])

    def labels(self, key: str) -> Array:
        chosen: Array = self.base.labels(key)[self.indices]
        return chosen


class Sifted(_View):
    """The samples of ``base`` whose number satisfies ``keep``, at most ``most`` of them."""

    def __init__(self, base: Source, keep: Callable[[int], bool], *, most: int | None = None) -> None:
        super().__init__(base)
        self.base, self.keep, self.most = base, keep, most

    def _sift(self, items: Iterable[Any]) -> Iterator[Any]:
        taken = 0
        if self.most == 0:
            return
        for number, item in enumerate(items):
            if self.keep(number):
                yield item
                taken += 1
                if taken == self.most:
                    return

    def __iter__(self) -> Iterator[Piece]:
        return self._sift(self.base)

    def number(self, index: int) -> int:
        return self.base.number(next(itertools.islice(self._sift(itertools.count()), index, None)))

    def count(self) -> int | None:
        total = self.base.count()
        return None if total is None else sum(1 for _ in self._sift(range(total)))

    def labels(self, key: str) -> Array:
        everything = self.base.labels(key)
        chosen: Array = everything[list(self._sift(range(len(everything))))]
        return chosen


def dealt(held_out: float, unit: int) -> Callable[[int], bool]:
    """Whether sample number i of a stream is held out."""
    if held_out < 1:
        return lambda i: int((i // unit + 1) * held_out) > int((i // unit) * held_out)
    enough = -(-int(held_out) // unit)
    return lambda i: (i // unit) % 2 == 1 and (i // unit) // 2 < enough
