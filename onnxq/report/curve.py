"""The curve of a repair: accuracy against time, at the few points that were built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxq.numerics import Share
from onnxq.report.outputs import counted


@dataclass(frozen=True)
class CurvePoint:
    """A candidate that a repair built: ``what`` it is, and what held-out samples said of it.

    ``time``: of the layers that can run on integers and what lies between them, estimated by the cost table, as a share
    of that in float; None where nothing is known. ``agreement``: the lowest share of decisions kept, and ``share`` what
    was counted for it. ``taken``: whether it is the result.
    """

    what: str
    time: float | None
    agreement: float
    sqnr_db: float
    good: bool
    taken: bool = False
    share: Share | None = None


TITLE = "Accuracy against time, estimated"
HEADERS = ("candidate", "time / float", "the same", "at least", "SQNR dB", "good", "taken")


def rows(curve: Sequence[CurvePoint]) -> list[list[str]]:
    """A row for each point under ``HEADERS``, the fastest first."""
    ordered = sorted(curve, key=lambda p: (math.inf if p.time is None else p.time, -p.sqnr_db))
    return [
        [
            point.what,
            "-" if point.time is None else f"{point.time:.2f}",
            *counted(point.share),
            f"{point.sqnr_db:.1f}" if math.isfinite(point.sqnr_db) else "-",
            "yes" if point.good else "no",
            "<-" if point.taken else "",
        ]
        for point in ordered
    ]
