"""Samples of the user's data that nothing was fitted to, and samples beside their labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxq.calibrate.casting import Array
from onnxq.calibrate.feeds import Feed
from onnxq.calibrate.grouping import groups
from onnxq.calibrate.sources import Picked, Sifted
from onnxq.errors import DataError


def unused(feed: Feed, most: int) -> Feed | None:
    """At most ``most`` samples of the data that ``feed`` was limited from and does not hold; None where it holds all.

    Those known by number are spread evenly; of a stream they are the next ones. Made-up data has no more to say than
    ``feed`` itself.
    """
    source = feed.source
    if source.warning is None and isinstance(source, Picked):
        left = np.setdiff1d(np.arange(source.base.count(), dtype=np.intp), source.indices)
        return _any(replace(feed, source=Picked(source.base, left)).limit(most)) if len(left) else None
    if isinstance(source, Sifted) and source.most is not None:
        used = source.most
        return _any(replace(feed, source=Sifted(source.base, lambda i: i >= used, most=most)))
    return None


def _any(feed: Feed) -> Feed | None:
    """``feed`` if there is a feed in it: what is left may be too few for a batch, or broken."""
    try:
        first = next(groups(feed.source, feed.layout, padding=feed.source.padding), None)
    except DataError:
        return None
    return None if first is None else feed


@dataclass(frozen=True, eq=False)
class LabelledFeed:
    """The feeds of ``feed``, each with the labels of its samples (None without a ``key``) and their numbers.

    A sample with several rows of its own is one sample; where the model takes several at a time, each is one.
    """

    feed: Feed
    key: str = ""

    def __iter__(self) -> Iterator[tuple[dict[str, Array], list[Any], list[int]]]:
        source = self.feed.source
        labels = source.labels(self.key) if self.key else None
        for arrays, members in groups(source, self.feed.layout, padding=source.padding):
            chosen = [None if labels is None else labels[member] for member in members]
            yield arrays, chosen, [source.number(member) for member in members]
