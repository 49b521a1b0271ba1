"""Scores that are compared with thresholds: several labels of a sample, masks of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.measure.kinds.classes import decided
from onnxq.measure.kinds.judge import Array, Tally, Worst, strictest
from onnxq.measure.kinds.kind import Kind, Measured, Where
from onnxq.measure.kinds.layout import Layout
from onnxq.measure.kinds.sure import far_from

# Which threshold an application has is not known; those of detectors and masks lie here.
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
# Near ties for one decision: see ``classes``.
NEAR_TIES = {Kind.LABELS: 1, Kind.TOKENS: 1, Kind.PIXELS: 5}


@dataclass
class Thresholds:
    """Counts which scores stay on their side: ``labels``, a column of ``tokens``, masks among ``pixels``.

    Of several labels, or the pixels of a mask, those below the threshold in both models are no decisions: most are
    that in any model.
    """

    kind: Kind
    layout: Layout
    tallies: dict[float, Tally] = field(default_factory=dict)
    error: Worst = field(default_factory=Worst)

    def __post_init__(self) -> None:
        several = THRESHOLDS if self.kind is Kind.PIXELS else (0.5,)
        self.tallies = {t: Tally() for t in (several if self.layout.bounded else (0.0,))}

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        every = reference.shape[-1] == 1 and self.kind is not Kind.PIXELS
        for a, b, where in zip(reference, test, at, strict=True):
            deciding = np.zeros(a.shape, bool)
            for threshold, tally in self.tallies.items():
                above, over = a > threshold, b > threshold
                counts = np.ones_like(above) if every else above | over
                sure = far_from(a, threshold, probabilities=self.layout.bounded)
                tally.add(above == over, counts, sure, where)
                deciding |= counts
            if deciding.any():
                error = np.abs(a[deciding].astype(np.float64) - b[deciding])
                self.error.note(-float(error.max()), where)

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        threshold, tally, surest = strictest(self.tallies)
        mask = self.kind is Kind.PIXELS
        found = Measured(
            self.kind,
            f"{'IoU of the mask' if mask else 'same side'} above {threshold:g}",
            tally.share.value if mask else 100.0 * tally.share.value,
            "" if mask else "%",
            rule=f"above {threshold:g}",
            worst=tally.worst.value if mask else None if self.error.value is None else -self.error.value,
            worst_what="IoU" if mask else "error of a score",
            worst_at=tally.worst.at if mask else self.error.at,
        )
        return decided(found, tally, NEAR_TIES[self.kind], surest=surest)
